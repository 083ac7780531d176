"""Grad-CAM panels of finished runs: who is shown, and that the files hold what is drawn."""

from __future__ import annotations

import csv
import io
import json

import matplotlib.image
import pytest
import torch
from torch import Tensor, nn

from semckd_kernels.analysis import gradcam, panels
from semckd_kernels.training.models import FeatureNet
from semckd_kernels.training.run.folder import RunFolder

Runs = dict[str, RunFolder]


@pytest.mark.parametrize("target", ["true", "predicted"])
def test_files_hold_what_the_networks_say(runs: Runs, target: str) -> None:
    indices = [3, 77, 0]
    result = panels.analyze([runs["ce"], runs["kd"], runs["semckd"]], indices, target=target)
    values = json.loads(result.files["gradcam.json"])
    assert [network["title"] for network in values["networks"]] == ["teacher", "student alone", "KD", "SemCKD"]
    assert [network["layer"] for network in values["networks"]] == ["stage3", "stage2", "stage2", "stage2"]
    rows = list(csv.DictReader(io.StringIO(result.files["gradcam.csv"].decode())))
    assert len(rows) == 4 * 3
    loaded = runs["kd"].load()
    images, labels = loaded.data.test_images(indices)
    nets = {
        "teacher": loaded.teacher,
        "student alone": runs["ce"].load().student,
        "KD": loaded.student,
        "SemCKD": runs["semckd"].load().student,
    }
    for network in values["networks"]:
        net = nets[network["title"]]
        with torch.no_grad():
            probability = net(images).logits.softmax(1)
        wanted = labels if target == "true" else probability.argmax(1)
        heat = gradcam.grad_cam(net, images, wanted).heat
        torch.testing.assert_close(torch.tensor(network["heat"]), heat, rtol=0, atol=6e-5)
        own = [row for row in rows if row["network"] == network["title"]]
        assert [int(row["image"]) for row in own] == indices
        for n, row in enumerate(own):
            assert row["true_class"] == str(labels[n].item())
            assert row["predicted_class"] == str(probability[n].argmax().item())
            assert row["explained_class"] == str(wanted[n].item())
            assert float(row["p_predicted"]) == pytest.approx(probability[n].max().item(), rel=1e-5)
            assert float(row["p_true"]) == pytest.approx(probability[n, labels[n]].item(), rel=1e-5)
    picture = matplotlib.image.imread(io.BytesIO(result.files["gradcam.png"]))
    # columns of images are wider than high only together
    assert picture.std() > 0.1
    assert picture.shape[1] > picture.shape[0]


class ClassToken(nn.Module):
    """Two blocks over five tokens, of which the class token alone reaches the logits after the second."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = nn.Linear(3, 6), nn.Linear(5, 5)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(2).transpose(1, 2)
        tokens = torch.relu(self.block1(torch.cat([pixels.mean(1, keepdim=True), pixels], 1)))
        mixed = self.norm(self.block2(tokens.transpose(1, 2)).transpose(1, 2))
        logits: Tensor = self.head(mixed[:, 0])
        return logits


def test_the_last_layer_whose_pixels_reach_the_logits() -> None:
    torch.manual_seed(0)
    net = FeatureNet(ClassToken(), ["block1", "norm"], prefix_tokens=1)
    images, labels = torch.randn(3, 3, 2, 2), torch.tensor([0, 1, 2])
    assert not gradcam.grad_cam(net, images, labels, "norm").heat.any()
    found = panels._column("net", net, images, labels, None, "true")
    assert found.layer == "block1"
    assert torch.equal(found.cam.heat, gradcam.grad_cam(net, images, labels, "block1").heat)
    assert found.cam.heat.any()
    # a layer that was asked for is shown as it is
    assert not panels._column("net", net, images, labels, "norm", "true").cam.heat.any()


def test_a_student_alone_has_no_teacher_beside_it(runs: Runs) -> None:
    values = json.loads(panels.analyze([runs["ce"]], [0]).files["gradcam.json"])
    assert [network["title"] for network in values["networks"]] == ["student alone"]


@pytest.mark.parametrize(
    ("indices", "options", "message"),
    [
        ([0, 360], {}, "indices must be from 0 to 359, got 360"),
        ([], {}, "at least one sample"),
        ([0], {"layer": "stage9"}, "layer must be a module of the network, such as 'stage3', got 'stage9'"),
        ([0], {"target": "dog"}, "target must be one of true, predicted, got 'dog'"),
    ],
)
def test_bad_input(runs: Runs, indices: list[int], options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        panels.analyze([runs["kd"]], indices, **options)
