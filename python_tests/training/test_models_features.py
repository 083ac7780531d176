"""Networks and the feature maps taken out of them."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from semckd_kernels.training.models import CIFAR_RESNET_LAYERS, FeatureNet, cifar_resnet


def test_parameters_of_the_literature() -> None:
    # ResNet-20 for CIFAR-10: 0.27 M (He et al. 2016, table 6), 272,474 with projections on its two shortcuts
    assert sum(p.numel() for p in cifar_resnet(20, 16, 10).parameters()) == 272_474


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_depth_must_fit(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth must be 6n \+ 2 with n >= 1, got {depth}"):
        cifar_resnet(depth, 16, 10)


@pytest.mark.parametrize("training", [True, False])
def test_maps_are_the_stages_activations(training: bool) -> None:
    torch.manual_seed(0)
    net = cifar_resnet(8, 8, 10, in_channels=1)
    images = torch.randn(5, 1, 16, 16)
    twin = copy.deepcopy(net).train(training)
    logits, maps = FeatureNet(net, CIFAR_RESNET_LAYERS).train(training)(images)
    assert [tuple(x.shape) for x in maps] == [(5, 8, 16, 16), (5, 16, 8, 8), (5, 32, 4, 4)]
    x = torch.relu(twin.bn1(twin.conv1(images)))
    for layer, feature in zip((twin.layer1, twin.layer2, twin.layer3), maps, strict=True):
        x = layer(x)
        assert torch.equal(feature, x)
        # after the last ReLU, and not the trivial map
        assert feature.min() == 0
        assert feature.max() > 0.1
    assert torch.equal(logits, twin.fc(x.mean((2, 3))))


def test_gradient_reaches_the_network_through_a_map() -> None:
    net = FeatureNet(cifar_resnet(8, 8, 10, 1), ["layer2"])
    net(torch.randn(2, 1, 16, 16)).maps[0].sum().backward()
    reached = {name.split(".")[1] for name, p in net.named_parameters() if p.grad is not None}
    assert reached == {"conv1", "bn1", "layer1", "layer2"}


def test_shapes_are_found_without_a_trace() -> None:
    net = FeatureNet(cifar_resnet(8, 8, 10, 1), CIFAR_RESNET_LAYERS)
    before = copy.deepcopy(net.state_dict())
    assert net.map_shapes(torch.randn(3, 1, 16, 16)) == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_any_network_and_any_module_path() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), nn.Flatten(), nn.Linear(16, 2))
    maps = FeatureNet(net, ["1.0", "1"])(torch.randn(2, 3, 4, 4)).maps
    assert [tuple(x.shape) for x in maps] == [(2, 4, 4, 4), (2, 4, 2, 2)]


def test_copies_keep_their_maps_apart() -> None:
    first = FeatureNet(cifar_resnet(8, 8, 10, 1), CIFAR_RESNET_LAYERS)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.net.conv1.weight.zero_()
    images = torch.randn(2, 1, 16, 16)
    assert not torch.equal(first(images).maps[0], second(images).maps[0])


def test_size_in_place_of_images() -> None:
    net = FeatureNet(cifar_resnet(8, 8, 10, 1), CIFAR_RESNET_LAYERS)
    assert net.map_shapes((16, 24)) == [(8, 16, 24), (16, 8, 12), (32, 4, 6)]
    with pytest.raises(ValueError, match="pass images"):
        FeatureNet(nn.Sequential(nn.Linear(2, 2)), ["0"]).map_shapes((4, 4))


def test_frozen_parts_stay_frozen() -> None:
    net = FeatureNet(cifar_resnet(8, 8, 10, 1), CIFAR_RESNET_LAYERS)
    net.net.bn1.eval()
    net.map_shapes((16, 16))
    assert not net.net.bn1.training
    assert net.net.layer1.training


def test_prefix_tokens_and_channels_last_maps() -> None:
    tokens = nn.Sequential(nn.Flatten(2), nn.Identity(), nn.Flatten(), nn.Linear(18, 2))
    images = torch.arange(36.0).reshape(2, 3, 3, 2)
    assert torch.equal(FeatureNet(tokens, ["1"], prefix_tokens=2)(images).maps[0], images.flatten(2)[:, 2:])
    maps = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(18, 2))
    assert torch.equal(FeatureNet(maps, ["0"], nhwc=True)(images).maps[0], images.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["layer1", "layer9"], "layers: the network has no module 'layer9'; the nearest are layer"),
        (["layer1.0.cnv1"], "the nearest are layer1.0.conv1"),
        ([""], "layers: the network has no module ''"),
        (["layer1", "layer1"], "layers: 'layer1' is named twice"),
        ([], "layers: name at least one module"),
    ],
)
def test_layers_that_cannot_be(layers: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureNet(cifar_resnet(8, 8, 10), layers)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("bn1", "the output of 'bn1' is overwritten in place by a later operation"),
        ("layer1.0.relu", "'layer1.0.relu' runs more than once in a forward pass"),
        ("fc", r"'fc' must give a map \[B, c, h, w\] or tokens \[B, N, c\], got \[2, 10\]"),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_outputs_that_are_no_maps(layer: str, message: str, grad: bool) -> None:
    net = FeatureNet(cifar_resnet(8, 8, 10), [layer])
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=message):
        net(torch.randn(2, 3, 16, 16))
    assert not net._features._maps


def test_a_layer_that_does_not_run() -> None:
    net = cifar_resnet(8, 8, 10)
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="layers: 'spare' did not run in a forward pass"):
        FeatureNet(net, ["spare"])(torch.randn(2, 3, 16, 16))


class Pair(nn.Module):
    """Gives two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv(x)
        return x.mean((2, 3)), x.sum((2, 3))


