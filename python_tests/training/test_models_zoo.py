"""The networks of the zoo: their sizes, and what they compute, written out from the names of their weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import semckd_kernels as sk
from semckd_kernels.training import models

# millions at 100 classes, as papers on distillation give them
MILLIONS = {
    "resnet8": 0.08,
    "resnet14": 0.18,
    "resnet20": 0.28,
    "resnet32": 0.47,
    "resnet44": 0.67,
    "resnet56": 0.86,
    "resnet110": 1.74,
    "resnet8x4": 1.23,
    "resnet32x4": 7.43,
    "wrn_16_1": 0.18,
    "wrn_16_2": 0.70,
    "wrn_40_1": 0.57,
    "wrn_40_2": 2.26,
    "vgg8": 3.97,
    "vgg11": 9.28,
    "vgg13": 9.46,
    "vgg16": 14.77,
    "vgg19": 20.09,
    "mobilenetv2": 0.81,
    "shufflenetv1": 0.95,
    "shufflenetv2": 1.36,
}
_RESNET = [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
_RESNET_X4 = [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
_WIDE = [(32, 32, 32), (64, 16, 16), (128, 8, 8)]
_VGG = [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4)]
# of 32 x 32 images
MAPS = {
    **{name: _RESNET for name in MILLIONS if name.startswith(("resnet", "wrn"))},
    **{name: _RESNET_X4 for name in MILLIONS if name.endswith("x4")},
    "wrn_16_2": _WIDE,
    "wrn_40_2": _WIDE,
    **{name: _VGG for name in MILLIONS if name.startswith("vgg")},
    "mobilenetv2": [(12, 16, 16), (16, 8, 8), (48, 4, 4), (160, 2, 2)],
    "shufflenetv1": [(240, 16, 16), (480, 8, 8), (960, 4, 4)],
    "shufflenetv2": [(116, 16, 16), (232, 8, 8), (464, 4, 4)],
}
# one of each family, its smallest
SMALL = ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"]


def nothing_is_kept(net: models.FeatureNet) -> bool:
    """A map that stayed between forward passes would keep a step's graph alive."""
    features = net._features
    return features is not None and not features._maps and not features._versions


def test_all_are_there() -> None:
    assert models.names() == list(MILLIONS)


