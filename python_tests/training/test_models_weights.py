"""Teacher files: what is read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semckd_kernels.training import models
from semckd_kernels.training.models import FeatureNet

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def teacher() -> FeatureNet:
    return models.build("resnet8", classes=10, seed=0)


def saved(folder: Path, content: Any) -> Path:
    path = folder / "teacher.pth"
    torch.save(content, path)
    return path


def _old(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"epoch": 240, "model": state, "best_acc": torch.tensor(72.5)},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: state,
        lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {"student": {f"net.{name}": value for name, value in state.items()}, "step": 3},
        lambda state: {"model": _old(state)},
    ],
    ids=["family", "distributed", "plain", "compiled", "own", "old"],
)
def test_round_trip(teacher: FeatureNet, tmp_path: Path, wrap: Callable[[State], Any]) -> None:
    net = models.build("resnet8", classes=10, seed=1)
    models.load_weights(net, saved(tmp_path, wrap(teacher.net.state_dict())))
    for (name, x), (_, y) in zip(net.net.state_dict().items(), teacher.net.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"])
def test_every_family(name: str, tmp_path: Path) -> None:
    net = models.build(name, classes=5, seed=0)
    state = net.net.state_dict()
    filled = {key: torch.full_like(value, n) for n, (key, value) in enumerate(state.items())}
    models.load_weights(net, saved(tmp_path, {"model": filled}))
    assert all((value == n).all() for n, value in enumerate(net.net.state_dict().values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"model": []}, "holds no state dict, neither itself nor under model, student, state_dict"),
        (lambda s: 3, "holds no state dict"),
        (lambda s: {}, "holds no state dict"),
        (lambda s: {"model": {**s, "extra": torch.zeros(1)}}, r"another architecture .*\(unexpected: extra\)"),
        (
            lambda s: {"model": {k: v for k, v in s.items() if not k.startswith("layer1")}},
            r"\(missing: layer1.0.conv1.weight, layer1.0.bn1.weight, layer1.0.bn1.bias and \d+ more\)",
        ),
        (
            lambda s: {"model": {**s, "conv1.weight": torch.zeros(16, 1, 3, 3)}},
            r"of another shape: conv1.weight \[16, 1, 3, 3\] for \[16, 3, 3, 3\]",
        ),
        (
            lambda s: {"model": {**s, "fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}},
            "is for 100 classes, the network has 10",
        ),
        (lambda s: {"model": torch.nn.ReLU()}, "cannot be read as a checkpoint of weights alone"),
    ],
)
def test_what_does_not_fit(teacher: FeatureNet, tmp_path: Path, change: Callable[[State], Any], message: str) -> None:
    net = models.build("resnet8", classes=10, seed=1)
    before = {name: value.clone() for name, value in net.net.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        models.load_weights(net, saved(tmp_path, change(teacher.net.state_dict())))
    assert str(tmp_path / "teacher.pth") in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.net.state_dict().items())


def test_another_architecture(teacher: FeatureNet, tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": teacher.net.state_dict()})
    with pytest.raises(
        ValueError, match=r"missing: block1.layer.0.bn1.weight.* and \d+ more; unexpected: layer1.0.conv1.weight"
    ):
        models.load_weights(models.build("wrn_16_1", classes=10), path)


def test_no_file_and_no_checkpoint(teacher: FeatureNet, tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="is not a file"):
            models.load_weights(teacher, path)
    for content in (b"", b"not a checkpoint", b"PK\x03\x04 torn"):
        (tmp_path / "text.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"text.pth cannot be read as a checkpoint of weights alone \(.+\)"):
            models.load_weights(teacher, tmp_path / "text.pth")
