"""ImageNet-style folders: decoding, augmentation, workers, resuming, broken files, signals."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from training_files import write_image_folders

from semckd_kernels.training import data
from semckd_kernels.training.data import indexed
from semckd_kernels.training.data.sampling import derived_seed

SIZE = 16
# more workers than this machine may have cores are no mistake here
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folders(tmp_path_factory.mktemp("images"))


def build(root: Path, **options: Any) -> data.DataSet:
    return data.build("imagenet", root=root, **{"batch_size": 4, "seed": 7, "image_size": SIZE} | options)


def equal(a: list[data.Batch], b: list[data.Batch]) -> bool:
    tensors = [[x for batch in batches for x in batch] for batches in (a, b)]
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))


def files(root: Path, split: str) -> list[Path]:
    return sorted((root / split).glob("*/*.JPEG"))


def opened(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(x)[:, None, None] for x in (indexed.MEAN, indexed.STD))
    return (pixels.float() / 255 - mean) / std


def test_the_set_as_a_whole(root: Path) -> None:
    samples = build(root)
    assert (samples.name, samples.classes, samples.in_channels, samples.image_size) == ("imagenet", 3, 3, (16, 16))
    assert samples.class_names == ("n00000000", "n00000001", "n00000002")
    assert (samples.train_count, samples.test_count, samples.steps_per_epoch) == (18, 12, 5)
    assert build(root, image_size=None).image_size == (224, 224)


def test_training_images_are_those_of_each_file_by_itself(root: Path) -> None:
    samples = build(root)
    batches = list(samples.train_batches(epoch=2))
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 4, 2]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = samples.share.train_order(18, 2).tolist()
    assert sorted(order) == list(range(18))
    transform = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    for n, i in enumerate(order):
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(7, "augment", 2, i))
            expected = transform(opened(files(root, "train")[i]))
        torch.testing.assert_close(images[n], normalised(expected), rtol=0, atol=2e-6)
        assert labels[n] == i // 6


def test_test_images_are_centres(root: Path) -> None:
    samples = build(root)
    images, labels = (torch.cat(parts) for parts in zip(*samples.test_batches(), strict=True))
    assert labels.tolist() == [i // 4 for i in range(12)]
    for image, path in zip(images, files(root, "val"), strict=True):
        whole = opened(path)
        # 18 is to 16 as 256 is to 224
        scale = 18 / min(whole.size)
        width, height = (int(scale * side + 1e-9) for side in whole.size)
        resized = v2.functional.pil_to_tensor(whole.resize((width, height), Image.Resampling.BILINEAR))
        top, left = round((height - SIZE) / 2), round((width - SIZE) / 2)
        expected = normalised(resized[:, top : top + SIZE, left : left + SIZE])
        torch.testing.assert_close(image, expected, rtol=0, atol=2e-6)
    chosen = samples.test_images([5, 0])
    assert torch.equal(chosen.images, images[[5, 0]])
    assert torch.equal(chosen.labels, labels[[5, 0]])
    pixels = (samples.denormalise(chosen.images) * 255).round()
    torch.testing.assert_close(normalised(pixels), chosen.images, rtol=0, atol=2e-6)


def test_grey_images_have_three_equal_channels(root: Path) -> None:
    samples = build(root)
    pixels = samples.denormalise(samples.test_images([0, 1]).images)
    assert (pixels[0] - pixels[0, :1]).abs().max() < 1e-5
    assert (pixels[1] - pixels[1, :1]).abs().max() > 0.05


def test_workers_change_no_bit_and_epochs_do(root: Path) -> None:
    alone, two = build(root), build(root, workers=2)
    for epoch in range(2):
        assert equal(list(alone.train_batches(epoch)), list(two.train_batches(epoch)))
    assert equal(list(alone.test_batches()), list(two.test_batches()))
    assert not equal(list(alone.train_batches(0)), list(alone.train_batches(1)))
    assert not equal(list(alone.train_batches(0)), list(build(root, seed=8).train_batches(0)))


def test_without_augmentation_epochs_hold_the_same_images(root: Path) -> None:
    samples = build(root, augment=False, batch_size=18)
    (first,), (second,) = (list(samples.train_batches(epoch)) for epoch in (0, 1))
    orders = [samples.share.train_order(18, epoch).argsort() for epoch in (0, 1)]
    assert torch.equal(first.images[orders[0]], second.images[orders[1]])


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_decodes_nothing_that_is_skipped(workers: int, root: Path, tmp_path: Path) -> None:
    whole = list(build(root).train_batches(1))
    copy = shutil.copytree(root, tmp_path / "copy")
    samples = build(copy, workers=workers)
    for i in samples.share.train_order(18, 1)[: 3 * 4].tolist():
        files(copy, "train")[i].write_bytes(b"broken")
    assert equal(whole[3:], list(samples.train_batches(1, start_step=3)))
    assert list(samples.train_batches(1, start_step=5)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterator_may_be_left_and_another_begun(workers: int, root: Path) -> None:
    samples = build(root, workers=workers)
    whole = list(build(root).train_batches(0))
    left = samples.train_batches(0)
    next(left)
    # the test set in the middle of an epoch is no matter
    assert len(list(samples.test_batches())) == 3
    assert torch.equal(next(left).images, whole[1].images)
    assert equal(list(samples.train_batches(0)), whole)
    with pytest.raises(RuntimeError, match="one iterator at a time"):
        next(left)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("steps", [1, None], ids=["left", "whole"])
def test_workers_end_with_their_data_set(steps: int | None, closed: bool, root: Path) -> None:
    """And at once, without the garbage collector, which leaves them waiting for queues that it has taken apart."""
    before = set(multiprocessing.active_children())
    samples = build(root, workers=2)
    batches = samples.train_batches(0)
    seen = list(islice(batches, steps))
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    gc.disable()
    try:
        del batches
        if closed:
            samples.close()
        else:
            del samples
        assert not workers & set(multiprocessing.active_children())
    finally:
        gc.enable()
    if closed:
        assert equal(list(samples.train_batches(0))[: len(seen)], seen)


def test_shares_of_ranks(root: Path) -> None:
    ranks = [build(root, batch_size=2, rank=rank, world_size=4) for rank in range(4)]
    # 18 samples: five a rank
    assert [[len(y) for _, y in rank.train_batches(0)] for rank in ranks] == [[2, 2, 1]] * 4
    assert {rank.steps_per_epoch for rank in ranks} == {3}
    alone = next(iter(build(root, batch_size=12).test_batches()))
    for n, rank in enumerate(ranks):
        images = torch.cat([x for x, _ in rank.test_batches()])
        assert torch.equal(images, alone.images[n::4])


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_own_generator_is_left_alone(workers: int, root: Path) -> None:
    samples = build(root, workers=workers)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = list(samples.train_batches(0))
    list(samples.test_batches())
    samples.test_images([0])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal(first, list(samples.train_batches(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named(workers: int, root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "copy")
    cut, text = files(copy, "train")[4], files(copy, "val")[5]
    cut.write_bytes(cut.read_bytes()[:200])
    text.write_text("no image")
    samples = build(copy, workers=workers)
    for path, work in (
        (cut, lambda: list(samples.train_batches(0))),
        (text, lambda: list(samples.test_batches())),
        (text, lambda: samples.test_images([5])),
    ):
        with pytest.raises(ValueError, match=f"^image '{re.escape(str(path))}' cannot be decoded: ") as refused:
            work()
        assert "\n" not in str(refused.value)


def without_val(root: Path) -> None:
    shutil.rmtree(root / "val")


def without_a_class(root: Path) -> None:
    shutil.rmtree(root / "val" / "n00000001")


def with_other_classes(root: Path) -> None:
    (root / "val" / "n00000001").rename(root / "val" / "other")
    (root / "train" / "n00000000").rename(root / "train" / "a")
    (root / "train" / "n00000002").rename(root / "train" / "b")


def with_an_empty_class(root: Path) -> None:
    for path in files(root, "train")[2:4]:
        path.unlink()


def with_an_empty_folder(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (shutil.rmtree, FileNotFoundError, "there is no folder '{root}/train': root must hold train/CLASS/*.JPEG"),
        (without_val, FileNotFoundError, "there is no folder '{root}/val': root must hold"),
        (with_an_empty_folder, FileNotFoundError, "'{root}/train' must hold one folder of images a class, and has no"),
        (with_an_empty_class, FileNotFoundError, "there are no images in '{root}/train/n00000001'"),
        (
            without_a_class,
            ValueError,
            "'{root}' must have the same classes in 'train' and 'val', got only 'train' has 'n00000001'",
        ),
        (
            with_other_classes,
            ValueError,
            "got only 'train' has 'a' and 2 more and only 'val' has 'n00000000' and 2 more",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_folders(damage: Callable[[Path], None], kind: type[Exception], message: str, tmp_path: Path) -> None:
    root = write_image_folders(tmp_path / "copy", train=2, val=1)
    damage(root)
    with pytest.raises(kind, match=re.escape(message.format(root=root))) as refused:
        build(root)
    assert "\n" not in str(refused.value)


SCRIPT = """
    import signal, sys, warnings
    warnings.simplefilter("ignore")
    from semckd_kernels.training import data
    if __name__ == "__main__":
        samples = data.build("imagenet", root=sys.argv[1], batch_size=4, workers=2, image_size=16)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, lambda *_: print("told to end", flush=True))
        try:
            for epoch in range(10**6):
                batches = [*samples.train_batches(epoch), *samples.test_batches()]
                print(len(batches), flush=True)
        except KeyboardInterrupt:
            sys.exit(130)
"""


def test_signals_to_the_whole_group_are_for_the_parent(root: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "8\n"
        os.killpg(process.pid, signal.SIGTERM)
        while process.stdout.readline() == "8\n":
            pass
        # workers continue until the parent has had enough
        for _ in range(3):
            assert process.stdout.readline() == "8\n"
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    # no traceback of a worker, nor of the parent
    assert errors == ""
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_the_gpu_are_the_same(workers: int, root: Path) -> None:
    expected = list(build(root).train_batches(1))
    batches = build(root, device="cuda", workers=workers).train_batches(1)
    for batch, other in zip(batches, expected, strict=True):
        # work that is still going on when the next batch is fetched
        torch.cuda._sleep(10_000_000)
        copy = (batch.images + 0).cpu()
        torch.testing.assert_close(copy, other.images, rtol=0, atol=2e-6)
        assert torch.equal(batch.labels.cpu(), other.labels)
