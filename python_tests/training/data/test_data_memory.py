"""Sets held in memory: crops and mirror images, normalisation, resuming, ranks."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_files import cifar_split

from semckd_kernels.training.data import Batch, InMemory, Share, Split
from semckd_kernels.training.data.augment import PaddedImages
from semckd_kernels.training.data.sampling import generator

MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.3, 0.25)
TRAIN, TEST = cifar_split(200, seed=0), cifar_split(50, seed=1)


def make(share: Share, pad: int | None = 4, device: str = "cpu", train: Split = TRAIN) -> InMemory:
    names = [str(n) for n in range(100)]
    return InMemory(
        "made", names, train, TEST, mean=MEAN, std=STD, white=255.0, share=share, device=torch.device(device), pad=pad
    )


def slowly_normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def equal(a: list[Batch], b: list[Batch]) -> bool:
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(
        torch.equal(p.images, q.images) and torch.equal(p.labels, q.labels) for p, q in pairs
    )


@pytest.mark.parametrize("pad", [1, 4, 9])
@pytest.mark.parametrize("shape", [(7, 3, 32, 32), (5, 1, 6, 11), (1, 2, 9, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_crops_are_those_of_each_image_by_itself(shape: tuple[int, ...], pad: int, dtype: torch.dtype) -> None:
    count, _, height, width = shape
    # no zeros but those of the padding
    images = torch.randint(1, 256, shape, generator=generator(0)).to(dtype)
    padded = PaddedImages(images, pad)
    index = torch.randint(count, (300,), generator=generator(1))
    crops = padded.draw(300, generator(2))
    found = padded.cut(padded.starts(index, crops), crops.mirrored)
    for n, (i, top, left, mirrored) in enumerate(zip(index, *crops, strict=True)):
        expected = F.pad(images[i], (pad,) * 4)[:, top : top + height, left : left + width]
        assert torch.equal(found[n], expected.flip(-1) if mirrored else expected)
    assert torch.equal(padded.cut(padded.starts(index)), images[index])


def test_random_choices_are_uniform_and_independent() -> None:
    crops = PaddedImages(torch.zeros(1, 1, 2, 2), 4).draw(90_000, generator(0))
    together = (crops.top * 9 + crops.left) * 2 + crops.mirrored
    counts = together.bincount(minlength=162).double()
    assert len(counts) == 162
    # chi-square of 161 degrees of freedom: mean 161, deviation 18
    expected = 90_000 / 162
    assert 80 < ((counts - expected) ** 2 / expected).sum() < 260


@pytest.mark.parametrize("pad", [4, None], ids=str)
def test_batches_are_the_slow_ones(pad: int | None) -> None:
    share = Share(batch_size=32, seed=5)
    batches = list(make(share, pad).train_batches(epoch=2))
    assert [len(labels) for _, labels in batches] == [32] * 6 + [8]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = share.train_order(200, 2)
    assert torch.equal(labels, TRAIN.labels[order])
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    pixels = TRAIN.images[order]
    if pad:
        crops = PaddedImages(TRAIN.images, pad).draw(200, generator(5, "augment", 2))
        for n, i in enumerate(order):
            top, left = crops.top[i], crops.left[i]
            crop = F.pad(TRAIN.images[i], (pad,) * 4)[:, top : top + 32, left : left + 32]
            pixels[n] = crop.flip(-1) if crops.mirrored[i] else crop
    torch.testing.assert_close(images, slowly_normalised(pixels), rtol=0, atol=2e-6)


def test_normalised_channels_have_mean_zero_and_deviation_one() -> None:
    # pixels of the very mean and deviation that the set says
    noise = torch.rand(100, 3, 32, 32, generator=generator(0))
    noise = (noise - noise.mean((0, 2, 3), True)) / noise.std((0, 2, 3), keepdim=True)
    mean, std = torch.tensor((0.5, 0.45, 0.55))[:, None, None], torch.tensor((0.2, 0.19, 0.21))[:, None, None]
    train = Split(((noise * std + mean) * 255).round().to(torch.uint8), torch.arange(100))
    samples = InMemory(
        "made",
        ["0"],
        train,
        TEST,
        mean=(0.5, 0.45, 0.55),
        std=(0.2, 0.19, 0.21),
        white=255.0,
        share=Share(100),
        device=torch.device("cpu"),
    )
    ((images, _),) = samples.train_batches(0)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-3)
    pixels = (samples.denormalise(images) * 255).round().to(torch.uint8)
    assert torch.equal(pixels, train.images[samples.share.train_order(100, 0)])


def test_epochs_differ_and_repeat() -> None:
    samples = make(Share(batch_size=32, seed=5))
    first = list(samples.train_batches(0))
    assert equal(first, list(samples.train_batches(0)))
    assert equal(first, list(make(Share(batch_size=32, seed=5)).train_batches(0)))
    second = torch.cat([labels for _, labels in samples.train_batches(1)])
    assert not torch.equal(torch.cat([labels for _, labels in first]), second)
    # a sample is not cropped alike in two epochs, but for one in 162
    orders = [samples.share.train_order(200, epoch).argsort() for epoch in (0, 1)]
    by_sample = [torch.cat([x for x, _ in samples.train_batches(epoch)])[orders[epoch]] for epoch in (0, 1)]
    alike = (by_sample[0] == by_sample[1]).flatten(1).all(1)
    assert alike.sum() < 10


@pytest.mark.parametrize("start_step", [0, 1, 6, 7])
def test_resuming_in_mid_epoch_gives_the_same_bits(start_step: int) -> None:
    samples = make(Share(batch_size=32, seed=5))
    whole = list(samples.train_batches(3))
    assert equal(whole[start_step:], list(make(Share(batch_size=32, seed=5)).train_batches(3, start_step)))


def test_ranks_see_what_one_process_sees() -> None:
    # a sample is augmented alike whoever sees it
    alone = list(make(Share(batch_size=40, seed=5)).train_batches(1))
    ranks = [list(make(Share(20, 5, rank, 2)).train_batches(1)) for rank in range(2)]
    for batch, halves in zip(alone, zip(*ranks, strict=True), strict=True):
        for rank, half in enumerate(halves):
            assert torch.equal(half.images, batch.images[rank::2])
            assert torch.equal(half.labels, batch.labels[rank::2])


def test_all_ranks_make_equal_steps() -> None:
    sizes = [[len(y) for _, y in make(Share(32, 5, rank, 3)).train_batches(0)] for rank in range(3)]
    # 200 samples: 67 a rank
    assert sizes == [[32, 32, 3]] * 3
    assert make(Share(32, 5, 1, 3)).steps_per_epoch == 3


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_test_sample_comes_once(world_size: int) -> None:
    ranks = [list(make(Share(8, 5, rank, world_size)).test_batches()) for rank in range(world_size)]
    for rank, batches in enumerate(ranks):
        images = torch.cat([x for x, _ in batches])
        torch.testing.assert_close(images, slowly_normalised(TEST.images[rank::world_size]), rtol=0, atol=2e-6)
        assert torch.equal(torch.cat([y for _, y in batches]), TEST.labels[rank::world_size])


def test_chosen_test_images() -> None:
    samples = make(Share(8))
    images, labels = samples.test_images([3, 0, 3])
    torch.testing.assert_close(images, slowly_normalised(TEST.images[[3, 0, 3]]), rtol=0, atol=2e-6)
    assert labels.tolist() == [3, 0, 3]
    torch.testing.assert_close(samples.denormalise(images), TEST.images[[3, 0, 3]] / 255)
    for indices, message in (([50], "indices must be from 0 to 49, got 50"), ([], "at least one sample, got none")):
        with pytest.raises(ValueError, match=message):
            samples.test_images(indices)


def test_batches_do_not_share_memory_with_the_set() -> None:
    samples = make(Share(8))
    for batches in (samples.train_batches, samples.test_batches):
        arguments = (0,) if batches == samples.train_batches else ()
        before = next(iter(batches(*arguments))).images.clone()
        next(iter(batches(*arguments))).images.zero_()
        assert torch.equal(next(iter(batches(*arguments))).images, before)


def test_torchs_own_generator_is_left_alone() -> None:
    samples = make(Share(batch_size=32, seed=5))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = list(samples.train_batches(0))
    list(samples.test_batches())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal(first, list(samples.train_batches(0)))


@pytest.mark.parametrize(
    ("epoch", "start_step", "message"),
    [
        (-1, 0, "epoch must be at least 0, got -1"),
        (0, -1, "start_step must be from 0 to 7, got -1"),
        (0, 8, "start_step must be from 0 to 7, got 8"),
    ],
)
def test_no_such_step(epoch: int, start_step: int, message: str) -> None:
    # at the call, not at the first batch
    with pytest.raises(ValueError, match=re.escape(message)):
        make(Share(batch_size=32)).train_batches(epoch, start_step)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_makes_the_same_choices() -> None:
    share = Share(batch_size=32, seed=5)
    for ours, theirs in zip(make(share, device="cuda").train_batches(1), make(share).train_batches(1), strict=True):
        assert ours.images.is_cuda
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        torch.testing.assert_close(ours.images.cpu(), theirs.images, rtol=0, atol=2e-6)
