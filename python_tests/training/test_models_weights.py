"""Teacher files: what is read, and what is refused."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_files
import pytest
import torch
from foreign_files import saved
from torch import Tensor

from semckd_kernels.training import models
from semckd_kernels.training.models import FeatureNet, inert_pickle

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def teacher() -> FeatureNet:
    return models.build("resnet8", classes=10, seed=0)


def _old(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def _prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def _zeros(state: State) -> State:
    return {name: torch.zeros_like(value) for name, value in state.items()}


# forms of files, each around the state dict of a network
FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "model": lambda s: {"epoch": 240, "model": s, "best_acc": torch.tensor(72.5)},
    "DataParallel": lambda s: {"model": _prefixed(s, "module.")},
    "compiled, DataParallel": lambda s: {"state_dict": _prefixed(s, "module._orig_mod.")},
    "compiled in part": lambda s: {k.replace("layer1.", "layer1._orig_mod."): v for k, v in s.items()},
    "own": lambda s: {"student": _prefixed(s, "net."), "step": 3},
    "without counters": lambda s: {"model": _old(s)},
    "net": lambda s: {"net": s, "acc": 93.1, "epoch": 7},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": torch.tensor(1.0)},
    "deeper": lambda s: {"checkpoint": {"model": {"state_dict": _prefixed(s, "module.model.")}}},
    "beside an epoch": lambda s: {**s, "epoch": 3},
    "Lightning": lambda s: {"state_dict": _prefixed(s, "model."), "pytorch-lightning_version": "2.6.6"},
    "Lightning with others": lambda s: {
        "state_dict": _prefixed(s, "student.") | _prefixed(_zeros(s), "teacher.") | {"criterion.w": torch.ones(2)},
        "hyper_parameters": {"lr": 0.1},
    },
    "with its moving average": lambda s: {"state_dict_ema": _zeros(s), "state_dict": s},
    "moving average alone": lambda s: {"model_ema": _prefixed(s, "module.")},
    "twice the same": lambda s: {"best": s, "last": dict(s)},
}


def _loads(teacher: FeatureNet, path: Path) -> None:
    net = models.build("resnet8", classes=10, seed=1)
    models.load_weights(net, path)
    for (name, x), (_, y) in zip(net.net.state_dict().items(), teacher.net.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("form", FORMS)
def test_forms(teacher: FeatureNet, tmp_path: Path, form: str) -> None:
    _loads(teacher, saved(tmp_path / "teacher.pth", FORMS[form](teacher.net.state_dict())))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("form", [foreign_files.family, foreign_files.objects])
def test_objects_beside_the_weights(teacher: FeatureNet, tmp_path: Path, form: Any, old: bool) -> None:
    path = saved(tmp_path / "teacher.pth", form(teacher.net.state_dict()), old)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    _loads(teacher, path)


def test_numpy_before_2_and_python_2(teacher: FeatureNet, tmp_path: Path) -> None:
    path = saved(
        tmp_path / "teacher.pth", {**foreign_files.family(teacher.net.state_dict()), "note": "naïve"}, old=True
    )
    content = path.read_bytes()
    changes = {
        b"numpy._core.multiarray\n": b"numpy.core.multiarray\n",
        b"cargparse\nNamespace\n": b"c__builtin__\nset\n",
        # a str of Python 2 is bytes
        b"X\x06\x00\x00\x00na\xc3\xafve": b"U\x05na\xefve",
    }
    for before, after in changes.items():
        assert before in content
        content = content.replace(before, after)
    path.write_bytes(content)
    _loads(teacher, path)


def test_safetensors(teacher: FeatureNet, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "teacher.safetensors"
    library.save_file(_prefixed(teacher.net.state_dict(), "model."), path)
    _loads(teacher, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"teacher.safetensors cannot be read as a checkpoint: .+"):
        models.load_weights(teacher, path)


ATTACKS = list(foreign_files.malicious(Path("mark")))


@pytest.mark.parametrize("attack", ATTACKS)
def test_code_in_a_file_does_not_run(teacher: FeatureNet, tmp_path: Path, attack: str) -> None:
    (tmp_path / "hubconf.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()")
    content = {"model": teacher.net.state_dict(), "extra": foreign_files.malicious(tmp_path / "mark")[attack]}
    for old in (False, True):
        _loads(teacher, saved(tmp_path / "teacher.pth", content, old))
        # as the values of weights
        wrong = {"model": {**teacher.net.state_dict(), "conv1.weight": content["extra"]}}
        with pytest.raises(ValueError, match=r"missing: conv1.weight|no plain tensors: conv1.weight \([\w.]+\)"):
            models.load_weights(teacher, saved(tmp_path / "wrong.pth", wrong, old))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "name", ["os system", "torch._utils _rebuild_tensor_v2", "collections OrderedDict", "torch Size"]
)
def test_a_pickle_cannot_change_what_it_is_read_with(name: str) -> None:
    """The instruction BUILD sets attributes of the object before it."""
    attribute = b"dump_patches"
    build = b"(N}(X" + len(attribute).to_bytes(4, "little") + attribute + b"\x88utb."
    raw = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + build
    with pytest.raises((pickle.UnpicklingError, AttributeError, TypeError)):
        inert_pickle.load(io.BytesIO(raw))


def test_damage(teacher: FeatureNet, tmp_path: Path) -> None:
    path = saved(tmp_path / "teacher.pth", foreign_files.family(teacher.net.state_dict()))
    content = path.read_bytes()
    at = content.index(teacher.net.state_dict()["layer2.0.conv1.weight"].numpy().tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(ValueError, match=r"teacher.pth is damaged: Bad CRC-32 for file '.+'"):
        models.load_weights(teacher, path)
    old = saved(path, foreign_files.family(teacher.net.state_dict()), old=True).read_bytes()
    for n in range(1, 20):
        path.write_bytes(old[: len(old) * n // 20])
        with pytest.raises(ValueError, match=r"teacher.pth (is damaged|cannot be read)"):
            models.load_weights(teacher, path)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"])
def test_every_family(name: str, tmp_path: Path) -> None:
    net = models.build(name, classes=5, seed=0)
    state = net.net.state_dict()
    filled = {key: torch.full_like(value, n) for n, (key, value) in enumerate(state.items())}
    models.load_weights(net, saved(tmp_path / "teacher.pth", {"model": filled}))
    assert all((value == n).all() for n, value in enumerate(net.net.state_dict().values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"model": [], "epoch": 3}, r"holds no state dict \(keys: model, epoch\)"),
        (lambda s: 3, r"holds no state dict \(a int\)"),
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
            "holds 100 classes, but resnet8 is to have the data's 10",
        ),
        (
            lambda s: {"model": torch.nn.Sequential(torch.nn.ReLU()), "epoch": 3},
            r"a whole pickled network \('torch.nn.modules.container.Sequential'\).* save its state_dict\(\)",
        ),
        (
            lambda s: {"first": s, "second": _zeros(s)},
            "holds several networks of this form, 'first' and 'second': save the state dict that is wanted by itself",
        ),
        (lambda s: {"model": {**s, "conv1.weight": torch.ones(1).to_sparse()}}, r"no plain tensors: conv1.weight \("),
    ],
)
def test_what_does_not_fit(teacher: FeatureNet, tmp_path: Path, change: Callable[[State], Any], message: str) -> None:
    net = models.build("resnet8", classes=10, seed=1)
    before = {name: value.clone() for name, value in net.net.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        models.load_weights(net, saved(tmp_path / "teacher.pth", change(teacher.net.state_dict())), "resnet8")
    assert str(tmp_path / "teacher.pth") in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.net.state_dict().items())


def test_another_architecture(teacher: FeatureNet, tmp_path: Path) -> None:
    path = saved(tmp_path / "teacher.pth", {"model": teacher.net.state_dict()})
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
        with pytest.raises(ValueError, match=r"text.pth (is damaged|cannot be read as a checkpoint): .+"):
            models.load_weights(teacher, tmp_path / "text.pth")
