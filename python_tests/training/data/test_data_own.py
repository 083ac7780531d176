"""Data of a user's own: what a factory may return, what it is called with, and what is refused."""

from __future__ import annotations

import multiprocessing
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from semckd_kernels.training import data
from semckd_kernels.training.data.indexed import MEAN, STD
from semckd_kernels.training.data.torch_sets import labels_of

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
IMAGES = torch.randn(20, 2, 6, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 4
CALLED: dict[str, Any] = {}


class Listed(Dataset[Any]):
    """Samples of a list, with ``targets`` and ``classes`` as torchvision's data sets have them."""

    def __init__(
        self, images: Any, labels: Any, classes: Any = None, change: Callable[[Any], Any] = lambda x: x
    ) -> None:
        self.images, self.targets, self.change = images, labels, change
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.change(self.images[index]), self.targets[index]


def floats() -> Any:
    return TensorDataset(IMAGES, LABELS), TensorDataset(IMAGES[:7] + 1, LABELS[:7])


def pixels() -> Any:
    levels = (IMAGES * 50 + 128).clamp(0, 255).to(torch.uint8)
    train = Subset(Listed(levels, LABELS.tolist(), ("a", "b", "c", "d")), range(18))
    return train, Listed(levels[:5], LABELS[:5].tolist())


def photos(image_size: int = 3) -> Any:
    made = [Image.fromarray((IMAGES[n, 0].abs() * 50).to(torch.uint8).numpy()) for n in range(8)]
    return Listed(made, LABELS[:8].tolist()), Listed(made[:4], LABELS[:4].tolist()), 4


def all_arguments(**given: Any) -> Any:
    CALLED.update(given)
    return floats()


def some_arguments(root: str, *, batch_size: int, other: int = 3) -> Any:
    CALLED.update(root=root, batch_size=batch_size, other=other)
    return floats()


def jitter(image: Tensor) -> Tensor:
    """Draws from all three generators."""
    return image + torch.rand(()) + random.random() + float(np.random.rand())


def augmented(augment: bool) -> Any:
    return Listed(IMAGES, LABELS.tolist(), change=jitter if augment else lambda x: x), floats()[1]


class Counted:
    calls = 0

    def __call__(self, image: Tensor) -> Tensor:
        self.calls += 1
        return image + self.calls


def never_the_same() -> Any:
    return Listed(IMAGES, LABELS.tolist(), change=Counted()), floats()[1]


def one_of_another_size() -> Any:
    return Listed([*IMAGES[:19], IMAGES[0, :, 1:]], LABELS.tolist()), floats()[1]


def with_loaders(batch_size: int, workers: int, **more: Any) -> Any:
    train, test = Listed(IMAGES, LABELS.tolist(), change=jitter), floats()[1]
    return DataLoader(train, batch_size, shuffle=True, num_workers=workers, **more), DataLoader(test, 3)


def loaders(batch_size: int, workers: int) -> Any:
    return with_loaders(batch_size, workers)


def lasting(batch_size: int, workers: int) -> Any:
    return with_loaders(batch_size, workers, persistent_workers=True)


def without_the_rest(batch_size: int, workers: int) -> Any:
    return with_loaders(batch_size, workers, drop_last=True)


class Short(DataLoader[Any]):
    """Says that it is longer than it is."""

    def __len__(self) -> int:
        return super().__len__() + 2


class Few:
    """A loader that is none of torch's, and as short."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        yield IMAGES[:4], LABELS[:4]


def short(batch_size: int, augment: bool = True) -> Any:
    return Short(floats()[0], batch_size), Few()


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(IMAGES, LABELS, strict=True)


# what is refused, by what a factory returns
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, "must return two Datasets with a length or two DataLoaders, .+, got a NoneType"),
    "four": (lambda: (1, 2, 3, 4), "must return two Datasets .+, got a tuple of 4"),
    "numbers": (lambda: (1, 2), "must return two Datasets .+, got a int and a int"),
    "mixed": (lambda: (floats()[0], DataLoader(floats()[1])), "got a TensorDataset and a DataLoader"),
    "iterable": (lambda: (Endless(), Endless()), "an IterableDataset needs a DataLoader around it"),
    "endless": (
        lambda: (DataLoader(Endless(), 4), DataLoader(Endless(), 4)),
        "the training loader of '.+' must have a length, an IterableDataset one as well: ",
    ),
    "raises": (lambda: {}["key"], "data factory '.+' has failed: KeyError: 'key'"),
    "empty": (lambda: (floats()[0], Subset(floats()[1], [])), "the test set of '.+' is empty"),
    "classless": (
        lambda: (Listed(IMAGES, [{}] * 20), floats()[1], 4),
        r"image '0 of the training set of '.+'' must have a whole number for a label, got {}",
    ),
    "no classes": (
        lambda: (ConcatDataset([Listed(IMAGES, LABELS.float()[:, None].long())]), floats()[1]),
        r"the classes of '.+' are not known: return \(train, test, classes\)",
    ),
    "one class": (lambda: (*floats(), 1), "must return as classes two or more names, or their number, got 1"),
    "few classes": (
        lambda: (*floats(), ["a", "b"]),
        "labels of the training samples of '.+' must be from 0 to 1, got 3",
    ),
    "other classes": (
        lambda: (Listed(IMAGES, LABELS, ["a", "b", "c", "d"]), Listed(IMAGES, LABELS, ["a", "c", "b", "d"])),
        "'.+' must have the same classes in 'train' and 'test', got them in another order",
    ),
    "other sizes": (
        lambda: (floats()[0], TensorDataset(IMAGES[:, :, 1:], LABELS)),
        r"images of '.+' must be of one size and type, got float32 \[2, 6, 5\] to train and float32 \[2, 5, 5\] to",
    ),
    "no pair": (
        lambda: (TensorDataset(IMAGES), floats()[1], 4),
        "a sample must be an image and a label, got a tuple of 1",
    ),
    "array": (
        lambda: (Listed(IMAGES.numpy(), LABELS), floats()[1]),
        r"image '0 of .+' must be a PIL image, or a tensor \[C, H, W\] of floats or uint8, got ndarray",
    ),
    "loader of pairs": (
        lambda: (DataLoader(TensorDataset(IMAGES), 4), DataLoader(floats()[1])),
        "the training loader of '.+' must give pairs of tensors, images and labels, got a list of 1",
    ),
    "loader of rows": (
        lambda: (DataLoader(TensorDataset(IMAGES[:, 0, 0], LABELS), 4), DataLoader(floats()[1])),
        r"the training loader of '.+' must give images \[B, C, H, W\] of floats or uint8, got float32 \[4, 5\]",
    ),
    "loader of shares": (
        lambda: (DataLoader(TensorDataset(IMAGES, LABELS.float()), 4), DataLoader(floats()[1])),
        r"the training loader of '.+' must give one whole number an image as labels, got float32 \[4\]",
    ),
    "larger batches": (
        lambda: (DataLoader(floats()[0], 6), DataLoader(floats()[1])),
        "batch_size is 4, but the training loader of '.+' gives batches of 6: let the factory take 'batch_size', or",
    ),
    "failing loader": (
        lambda: (DataLoader(Listed(IMAGES, LABELS, change=lambda x: x.missing), 4), DataLoader(floats()[1])),
        "the training loader of '.+' has failed: AttributeError: ",
    ),
}


def refused() -> Any:
    return REFUSED[CALLED["case"]][0]()


def build(factory: str, **options: Any) -> data.DataSet:
    return data.build(f"test_data_own:{factory}", **{"batch_size": 4, "seed": 7} | options)


def whole(batches: Iterator[data.Batch]) -> list[Tensor]:
    return [x for batch in batches for x in batch]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_tensors_of_floats_are_taken_as_they_are() -> None:
    samples = build("floats")
    assert (samples.name, samples.classes, samples.class_names) == ("test_data_own:floats", 4, ("0", "1", "2", "3"))
    assert (samples.in_channels, samples.image_size, samples.notes) == (2, (6, 5), ())
    assert (samples.train_count, samples.test_count, samples.steps_per_epoch) == (20, 7, 5)
    order = samples.share.train_order(20, 1)
    assert same(whole(samples.train_batches(1))[::2], list(IMAGES[order].split(4)))
    assert same(whole(samples.train_batches(1))[1::2], list(LABELS[order].split(4)))
    assert same(whole(samples.test_batches()), [IMAGES[:4] + 1, LABELS[:4], IMAGES[4:7] + 1, LABELS[4:7]])
    assert torch.equal(samples.test_images([5]).images, IMAGES[5:6] + 1)
    # the darkest value of an image is 0, the lightest 1
    shown = samples.denormalise(IMAGES)
    assert (shown.amin((1, 2, 3)) == 0).all()
    torch.testing.assert_close(shown.amax((1, 2, 3)), torch.ones(20))


def test_pixels_are_normalised_and_photos_are_scaled() -> None:
    samples = build("pixels")
    assert samples.class_names == ("a", "b", "c", "d")
    mean, std = (sum(values) / 3 for values in (MEAN, STD))
    level = pixels()[1].images[:4].float() / 255
    torch.testing.assert_close(samples.test_images(range(4)).images, (level - mean) / std)
    photos = build("photos", image_size=3)
    assert (photos.in_channels, photos.image_size, photos.classes) == (3, (3, 3), 4)
    assert next(photos.train_batches(0)).images.shape == (4, 3, 3, 3)
    assert not same(whole(photos.train_batches(0)), whole(photos.train_batches(1)))
    plain = build("photos", image_size=3, augment=False, batch_size=8)
    orders = [plain.share.train_order(8, epoch).argsort() for epoch in (0, 1)]
    first, second = (next(plain.train_batches(epoch)).images[order] for epoch, order in enumerate(orders))
    assert torch.equal(first, second)


def test_a_factory_is_given_what_it_takes() -> None:
    CALLED.clear()
    build("all_arguments", rank=1, world_size=2, workers=1)
    own = {"batch_size": 4, "seed": 7, "augment": True, "workers": 1, "download": False, "rank": 1, "world_size": 2}
    assert own == CALLED
    CALLED.clear()
    build("some_arguments", root="here")
    assert CALLED == {"root": "here", "batch_size": 4, "other": 3}


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("some_arguments", {}, "needs an argument 'root': give --data-root DIR"),
        ("jitter", {}, "needs an argument 'image', and can be given 'root', 'batch_size', 'image_size'"),
        ("floats", {"root": "x"}, "takes no argument 'root', which has no effect then: leave it out"),
        ("floats", {"download": True}, "takes no argument 'download', which has no effect then: leave it out"),
        ("floats", {"augment": False}, "takes no argument 'augment', and what it returns is not augmented here"),
        ("floats", {"image_size": 6}, "image_size is 6, but images of '.+' are 6 x 5: leave it out"),
        ("loaders", {"train_fraction": 0.5}, "train_fraction needs samples by number, and '.+' gives batches: leave"),
        ("loaders", {"skip_broken": True}, "skip_broken needs samples by number, and '.+' gives batches: leave it out"),
        ("loaders", {"batch_size": 2, "world_size": 2}, "gives each of 2 processes the same DataLoaders: let it take"),
        ("Float", {}, "'test_data_own' has no function 'Float'; the nearest are floats"),
    ],
)
def test_arguments_that_are_refused(factory: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build(factory, **options)
    assert "\n" not in str(error.value)


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"^no_such_module:make: the module 'no_such_module' cannot be imported"):
        data.build("no_such_module:make", batch_size=4)


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_factory_must_not_return(case: str) -> None:
    CALLED["case"] = case
    with pytest.raises(ValueError, match=REFUSED[case][1]) as error:
        build("refused")
    assert "\n" not in str(error.value)


def test_labels_that_are_known_without_reading() -> None:
    train = floats()[0]
    listed = Listed(IMAGES, LABELS.tolist())
    for samples, expected in (
        (train, LABELS),
        (Subset(train, [3, 1]), LABELS[[3, 1]]),
        (ConcatDataset([listed, train]), torch.cat([LABELS, LABELS])),
        (ConcatDataset([train, TensorDataset(IMAGES)]), None),
        (Listed(IMAGES, LABELS.numpy()), LABELS),
        (Listed(IMAGES, LABELS.tolist()[1:]), None),
        (Listed(IMAGES, LABELS.float()), None),
        (Listed(IMAGES, ["a"] * 20), None),
    ):
        found = labels_of(samples)
        assert found is expected if expected is None else found is not None and torch.equal(found, expected)
    # what they become is known to nobody
    listed.target_transform = lambda label: label + 1  # type: ignore[attr-defined]
    assert labels_of(listed) is None


def generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]


@pytest.mark.parametrize("factory", ["augmented", "loaders", "without_the_rest"])
def test_random_choices_repeat_and_leave_the_process_alone(factory: str) -> None:
    torch.manual_seed(1)
    before = generators()
    samples = build(factory)
    epoch = whole(samples.train_batches(1))
    assert samples.notes == ()
    whole(samples.test_batches())
    assert generators() == before
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(2)
    # in mid-epoch, in another process, with workers where the order is ours
    again = build(factory, workers=2 if factory == "augmented" else 0)
    assert same(whole(again.train_batches(1, start_step=2)), epoch[4:])
    assert same(whole(again.train_batches(1)), epoch)
    assert not same(whole(again.train_batches(0)), epoch)
    assert not same(whole(build(factory, seed=8).train_batches(1)), epoch)
    assert len(epoch) == 2 * samples.steps_per_epoch == 10


def test_loaders_with_workers_repeat_too() -> None:
    epoch = whole(build("loaders", workers=1).train_batches(1))
    assert same(whole(build("loaders", workers=1).train_batches(1, start_step=3)), epoch[6:])


def test_ranks_share_the_samples() -> None:
    ranks = [build("floats", batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    order = ranks[0].share.train_order
    assert ranks[0].steps_per_epoch == 5
    dealt = [torch.cat(whole(rank.train_batches(0))[::2]) for rank in ranks]
    whole_order = torch.stack([order(20, 0), ranks[1].share.train_order(20, 0)], 1).flatten()
    assert torch.equal(torch.stack(dealt, 1).flatten(0, 1), IMAGES[whole_order])


def test_what_does_not_repeat_says_so() -> None:
    (note,) = build("never_the_same").notes
    assert note.startswith(
        "images of the training set of 'test_data_own:never_the_same' are not the same when they are"
    )
    notes = build("lasting", workers=1).notes
    assert len(notes) == 1
    assert notes[0].startswith("the order of the training batches of 'test_data_own:lasting' is their loader's own")
    assert build("short", workers=1).notes[-1].startswith("--workers has no effect with the DataLoaders of")


def test_workers_that_stay_end_when_the_data_set_is_closed() -> None:
    before = set(multiprocessing.active_children())
    samples = build("lasting", workers=1)
    assert len(list(samples.train_batches(0))) == samples.steps_per_epoch
    assert len(set(multiprocessing.active_children()) - before) == 1
    samples.close()
    assert not set(multiprocessing.active_children()) - before
    # the next pass has workers of its own
    assert len(list(samples.train_batches(1))) == samples.steps_per_epoch
    samples.close()


def test_images_of_other_sizes_are_named_or_left_out() -> None:
    message = (
        "image '19 of the training set of 'test_data_own:one_of_another_size'' must be torch.float32 [2, 6, 5] as the "
        "first one, got torch.float32 [2, 5, 5]"
    )
    with pytest.raises(data.DataError, match=f"^{re.escape(message)}$"):
        whole(build("one_of_another_size").train_batches(0))
    samples = build("one_of_another_size", skip_broken=True)
    assert sum(len(labels) for labels in whole(samples.train_batches(0))[1::2]) == 19
    assert len(samples.broken.reasons) == 1


def test_a_loader_that_ends_early() -> None:
    samples = build("short")
    assert samples.steps_per_epoch == 7
    message = "the training loader of 'test_data_own:short' ended before its 7 batches, after 5"
    with pytest.raises(data.DataError, match=message):
        whole(samples.train_batches(0))
    with pytest.raises(data.DataError, match=r"the test loader of '.+' has no image 6, it ended after 4"):
        samples.test_images([0, 6])


def test_batches_of_loaders() -> None:
    samples = build("loaders")
    assert isinstance(samples.last_batch, int)
    assert (samples.train_count, samples.test_count, samples.classes, samples.last_batch) == (20, 7, 4, 4)
    assert build("loaders", batch_size=3).last_batch == 2
    assert build("without_the_rest", batch_size=3).last_batch == 3
    assert same(whole(samples.test_batches())[::2], [IMAGES[:3] + 1, IMAGES[3:6] + 1, IMAGES[6:7] + 1])
    chosen = samples.test_images([6, 0])
    assert torch.equal(chosen.images, IMAGES[[6, 0]] + 1)
    assert torch.equal(chosen.labels, LABELS[[6, 0]])
