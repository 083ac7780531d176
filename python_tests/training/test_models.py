"""Networks and the feature maps taken out of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

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


def test_unknown_layer() -> None:
    with pytest.raises(ValueError, match="layers: the network has no module 'layer9'"):
        FeatureNet(cifar_resnet(8, 8, 10), ["layer1", "layer9"])
