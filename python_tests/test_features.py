"""Feature maps out of any network."""

from __future__ import annotations

import copy
import gc
import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import semckd_kernels as sk
from semckd_kernels.features import default_layers


class Small(nn.Module):
    """Two stages and logits."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.layer1 = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        self.layer2 = nn.Conv2d(4, 6, 3, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer2(self.relu(self.layer1(images)))
        return self.head(x.mean((2, 3)))


IMAGES = torch.randn(2, 3, 8, 8)
LAYERS = ["layer1", "layer2"]


def test_maps_are_those_of_the_modules_and_are_given_once() -> None:
    net = Small()
    features = sk.FeatureMaps(net, LAYERS)
    net(IMAGES)
    first, second = features.take()
    assert torch.equal(first, net.layer1(IMAGES))
    assert torch.equal(second, net.layer2(first.relu()))
    with pytest.raises(ValueError, match="'layer1' did not run"):
        features.take()


def test_later_passes_replace_maps_that_were_not_taken() -> None:
    net = Small()
    features = sk.FeatureMaps(net, ["layer1"])
    net(IMAGES)
    net(2 * IMAGES)
    assert torch.equal(features.take()[0], net.layer1(2 * IMAGES))


def test_no_hook_and_no_object_stays() -> None:
    def alive() -> list[sk.FeatureMaps]:
        gc.collect()
        return [x for x in gc.get_objects() if type(x) is sk.FeatureMaps]

    # of other tests' fixtures
    known = set(map(id, alive()))
    net = Small()
    for close in (True, False, False):
        features = sk.FeatureMaps(net, LAYERS)
        net(IMAGES)
        if close:
            features.close()
        del features
    assert not [x for x in alive() if id(x) not in known]
    with sk.FeatureMaps(net, LAYERS):
        pass
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    assert sum(hooks) == 0


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")], ids=["dp", "compile"]
)
def test_wrapped_networks_keep_their_own_names(wrap: Any) -> None:
    net = wrap(Small())
    features = sk.FeatureMaps(net, LAYERS)
    net(IMAGES)
    assert [list(x.shape[1:]) for x in features.take()] == [[4, 8, 8], [6, 3, 3]]


def test_copies_of_a_network_are_left_alone() -> None:
    net = Small()
    features = sk.FeatureMaps(net, LAYERS)
    ema = copy.deepcopy(net)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    for other in (ema, again):
        other(IMAGES)
    with pytest.raises(ValueError, match="did not run"):
        features.take()
    net(IMAGES)
    assert len(features.take()) == 2


def test_an_exported_network_can_be_saved() -> None:
    net = Small().eval()
    features = sk.FeatureMaps(net, LAYERS)
    file = io.BytesIO()
    torch.export.save(torch.export.export(net, (IMAGES,)), file)
    assert file.getbuffer().nbytes > 0
    assert features.layers == tuple(LAYERS)


@dataclass
class Given:
    """Inputs by keyword, outputs as a mapping: what Transformers does."""

    pixel_values: Tensor


class Tokens(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.block = nn.Identity()
        self.outer = self.Block(kind)

    class Block(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: Tensor) -> Any:
            return {"tuple": (x, None), "mapping": {"last_hidden_state": x}, "nested": ((x,), 1)}[self.kind]

    def forward(self, *, pixel_values: Tensor) -> Any:
        return self.outer(self.block(pixel_values))


@pytest.mark.parametrize("kind", ["tuple", "mapping", "nested"])
def test_tokens_of_networks_with_other_inputs_and_outputs(kind: str) -> None:
    net = Tokens(kind)
    tokens = torch.randn(2, 1 + 6, 5)
    plain = sk.FeatureMaps(net, ["outer"])
    grid = sk.FeatureMaps(net, ["outer"], prefix_tokens=1, grid=(2, 3))
    given = sk.FeatureMaps(net, ["outer"], inputs=True)
    net(pixel_values=tokens)
    assert torch.equal(plain.take()[0], tokens)
    assert torch.equal(given.take()[0], tokens)
    (as_map,) = grid.take()
    assert torch.equal(as_map, tokens[:, 1:].transpose(1, 2).reshape(2, 5, 2, 3))
    assert sk.channels([as_map, tokens]) == [5, 5]


def test_maps_with_channels_last_are_turned() -> None:
    net = nn.Sequential(nn.Identity())
    features = sk.FeatureMaps(net, ["0"], nhwc=True)
    x = torch.randn(2, 4, 5, 3)
    net(x)
    assert torch.equal(features.take()[0], x.permute(0, 3, 1, 2))


def test_bad_layers_are_named() -> None:
    with pytest.raises(ValueError, match="no module 'layer3'; the nearest are layer"):
        sk.FeatureMaps(Small(), ["layer3"])
    with pytest.raises(ValueError, match="named twice"):
        sk.FeatureMaps(Small(), ["layer1", "layer1"])
    with pytest.raises(ValueError, match="at least one"):
        sk.FeatureMaps(Small(), [])
    with pytest.raises(ValueError, match="list of module paths, got the string"):
        sk.FeatureMaps(Small(), "layer1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name the modules of Small"):
        sk.FeatureMaps(Small())
    net = nn.Sequential(nn.Flatten())
    features = sk.FeatureMaps(net, ["0"])
    with pytest.raises(ValueError, match=r"'0' must give a map .* got \[2, 192\]"):
        net(IMAGES)
    assert features.layers == ("0",)


def test_a_module_that_gives_no_tensor_is_named() -> None:
    class Words(nn.Module):
        def forward(self, images: Tensor) -> str:
            return "words"

    net = nn.Sequential(nn.ReLU(), Words())
    features = sk.FeatureMaps(net, ["1"])
    with pytest.raises(ValueError, match=r"layers: '1' must give a map \[B, c, h, w\] or tokens .*, got a str"):
        net(IMAGES)
    features.close()


@pytest.mark.parametrize("options", [{}, {"nhwc": True}], ids=["NCHW", "NHWC"])
def test_hooks_compute_and_copy_nothing(options: dict[str, bool]) -> None:
    """Their cost is that of a few calls of Python, whatever the network's size."""

    class Ran(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    def step(features: sk.FeatureMaps | None) -> list[str]:
        net.zero_grad()
        names.clear()
        with Ran():
            loss = net(IMAGES).sum()
            if features is not None:
                features.take()
            loss.backward()
        return [name for name in names if name not in ("permute", "detach")]

    net, names = Small(), []
    plain = step(None)
    assert "convolution_backward" in plain
    assert step(sk.FeatureMaps(net, LAYERS, **options)) == plain


def test_overwritten_and_repeated_layers_are_refused() -> None:
    net = Small(inplace=True)
    features = sk.FeatureMaps(net, ["layer1"])
    net(IMAGES)
    with pytest.raises(ValueError, match="'layer1' is overwritten in place"):
        features.take()
    shared = nn.ReLU()
    twice = nn.Sequential(shared, nn.Identity())
    twice.add_module("again", shared)
    again = sk.FeatureMaps(twice, ["0"])
    with pytest.raises(ValueError, match="'0' runs more than once"):
        twice(IMAGES)
    assert again.layers == ("0",)


def test_modules_that_run_again_in_the_backward_pass_are_no_maps() -> None:
    class Checkpointed(Small):
        def forward(self, images: Tensor) -> Tensor:
            x = torch.utils.checkpoint.checkpoint(self.layer1, images, use_reentrant=False)
            return self.head(self.layer2(x).mean((2, 3)))

    net = Checkpointed()
    features = sk.FeatureMaps(net, LAYERS)
    logits = net(IMAGES)
    maps = features.take()
    (logits.sum() + sum(x.sum() for x in maps)).backward()
    assert net.layer1.weight.grad is not None


def test_default_layers() -> None:
    torchvision = pytest.importorskip("torchvision")
    assert default_layers(torchvision.models.resnet18()) == ["layer1", "layer2", "layer3", "layer4"]
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", depth=8, embed_dim=12, num_heads=1)
    assert default_layers(vit) == ["blocks.1", "blocks.3", "blocks.5", "blocks.7"]
    assert default_layers(Small()) == []
