"""Fewer training samples and wrong labels: shares, seeds, and the same draw for every process, worker and resume."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets
from training_files import cifar_split, write_cifar_binary, write_image_folders

from semckd_kernels.training import data
from semckd_kernels.training.data.draw import Draw

LABELS = torch.tensor([0] * 40 + [1] * 25 + [2] * 3 + [4] * 32)


def test_every_class_keeps_its_share() -> None:
    kept = Draw(0.3, seed=1).samples(LABELS)
    assert torch.equal(kept, kept.unique())
    # 12, 7.5, 0.9, none and 9.6 of 30
    assert LABELS[kept].bincount().tolist() == [12, 7, 1, 0, 10]
    # a class has one at least
    assert LABELS[Draw(0.05).samples(LABELS)].bincount().tolist() == [2, 1, 1, 0, 2]
    assert torch.equal(Draw().samples(LABELS), torch.arange(100))
    for tenths in range(1, 11):
        assert len(Draw(tenths / 10).samples(torch.arange(300) % 3)) == 30 * tenths


def test_draws_follow_the_seed_and_each_sample_is_as_likely_as_another() -> None:
    kept = [Draw(0.2, seed=seed).samples(LABELS) for seed in range(400)]
    assert torch.equal(kept[3], Draw(0.2, 0.5, seed=3).samples(LABELS))
    counts = torch.cat(kept).bincount(minlength=100)[:40]
    # 400 draws of 8 in 40: binomial, five standard deviations
    assert (counts - 80).abs().max() < 5 * (400 * 0.2 * 0.8) ** 0.5
    # what a smaller share has is in a larger one
    assert set(Draw(0.1, seed=3).samples(LABELS).tolist()) < set(kept[3].tolist())


def test_noise_draws_labels_from_all_classes() -> None:
    labels = torch.zeros(10_000, dtype=torch.int64)
    drawn = Draw(noise=0.5, seed=2).labels(labels, 4)
    assert not labels.any()
    # 5,000 from four classes, five standard deviations of each
    assert (drawn.bincount() - torch.tensor([6250, 1250, 1250, 1250])).abs().max() < 5 * (5000 * 0.25 * 0.75) ** 0.5
    assert torch.equal(drawn, Draw(noise=0.5, seed=2).labels(labels, 4))
    assert not torch.equal(drawn, Draw(noise=0.5, seed=3).labels(labels, 4))
    assert Draw().labels(labels, 4) is labels


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ({"train_fraction": 0.0}, "train_fraction must be a share above 0 and at most 1, got 0"),
        ({"train_fraction": 1.5}, "train_fraction must be a share above 0 and at most 1, got 1.5"),
        ({"label_noise": -0.1}, "label_noise must be a share from 0 to 1, got -0.1"),
        ({"train_fraction": 0.004}, "batch_size must be at most 10, the number of training samples, got 64"),
    ],
)
def test_what_is_refused(draw: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        data.build("digits", batch_size=64, **draw)  # type: ignore[arg-type]


def epoch(samples: data.DataSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels in the order of the data set."""
    images, labels = (torch.cat(parts) for parts in zip(*samples.train_batches(0), strict=True))
    order = samples.share.train_order(samples.train_count, 0).argsort()
    return images[order], labels[order]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("draw")
    write_cifar_binary(root, cifar_split(300, seed=0), cifar_split(100, seed=1))
    write_image_folders(root / "images", train=4, val=1)
    return {"cifar100": root, "imagenet": root / "images"}


@pytest.mark.parametrize("name", ["digits", "cifar100", "imagenet"])
def test_every_data_set_has_the_samples_and_the_labels_that_are_drawn(name: str, roots: dict[str, Path]) -> None:
    options: dict[str, Any] = {"root": roots.get(name), "batch_size": 4, "seed": 3}
    options |= {"image_size": 8} if name == "imagenet" else {}
    options |= {} if name == "digits" else {"augment": False}
    images, labels = epoch(data.build(name, **options))
    drawn = data.build(name, **options, train_fraction=0.5, label_noise=0.8)
    draw = Draw(0.5, 0.8, seed=3)
    kept = draw.samples(labels)
    assert drawn.train_count == len(kept)
    found = epoch(drawn)
    assert torch.equal(found[0], images[kept])
    assert torch.equal(found[1], draw.labels(labels[kept], drawn.classes))
    assert not torch.equal(found[1], labels[kept])
    # the test set is whole
    assert drawn.test_count == data.build(name, **options).test_count


def test_ranks_and_workers_see_one_draw(roots: dict[str, Path]) -> None:
    options: dict[str, Any] = {"root": roots["imagenet"], "batch_size": 3, "image_size": 8, "seed": 1}
    options |= {"train_fraction": 0.5, "label_noise": 0.5}
    alone = [x for batch in data.build("imagenet", **options).train_batches(1) for x in batch.labels.tolist()]
    workers = data.build("imagenet", **options, workers=1)
    assert [x for batch in workers.train_batches(1) for x in batch.labels.tolist()] == alone
    ranks = [data.build("imagenet", **{**options, "batch_size": 1}, rank=rank, world_size=2) for rank in range(2)]
    dealt = [[int(batch.labels) for batch in rank.train_batches(1)] for rank in ranks]
    assert [x for pair in zip(*dealt, strict=True) for x in pair] == alone


@pytest.mark.usefixtures("quick_report")
def test_a_run_resumes_with_its_own_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--epochs", "2", "--train-fraction", "0.2", "--label-noise", "0.3", "--seed", "4"]
    assert training_nets.train(tmp_path / "whole", *flags) == 0
    said = capsys.readouterr().out
    assert "287 training and 360 test images, 10 classes; 30% of the training labels are drawn anew" in said
    training_nets.signal_after(monkeypatch, 15, 3)
    assert training_nets.train(tmp_path / "resumed", *flags) == 128 + 15
    monkeypatch.undo()
    assert training_nets.resume(tmp_path / "resumed") == 0
    training_nets.same_run(tmp_path / "whole", tmp_path / "resumed")
    assert training_nets.resume(tmp_path / "resumed", "--train-fraction", "0.3") == 2
    assert "--train-fraction was 0.2 and is now 0.3" in capsys.readouterr().err
