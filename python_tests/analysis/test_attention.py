"""Mean attention against the criterion's own weights, and the files of a run's analysis."""

from __future__ import annotations

import csv
import io
import json

import matplotlib.image
import pytest
import torch
from torch import nn

from semckd_kernels import SemCKD
from semckd_kernels.analysis import attention
from semckd_kernels.training.data import Batch
from semckd_kernels.training.models import FeatureNet
from semckd_kernels.training.run.folder import RunFolder

Runs = dict[str, RunFolder]


def net(seed: int, *widths: int) -> FeatureNet:
    torch.manual_seed(seed)
    before = (1, *widths)
    stages = [
        nn.Sequential(nn.Conv2d(c, w, 3, stride=2, padding=1), nn.BatchNorm2d(w), nn.ReLU())
        for c, w in zip(before, widths, strict=False)
    ]
    return FeatureNet(
        nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4)),
        [str(n) for n in range(len(widths))],
    )


@pytest.fixture(scope="module")
def parts() -> tuple[FeatureNet, FeatureNet, SemCKD, list[Batch]]:
    torch.manual_seed(0)
    batches = [Batch(torch.randn(n, 1, 8, 8), torch.randint(0, 3, (n,))) for n in (6, 6, 2)]
    return net(1, 4, 6), net(2, 5, 6, 7), SemCKD(6, [4, 6], [5, 6, 7]), batches


def test_mean_is_that_of_the_criterions_weights(parts: tuple[FeatureNet, FeatureNet, SemCKD, list[Batch]]) -> None:
    student, teacher, semckd, batches = parts
    for module in (student, teacher, semckd):
        module.train()
    state = {name: x.clone() for name, x in student.state_dict().items()}
    found = attention.mean_attention(student, teacher, semckd, batches, 4)
    # modes and running statistics are untouched
    assert all(m.training for module in (student, teacher, semckd) for m in module.modules())
    assert all(torch.equal(x, state[name]) for name, x in student.state_dict().items())
    for module in (student, teacher, semckd):
        module.eval()
    with torch.no_grad():
        weights = [semckd(student(b.images).maps, teacher(b.images).maps).weight.double() for b in batches]
    weight, labels = torch.cat(weights), torch.cat([b.labels for b in batches])
    assert found.samples == 14
    torch.testing.assert_close(found.weight, weight.mean(0))
    torch.testing.assert_close(found.weight.sum(1), torch.ones(2, dtype=torch.float64))
    for c in range(3):
        torch.testing.assert_close(found.by_class[c], weight[labels == c].mean(0))
    # no sample has the last class
    assert found.by_class[3].isnan().all()


def test_no_samples(parts: tuple[FeatureNet, FeatureNet, SemCKD, list[Batch]]) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        attention.mean_attention(*parts[:3], [], 4)


def test_files_of_a_run(runs: Runs) -> None:
    result = attention.analyze(runs["semckd"], by_class=True)
    loaded = runs["semckd"].load()
    found = attention.mean_attention(
        loaded.student, loaded.teacher, loaded.criterion.semckd, loaded.data.test_batches(), 10
    )
    assert found.samples == 360
    values = json.loads(result.files["attention.json"])
    assert values["weight"] == found.weight.tolist()
    assert values["student_layers"] == ["stage1 (6 x 8 x 8)", "stage2 (8 x 4 x 4)"]
    rows = list(csv.DictReader(io.StringIO(result.files["attention.csv"].decode())))
    assert [float(row["weight"]) for row in rows] == found.weight.flatten().tolist()
    assert [row["teacher_layer"] for row in rows[:3]] == ["stage1", "stage2", "stage3"]
    classes = list(csv.DictReader(io.StringIO(result.files["attention_classes.csv"].decode())))
    assert [float(row["weight"]) for row in classes] == found.by_class.flatten().tolist()
    epochs = list(csv.DictReader(io.StringIO(result.files["attention_epochs.csv"].decode())))
    stored = runs["semckd"].attention()
    assert [float(row["weight"]) for row in epochs] == stored.weight.flatten().tolist()
    assert "depends on the other samples of its batch" in result.summary
    for name in ("attention.png", "attention_epochs.png", "attention_classes.png"):
        assert matplotlib.image.imread(io.BytesIO(result.files[name])).std() > 0.05, name


def test_heat_map_is_darkest_where_the_weight_is_largest(runs: Runs) -> None:
    result = attention.analyze(runs["semckd"])
    weight = torch.tensor(json.loads(result.files["attention.json"])["weight"])
    pixels = torch.from_numpy(matplotlib.image.imread(io.BytesIO(result.files["attention.png"])))[..., :3].mean(2)
    # columns of cells: where a row of pixels has three broad stretches that are not white
    row = pixels[int(0.25 * len(pixels))]
    flat = [n for n in range(1, len(row)) if row[n] < 0.99 and row[n] == row[n - 1]]
    groups: list[list[int]] = [[flat[0]]]
    for n in flat[1:]:
        groups[-1].append(n) if n - groups[-1][-1] <= 2 else groups.append([n])
    cells = [group for group in groups if len(group) > 80][:3]
    shades = torch.tensor([row[cell[5]] for cell in cells])
    assert shades.argmin() == weight[0].argmax()
    assert shades.argmax() == weight[0].argmin()


@pytest.mark.parametrize("name", ["ce", "kd", "pair"])
def test_runs_without_an_attention(runs: Runs, name: str) -> None:
    with pytest.raises(ValueError, match=f"trained with method '{name}', which has no attention"):
        attention.analyze(runs[name])