def test_tuples_of_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the network must give logits \[B, classes\], got a tuple"):
        FeatureNet(Pair(), ["conv"])(torch.randn(2, 3, 4, 4))


def test_no_hook_stays() -> None:
    net = cifar_resnet(8, 8, 10)
    for _ in range(3):
        FeatureNet(net, CIFAR_RESNET_LAYERS)(torch.randn(2, 3, 16, 16))
    gc.collect()
    assert not [name for name, m in net.named_modules() if m._forward_hooks or m._forward_pre_hooks]


def test_prefix_tokens_dropped_later_are_those_of_copies_as_well() -> None:
    net = FeatureNet(nn.Sequential(nn.Flatten(2), nn.Flatten(), nn.Linear(18, 2)), ["0"], prefix_tokens=2)
    net.drop_prefix(0)
    images = torch.arange(36.0).reshape(2, 3, 3, 2)
    for each in (net, copy.deepcopy(net)):
        assert torch.equal(each(images).maps[0], images.flatten(2))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = checkpoint(self.body, x, use_reentrant=False)
        return self.head(x.mean((2, 3)))


def test_modules_run_again_for_the_backward_pass() -> None:
    net = FeatureNet(Checkpointed(), ["body"])
    for _ in range(2):
        logits, maps = net(torch.randn(2, 3, 4, 4))
        (logits.sum() + maps[0].square().sum()).backward()
        assert not net._features._maps
    assert net.net.body.weight.grad is not None


def test_an_exported_network_can_be_saved() -> None:
    net = FeatureNet(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 2)), ["0"]).eval()
    images, file = torch.randn(2, 3, 2, 2), io.BytesIO()
    torch.export.save(torch.export.export(net, (images,)), file)
    file.seek(0)
    logits, maps = torch.export.load(file).module()(images)
    torch.testing.assert_close(logits, net(images).logits)
    torch.testing.assert_close(maps, net(images).maps)


def test_inference_mode() -> None:
    net = FeatureNet(cifar_resnet(8, 8, 10), CIFAR_RESNET_LAYERS).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        inferred = net(images).maps
    assert all(torch.equal(x, y) for x, y in zip(inferred, net(images).maps, strict=True))