@pytest.mark.parametrize("name", MILLIONS)
def test_sizes_maps_and_gradients(name: str) -> None:
    net = models.build(name, classes=100, seed=0)
    assert round(net.parameter_count() / 1e6, 2) == MILLIONS[name]
    logits, maps = net(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert [x.shape[1:] for x in maps] == MAPS[name]
    # maps are activations, but for MobileNetV2's linear bottlenecks
    assert all((x.min() < 0) == (name == "mobilenetv2") and x.max() > 0 for x in maps)
    grad = torch.autograd.grad(maps[0].sum(), list(net.parameters()), retain_graph=True, allow_unused=True)
    assert grad[0] is not None
    assert grad[0].abs().max() > 0
    assert grad[-1] is None
    F.cross_entropy(logits, torch.tensor([3, 99])).backward()
    for parameter_name, p in net.named_parameters():
        assert p.grad is not None, parameter_name
        assert p.grad.isfinite().all(), parameter_name
    assert nothing_is_kept(net)


@pytest.mark.parametrize("name", SMALL)
def test_distilled_by_semckd(name: str) -> None:
    student, teacher = models.build(name, classes=100, seed=0), models.build("resnet8", classes=100, seed=1)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    criterion = sk.SemCKD(4, [x[0] for x in MAPS[name]], [x[0] for x in _RESNET])
    with torch.no_grad():
        maps = teacher.eval()(images).maps
    criterion(student(images).maps, maps).loss.backward()
    reached = {n for n, p in student.net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert next(n for n, _ in student.net.named_parameters()) in reached


@pytest.mark.parametrize("name", SMALL)
def test_channels_last(name: str) -> None:
    net = models.build(name, classes=10, seed=0).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, maps = net(images)
        last = net.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    for x, y in zip([logits, *maps], [last.logits, *last.maps], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    # no module on the way lays the maps out again
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in last.maps)


@pytest.mark.parametrize("name", ["wrn_16_1", "vgg8"])
def test_compiled_in_one_graph(name: str) -> None:
    net = models.build(name, classes=10, seed=0).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    with torch.no_grad():
        logits, maps = net(images)
        compiled = torch.compile(net, fullgraph=True, backend="eager")(images)
    assert all(torch.equal(x, y) for x, y in zip([logits, *maps], [compiled.logits, *compiled.maps], strict=True))
    assert nothing_is_kept(net)


@pytest.mark.parametrize("name", SMALL)
def test_grey_images_of_another_size(name: str) -> None:
    net = models.build(name, classes=10, in_channels=1, image_size=(16, 24))
    # the heights and widths of CIFAR's maps, by 16/32 and 24/32
    assert net.map_shapes((16, 24)) == [(c, h * 16 // 32, w * 24 // 32 or 1) for c, h, w in _ceil(MAPS[name])]


def _ceil(maps: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Strided convolutions round up: 24 pixels become 2 where 32 become 2, not 1."""
    return [(c, h, w if w > 2 else 3) for c, h, w in maps]


def test_large_images_are_pooled_after_vggs_fourth_block() -> None:
    net = models.build("vgg8", classes=10, image_size=(64, 64))
    assert net.map_shapes((64, 64)) == [(128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]


class Weights:
    """The layers that a state dict's names speak of, in evaluation mode."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def has(self, name: str) -> bool:
        return any(key.startswith(name + ".") for key in self.state)

    def conv(self, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, weight.shape[-1] // 2, groups=groups)

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x.mean((2, 3)), self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel c of the result is the (c // groups)-th of group c mod groups."""
    channels = torch.arange(x.shape[1])
    return x[:, (channels % groups) * (x.shape[1] // groups) + channels // groups]


def resnet8(w: Weights, x: Tensor) -> Tensor:
    x = F.relu(w.norm("bn1", w.conv("conv1", x)))
    for stage, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2)):
        out = F.relu(w.norm(f"{stage}.bn1", w.conv(f"{stage}.conv1", x, stride)))
        out = w.norm(f"{stage}.bn2", w.conv(f"{stage}.conv2", out))
        if w.has(f"{stage}.downsample"):
            x = w.norm(f"{stage}.downsample.1", w.conv(f"{stage}.downsample.0", x, stride))
        x = F.relu(out + x)
    return w.linear("fc", x)


def wrn_16_1(w: Weights, x: Tensor) -> Tensor:
    x = w.conv("conv1", x)
    for block in (f"block{stage}.layer.{n}" for stage in (1, 2, 3) for n in (0, 1)):
        first = w.has(f"{block}.convShortcut")
        out = F.relu(w.norm(f"{block}.bn1", x))
        x = w.conv(f"{block}.convShortcut", out, 2) if first else x
        out = F.relu(w.norm(f"{block}.bn2", w.conv(f"{block}.conv1", out, 2 if first else 1)))
        x = x + w.conv(f"{block}.conv2", out)
    return w.linear("fc", F.relu(w.norm("bn1", x)))


def vgg13(w: Weights, x: Tensor) -> Tensor:
    for block in range(5):
        for n in (0, 3):
            x = F.relu(w.norm(f"block{block}.{n + 1}", w.conv(f"block{block}.{n}", x)))
        x = F.max_pool2d(x, 2) if block < 3 else x
    return w.linear("classifier", x)


def mobilenetv2(w: Weights, x: Tensor) -> Tensor:
    x = F.relu(w.norm("conv1.1", w.conv("conv1.0", x, 2)))
    for stage, (blocks, stride) in enumerate([(1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)]):
        for n in range(blocks):
            block = f"blocks.{stage}.{n}.conv"
            out = F.relu(w.norm(f"{block}.1", w.conv(f"{block}.0", x)))
            out = F.relu(w.norm(f"{block}.4", w.conv(f"{block}.3", out, 1 if n else stride, out.shape[1])))
            out = w.norm(f"{block}.7", w.conv(f"{block}.6", out))
            # here every block but a stage's first has a shortcut
            x = x + out if out.shape == x.shape else out
    return w.linear("classifier.0", F.relu(w.norm("conv2.1", w.conv("conv2.0", x))))


def shufflenetv1(w: Weights, x: Tensor) -> Tensor:
    x = F.relu(w.norm("bn1", w.conv("conv1", x)))
    for stage, blocks in ((1, 4), (2, 8), (3, 4)):
        for n in range(blocks):
            block, stride, groups = f"layer{stage}.{n}", 1 if n else 2, 1 if (stage, n) == (1, 0) else 3
            out = shuffled(F.relu(w.norm(f"{block}.bn1", w.conv(f"{block}.conv1", x, 1, groups))), groups)
            out = F.relu(w.norm(f"{block}.bn2", w.conv(f"{block}.conv2", out, stride, out.shape[1])))
            out = w.norm(f"{block}.bn3", w.conv(f"{block}.conv3", out, 1, 3))
            x = F.relu(out + x) if n else F.relu(torch.cat((out, F.avg_pool2d(x, 3, 2, 1)), 1))
    return w.linear("linear", x)


def shufflenetv2(w: Weights, x: Tensor) -> Tensor:
    def step(block: str, n: int, x: Tensor, stride: int = 1, depthwise: bool = False) -> Tensor:
        return w.norm(f"{block}.bn{n}", w.conv(f"{block}.conv{n}", x, stride, x.shape[1] if depthwise else 1))

    x = F.relu(w.norm("bn1", w.conv("conv1", x)))
    for stage, blocks in ((1, 4), (2, 8), (3, 4)):
        block = f"layer{stage}.0"
        left = F.relu(step(block, 2, step(block, 1, x, 2, True)))
        right = F.relu(step(block, 5, step(block, 4, F.relu(step(block, 3, x)), 2, True)))
        x = shuffled(torch.cat((left, right), 1), 2)
        for n in range(1, blocks):
            block, half = f"layer{stage}.{n}", x.shape[1] // 2
            right = F.relu(step(block, 3, step(block, 2, F.relu(step(block, 1, x[:, half:])), 1, True)))
            x = shuffled(torch.cat((x[:, :half], right), 1), 2)
    return w.linear("linear", F.relu(w.norm("bn2", w.conv("conv2", x))))


@pytest.mark.parametrize("computed", [resnet8, wrn_16_1, vgg13, mobilenetv2, shufflenetv1, shufflenetv2])
def test_computes_what_the_shared_weights_mean(computed: Callable[[Weights, Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    net = models.build(computed.__name__, classes=7, seed=0).double().eval()
    state = copy.deepcopy(net.net.state_dict())
    for name, value in state.items():
        # BatchNorms that have seen something, and classifiers that do not hide a difference
        if value.ndim == 1 or name.startswith("classifier"):
            value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5)
    net.net.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = computed(Weights(state), images)
        torch.testing.assert_close(net(images).logits, expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 1e-3
