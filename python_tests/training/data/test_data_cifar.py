"""CIFAR-100's two official formats, and files that are not what they should be."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_files import CLASS_NAMES, cifar_split, write_cifar_binary, write_cifar_python

from semckd_kernels.training import data
from semckd_kernels.training.data import cifar, unpickle

TRAIN, TEST = cifar_split(200, seed=0), cifar_split(100, seed=1)
WRITERS = {"python": write_cifar_python, "binary": write_cifar_binary}


@pytest.mark.parametrize("inside", [False, True], ids=["parent", "folder itself"])
@pytest.mark.parametrize("form", WRITERS)
def test_both_formats_and_both_roots_give_what_was_written(form: str, inside: bool, tmp_path: Path) -> None:
    folder = WRITERS[form](tmp_path, TRAIN, TEST)
    train, test, names = cifar.read(folder if inside else tmp_path)
    assert names == CLASS_NAMES
    for found, written in ((train, TRAIN), (test, TEST)):
        assert (found.images.dtype, found.labels.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(found.images, written.images)
        assert torch.equal(found.labels, written.labels)


def test_both_formats_give_the_same_batches(tmp_path: Path) -> None:
    sets = []
    for form, write in WRITERS.items():
        write(tmp_path / form, TRAIN, TEST)
        sets.append(data.build("cifar100", root=tmp_path / form, batch_size=64, seed=1))
    for one, other in zip(sets[0].train_batches(0), sets[1].train_batches(0), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_the_set_as_a_whole(tmp_path: Path) -> None:
    write_cifar_python(tmp_path, TRAIN, TEST)
    samples = data.build("cifar100", root=str(tmp_path), batch_size=64)
    assert (samples.name, samples.classes, samples.in_channels, samples.image_size) == ("cifar100", 100, 3, (32, 32))
    assert (samples.train_count, samples.test_count, samples.steps_per_epoch) == (200, 100, 4)
    assert samples.class_names == tuple(CLASS_NAMES)
    (images, labels), *_ = samples.test_batches()
    mean, std = torch.tensor(cifar.MEAN)[:, None, None], torch.tensor(cifar.STD)[:, None, None]
    torch.testing.assert_close(images, (TEST.images[:64] / 255 - mean) / std, rtol=0, atol=2e-6)
    assert torch.equal(labels, TEST.labels[:64])
    # augmented, or not if not asked for
    plain = data.build("cifar100", root=tmp_path, batch_size=200, augment=False)
    expected = (TRAIN.images / 255 - mean) / std
    order = plain.share.train_order(200, 0).argsort()
    torch.testing.assert_close(next(plain.train_batches(0)).images[order], expected, rtol=0, atol=2e-6)
    augmented = data.build("cifar100", root=tmp_path, batch_size=200)
    same = (next(augmented.train_batches(0)).images[order] - expected).abs().flatten(1).amax(1) < 1e-5
    assert same.sum() < 10


def test_files_that_python_2_wrote(tmp_path: Path) -> None:
    # what pickle.dumps({"data": zeros(2, uint8), "fine_labels": [1, 2]}, 2) is in Python 2: texts as bytes
    written = (
        b"\x80\x02}q\x01(U\x0bfine_labelsq\x02]q\x03(K\x01K\x02eU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\n"
        b"q\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01K\x02\x85cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87"
        b"Rq\t(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x00\xfftbu."
    )
    (tmp_path / "train").write_bytes(written)
    content = unpickle.load(tmp_path / "train")
    assert content["fine_labels"] == [1, 2]
    assert content["data"].tolist() == [0, 255]
    assert content["data"].dtype == np.uint8


class Evil:
    """A pickle that calls something."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_pickle_that_calls_something_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_cifar_python(tmp_path, TRAIN, TEST)
    victim = tmp_path / "made"
    content = {"data": Evil(Path.mkdir, victim), "fine_labels": [], "fine_label_names": []}
    (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"it asks for '.*', which data does not need") as refused:
        data.build("cifar100", root=tmp_path, batch_size=8)
    assert str(folder / name) in str(refused.value)
    assert not victim.exists()
    # it would have done so
    pickle.loads((folder / name).read_bytes())
    assert victim.exists()


@pytest.mark.parametrize("evil", [Evil(eval, "1"), Evil(getattr, "", "join"), Evil(np.load, "x"), Evil(exec, "")])
def test_other_names_are_refused(evil: Evil, tmp_path: Path) -> None:
    for protocol in range(6):
        (tmp_path / "train").write_bytes(pickle.dumps([evil], protocol=protocol))
        with pytest.raises(ValueError, match="which data does not need"):
            unpickle.load(tmp_path / "train")


class Made:
    """Pickled as a call, and a state for what it gives."""

    def __init__(self, function: Any, arguments: Any, state: Any) -> None:
        self.values = function, arguments, state

    def __reduce__(self) -> Any:
        return self.values


