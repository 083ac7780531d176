"""Names to networks: the zoo, torchvision, timm, and a user's own function."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import semckd_kernels as sk
from semckd_kernels.training import models
from semckd_kernels.training.models import external

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("WRN-40-2", "wrn_40_2"),
        ("ResNet-8x4", "resnet8x4"),
        ("MobileNetV2", "mobilenetv2"),
        ("ShuffleV2", "shufflenetv2"),
    ],
)
def test_other_spellings(name: str, canonical: str) -> None:
    assert models.canonical_name(name) == canonical
    assert models.canonical_name("timm/resnet18") == "timm/resnet18"


def test_seed_decides_and_leaves_no_trace() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (models.build("wrn_16_1", classes=10, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["net.fc.weight"], other["net.fc.weight"])


def test_named_layers_and_mode() -> None:
    net = models.build("wrn_16_1", classes=10, layers=["block1", "block2"])
    assert net.layers == ("block1", "block2")
    assert all(module.training for module in net.modules())


FACTORY = """
from torch import nn

def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, num_classes),
    )

def too_few(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))

def flat(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def no_options():
    return nn.Identity()

def no_net(num_classes):
    return [num_classes]
"""


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_nets_of_a_test.py").write_text(FACTORY)
    (tmp_path / "my_broken_nets_of_a_test.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return tmp_path


def test_factory(working_folder: Path) -> None:
    net = models.build("my_nets_of_a_test:small", classes=7)
    # the last module at each resolution, pools passed over
    assert net.layers == ("1", "3", "7")
    assert net.map_shapes((32, 32)) == [(4, 32, 32), (6, 16, 16), (8, 8, 8)]
    assert net(torch.randn(2, 3, 32, 32)).logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet8x5",
            {},
            "no network 'resnet8x5' in the zoo; the nearest are resnet8x4.*; torchvision/NAME",
        ),
        ("torchvision/resnet19", {}, "torchvision has no model 'resnet19'; the nearest are resnet1"),
        ("torchvision/resnet18", {"in_channels": 1}, "takes images of 3 channels, got in_channels=1"),
        ("torchvision/vit_b_16", {"image_size": (32, 48)}, "takes square images, got 32 x 48"),
        ("torchvision/vit_b_16", {"image_size": (30, 30)}, "torchvision/vit_b_16: .*[Ii]nput shape indivisible"),
        ("torchvision/squeezenet1_0", {"image_size": (8, 8)}, "torchvision/squeezenet1_0: RuntimeError: .*too small"),
        ("resnet8", {"pretrained": True}, "pretrained: the zoo's resnet8 has no weights"),
        ("resnet8", {"layers": ["layr1"]}, "no module 'layr1'; the nearest are layer1"),
        ("resnet8", {"classes": 0}, "classes must be positive, got 0"),
        ("resnet8", {"image_size": (0, 32)}, "image_size must be positive, got 0"),
        ("vgg8", {"image_size": (4, 4)}, "vgg8 does not run on images of 3 x 4 x 4: .*too small"),
        ("no_such_module:net", {}, "the module 'no_such_module' cannot be imported .*No module named"),
        ("my_broken_nets_of_a_test:net", {}, "cannot be imported .*No module named 'no_such_package_at_all'"),
        ("my_nets_of_a_test:smal", {}, "'my_nets_of_a_test' has no function 'smal'; the nearest are small"),
        ("my_nets_of_a_test:no_options", {}, "no_options: TypeError: .*unexpected keyword argument 'num_classes'"),
        ("my_nets_of_a_test:no_net", {}, "must return a torch.nn.Module, got a list"),
        ("my_nets_of_a_test:flat", {}, "no stages found in this network; name its layers"),
        ("my_nets_of_a_test:small", {"pretrained": True}, "pretrained: my_nets_of_a_test:small has no weights"),
        ("my_nets_of_a_test:small", {"in_channels": 1}, "my_nets_of_a_test:small: RuntimeError: .*channels"),
        ("my_nets_of_a_test:small", {"layers": ["2"]}, "the output of '2' is overwritten in place"),
        ("my_nets_of_a_test:too_few", {"layers": ["0"]}, "'0' must give a map"),
    ],
)
def test_what_cannot_be_built(working_folder: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        models.build(name, **{"classes": 10, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "layers", "maps"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"], [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]),
        (
            "mobilenet_v2",
            ["features.3", "features.6", "features.13", "features.17"],
            [(24, 16, 16), (32, 8, 8), (96, 4, 4), (320, 2, 2)],
        ),
        ("shufflenet_v2_x0_5", ["stage2", "stage3", "stage4"], [(48, 8, 8), (96, 4, 4), (192, 2, 2)]),
        (
            "densenet121",
            [f"features.denseblock{n}" for n in range(1, 5)],
            [(256, 16, 16), (512, 8, 8), (1024, 4, 4), (1024, 2, 2)],
        ),
        (
            "squeezenet1_1",
            ["features.1", "features.4", "features.7", "features.12"],
            [(64, 31, 31), (128, 15, 15), (256, 7, 7), (512, 3, 3)],
        ),
        (
            "googlenet",
            ["conv3", "inception3b", "inception4e", "inception5b"],
            [(192, 16, 16), (480, 8, 8), (832, 4, 4), (1024, 2, 2)],
        ),
        (
            "swin_t",
            ["features.1", "features.3", "features.5", "features.7"],
            [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)],
        ),
        ("vit_b_32", [f"encoder.layers.encoder_layer_{n}" for n in (2, 5, 8, 11)], [(4, 768)] * 4),
    ],
)
def test_torchvision(
    name: str, layers: list[str], maps: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # weights that nobody looks at
    monkeypatch.setattr("torch.nn.init.trunc_normal_", lambda tensor, *args, **kwargs: nn.init.zeros_(tensor))
    net = models.build(f"torchvision/{name}", classes=10, image_size=(64, 64))
    assert list(net.layers) == layers
    assert net.map_shapes((64, 64)) == maps
    # in training mode too, logits alone
    assert net(torch.randn(2, 3, 64, 64)).logits.shape == (2, 10)


@needs_timm
@pytest.mark.parametrize(
    ("name", "layers", "maps"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"], [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]),
        (
            "mobilenetv3_small_050.lamb_in1k",
            [f"blocks.{n}" for n in (0, 1, 3, 5)],
            [(8, 16, 16), (16, 8, 8), (24, 4, 4), (288, 2, 2)],
        ),
        # of the tokens those of the image: 1 and 2 others are dropped, and 1 that xcit counts but adds later is not
        ("vit_tiny_patch16_224", [f"blocks.{n}" for n in (2, 5, 8, 11)], [(16, 192)] * 4),
        ("deit_tiny_distilled_patch16_224", [f"blocks.{n}" for n in (2, 5, 8, 11)], [(16, 192)] * 4),
        ("xcit_nano_12_p16_224", [f"blocks.{n}" for n in (2, 5, 8, 11)], [(16, 128)] * 4),
    ],
)
def test_timm(name: str, layers: list[str], maps: list[tuple[int, ...]]) -> None:
    net = models.build(f"timm/{name}", classes=10, in_channels=1, image_size=(64, 64))
    assert list(net.layers) == layers
    assert net.map_shapes(torch.zeros(1, 1, 64, 64)) == maps


@needs_timm
def test_timms_other_forms() -> None:
    # [B, h, w, c] inside
    swin = models.build("timm/swin_tiny_patch4_window7_224", classes=10, image_size=(224, 224), layers=["layers.3"])
    assert swin.map_shapes((224, 224)) == [(768, 7, 7)]
    with pytest.raises(ValueError, match="timm has no model 'resnet19'; the nearest are resnet1"):
        models.build("timm/resnet19", classes=10)


@needs_timm
def test_tokens_are_distilled_into_maps() -> None:
    teacher = models.build(
        "timm/vit_tiny_patch16_224", classes=10, image_size=(64, 64), layers=["blocks.0", "blocks.5"]
    )
    student = models.build("resnet8", classes=10, image_size=(64, 64))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    criterion = sk.SemCKD(4, [16, 32, 64], [192, 192])
    with torch.no_grad():
        maps = teacher.eval()(images).maps
    criterion(student(images).maps, maps).loss.backward()
    assert student.net.conv1.weight.grad.abs().max() > 0


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm is not installed"):
        models.build("timm/resnet18", classes=10)


@pytest.mark.parametrize("source", ["torchvision", pytest.param("timm", marks=needs_timm)])
def test_weights_are_fetched_only_when_asked(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise OSError("no network")

    # what torchvision and timm fetch with
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    if source == "timm":
        monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    models.build(f"{source}/resnet18", classes=1000, image_size=(64, 64))
    assert not asked
    with pytest.raises(ValueError, match=f"{source}/resnet18: OSError: no network"):
        models.build(f"{source}/resnet18", classes=1000, image_size=(64, 64), pretrained=True)
    assert asked


def test_evenly_spaced() -> None:
    names = [str(n) for n in range(12)]
    assert external.timm_layers(nn.Identity()) is None
    assert models.stages.evenly(names) == ["2", "5", "8", "11"]
    assert models.stages.evenly(names[:5]) == ["0", "1", "2", "4"]
    assert models.stages.evenly(names[:2]) == ["0", "1"]