@pytest.mark.parametrize(
    ("name", "state"),
    [
        # bytes of the file as a pointer to an object: numpy crashes, or worse, where an element is looked at
        ("V8", (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)),
        ("u1", (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 63)),
        ("O", (3, "|", None, None, None, -1, -1, 63)),
        ("V1048576", (3, "|", None, None, None, 1 << 20, 1, 0)),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(name: str, state: Any, tmp_path: Path) -> None:
    reconstruct, arguments, _ = np.zeros(1).__reduce__()
    array = Made(reconstruct, arguments, (1, (1,), Made(np.dtype, (name, False, True), state), False, b"A" * 8))
    (tmp_path / "train").write_bytes(pickle.dumps(array, protocol=2))
    with pytest.raises(ValueError, match="cannot be read as a pickle of arrays: it has an array"):
        unpickle.load(tmp_path / "train")


def change(folder: Path, name: str, **values: Any) -> None:
    content = pickle.loads((folder / name).read_bytes()) | values
    (folder / name).write_bytes(pickle.dumps({k: v for k, v in content.items() if v is not None}, protocol=2))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("train", {"data": None}, "train' must hold 'data', got ['batch_label', 'coarse_labels', 'filenames', 'fine"),
        ("test", {"data": [1]}, "'data' of '{folder}/test' must be uint8 [N, 3072], got list"),
        ("train", {"data": np.zeros((2, 9), np.uint8)}, "train' must be uint8 [N, 3072], got uint8 [2, 9]"),
        ("train", {"data": np.zeros((2, 3072))}, "train' must be uint8 [N, 3072], got float64 [2, 3072]"),
        ("train", {"fine_labels": [1]}, "train' must hold one label an image, got 200 images and labels [1]"),
        ("train", {"fine_labels": [100] * 200}, "fine labels of '{folder}/train' must be from 0 to 99, got 100"),
        ("train", {"fine_labels": [-1] * 200}, "must be from 0 to 99, got -1"),
        ("test", {"fine_labels": ["x"]}, "'fine_labels' of '{folder}/test' must be whole numbers"),
        ("meta", {"fine_label_names": ["a"]}, "'{folder}/meta' must name 100 classes, got 1"),
        ("meta", {"fine_label_names": 3}, "'{folder}/meta' must hold a list of names, got int"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 10 else "",
)
def test_wrong_contents(name: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_cifar_python(tmp_path, TRAIN, TEST)
    change(folder, name, **values)
    with pytest.raises(ValueError, match=re.escape(message.format(folder=folder))) as refused:
        cifar.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_files_cut_short(tmp_path: Path) -> None:
    folder = write_cifar_python(tmp_path, TRAIN, TEST)
    (folder / "test").write_bytes((folder / "test").read_bytes()[:-500])
    with pytest.raises(ValueError, match=f"'{folder / 'test'}' cannot be read as a pickle of arrays: "):
        cifar.read(folder)
    folder = write_cifar_binary(tmp_path, TRAIN, TEST)
    for content in (b"", (folder / "test.bin").read_bytes()[:-500]):
        (folder / "test.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"test\.bin' must hold (records of 3074 bytes|one label an image)"):
            cifar.read(folder)


@pytest.mark.parametrize("made", ["nothing", "empty folder", "half"])
def test_missing_files(made: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    if made != "nothing":
        root.mkdir()
    if made == "half":
        (write_cifar_python(root, TRAIN, TEST) / "meta").unlink()
    with pytest.raises(FileNotFoundError) as refused:
        data.build("cifar100", root=root, batch_size=8)
    message = str(refused.value)
    for part in (f"'{root}'", "'cifar-100-python' with train, test, meta", "'cifar-100-binary'", "ask for download"):
        assert part in message
    assert "\n" not in message
    # nothing is made, and nothing fetched
    assert root.exists() == (made != "nothing")


def test_downloads_only_when_asked_and_where_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(root: str, download: bool) -> None:
        asked.append((root, download))
        write_cifar_python(Path(root), TRAIN, TEST)

    monkeypatch.setattr("torchvision.datasets.CIFAR100", fetch)
    with pytest.raises(FileNotFoundError):
        data.build("cifar100", root=tmp_path, batch_size=8)
    assert asked == []
    for _ in range(2):
        assert data.build("cifar100", root=tmp_path, batch_size=8, download=True).train_count == 200
    assert asked == [(str(tmp_path), True)]


def test_a_download_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, download: bool) -> None:
        raise OSError("<urlopen error no network>\nand more")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", fetch)
    message = f"CIFAR-100 cannot be downloaded to '{tmp_path}': <urlopen error no network>"
    with pytest.raises(ConnectionError, match=f"^{re.escape(message)}$"):
        data.build("cifar100", root=tmp_path, batch_size=8, download=True)
