"""timm's data sets: folders, tar files, torchvision's, Hugging Face's and webdataset's, each written here."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_files import write_image_folders

from semckd_kernels.training import data

pytest.importorskip("timm")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
NAMES = ("n00000000", "n00000001", "n00000002")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images; beside them the same as tar files, as parquet files and as shards of webdataset."""
    root = write_image_folders(tmp_path_factory.mktemp("images"), train=4, val=2)
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            tar.add(root / split, ".")
    return root


def build(name: str, root: Path | None, **options: Any) -> data.DataSet:
    return data.build(name, root=root, **{"batch_size": 4, "seed": 7, "image_size": 16} | options)


def whole(samples: data.DataSet, epoch: int = 1, start_step: int = 0) -> list[torch.Tensor]:
    return [x for batch in samples.train_batches(epoch, start_step) for x in batch]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["folder", "timm:folder", "timm:tar"])
def test_files_are_those_of_our_own_folders(name: str, root: Path) -> None:
    ours, samples = build("imagenet", root), build(name, root, workers=1 if name == "timm:tar" else 0)
    assert (samples.name, samples.class_names, samples.image_size) == (name, NAMES, (16, 16))
    assert same(whole(samples), whole(ours))
    assert same([x for b in samples.test_batches() for x in b], [x for b in ours.test_batches() for x in b])
    assert same(whole(samples, start_step=2), whole(ours)[4:])
    few = build(name, root, train_fraction=0.5, label_noise=0.5)
    assert same(whole(few), whole(build("imagenet", root, train_fraction=0.5, label_noise=0.5)))
    # nothing is written beside the files of others
    assert sorted(path.name for path in root.iterdir()) == ["train", "train.tar", "val", "val.tar"]


def test_a_broken_file_is_named_and_not_replaced(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    broken = copy / "train" / NAMES[1] / "2.JPEG"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(data.DataError, match=f"^image '{re.escape(str(broken))}' cannot be decoded: "):
        whole(build("timm:folder", copy))
    assert len(torch.cat(whole(build("timm:folder", copy, skip_broken=True))[1::2])) == 11


def test_folders_by_any_name(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    expected = whole(build("folder", root))
    for name in ("test", "validation", "valid"):
        next(path for path in copy.iterdir() if path.is_dir() and path.name != "train").rename(copy / name)
        for file in copy.glob("*/*/*.JPEG"):
            file.rename(file.with_suffix(".jpg"))
        assert same(whole(build("folder", copy)), expected)
        assert build("timm:folder", copy).test_count == 6


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("timm:", "", "data 'timm:' must be one of timm:folder, timm:tar, timm:torch/NAME, timm:hfds/NAME"),
        ("timm:torch", "", "data 'timm:torch' must be one of"),
        ("timm:folder/x", "", "data 'timm:folder/x' must be one of"),
        ("timm:folder", None, "root must be the folder of 'timm:folder', got None"),
        ("timm:folder", "nowhere", "there is no folder '.+/nowhere'"),
        ("timm:folder", "train", "there is no '.+/train/train': root must hold train and val .+ as folders"),
        ("timm:tar", "train", "there is no '.+/train/train.tar': root must hold train and val .+ as tar files"),
        (
            "timm:torch/nothing",
            "",
            "data 'timm:torch/nothing' cannot be read: AssertionError: Unknown torchvision dataset",
        ),
        ("timm:torch/mnist", "", "data 'timm:torch/mnist' cannot be read: RuntimeError: Dataset not found"),
    ],
)
def test_what_is_refused(name: str, place: str | None, message: str, root: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        build(name, None if place is None else root / place)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(find_spec("tensorflow_datasets") is not None, reason="tensorflow_datasets is installed")
def test_a_package_that_is_missing(root: Path) -> None:
    message = "data 'timm:tfds/x' needs tensorflow_datasets, which is not installed: run pip install"
    with pytest.raises(ValueError, match=f"^{message}"):
        build("timm:tfds/x", root)


def test_download_of_files(root: Path) -> None:
    with pytest.raises(ValueError, match="download is for data that others keep, got it for 'timm:tar'"):
        build("timm:tar", root, download=True)


def test_torchvisions(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    # without the files there is nothing, and nothing is fetched
    with pytest.raises(ValueError, match="cannot be read: RuntimeError: Dataset not found or corrupted"):
        build("timm:torch/cifar10", tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 20), ("t10k", 8)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = np.array([0x803, count, 28, 28], ">i4").tobytes(), np.array([0x801, count], ">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head[0] + pixels.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(head[1] + bytes(n % 10 for n in range(count)))
    samples = build("timm:torch/mnist", tmp_path, train_fraction=0.5)
    assert (samples.train_count, samples.test_count, samples.classes, samples.in_channels) == (10, 8, 10, 3)
    assert samples.class_names[3] == "3 - three"
    assert [len(x) for x in whole(samples)[1::2]] == [4, 4, 2]


@pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed")
def test_hugging_faces(root: Path, tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    for split, name in (("train", "train"), ("val", "test")):
        files = sorted((root / split).glob("*/*.JPEG"))
        values = {"image": [str(file) for file in files], "label": [NAMES.index(file.parent.name) for file in files]}
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(values, features=features).to_parquet(tmp_path / "data" / f"{name}.parquet")
    samples = build(f"timm:hfds/{tmp_path / 'data'}", tmp_path / "cache")
    assert samples.class_names == NAMES
    ours = build("imagenet", root)
    assert same(whole(samples), whole(ours))
    assert samples.test_count == 6
    # what is not on this machine is not looked for elsewhere
    with pytest.raises(ValueError, match="data 'timm:hfds/nobody/nothing' cannot be read: "):
        build("timm:hfds/nobody/nothing", tmp_path / "cache")
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.skipif(find_spec("webdataset") is None, reason="webdataset is not installed")
def test_webdatasets(root: Path, tmp_path: Path) -> None:
    splits = {}
    for split, name in (("train", "train"), ("val", "validation")):
        files = sorted((root / split).glob("*/*.JPEG"))
        with tarfile.open(tmp_path / f"{name}-0.tar", "w") as tar:
            for n, file in enumerate(files):
                label = str(NAMES.index(file.parent.name)).encode()
                for ending, content in (("jpg", file.read_bytes()), ("cls", label)):
                    member = tarfile.TarInfo(f"{n:04d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        splits[name] = {
            "name": name,
            "num_samples": len(files),
            "filenames": [f"{name}-0.tar"],
            "shard_lengths": [len(files)],
        }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(ValueError, match=r"the classes of 'timm:wds' are not known: 'classes.txt' in the folder"):
        build("timm:wds", tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    samples = build("timm:wds", tmp_path)
    assert (samples.class_names, samples.train_count, samples.test_count) == (NAMES, 12, 6)
    assert samples.steps_per_epoch == 3
    assert samples.notes[0].startswith("the order of the training batches of 'timm:wds' is their loader's own")
    assert samples.last_batch is None
    epoch = whole(samples)
    assert sorted(torch.cat(epoch[1::2]).tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert len(whole(samples, 0, 1)) == 4
    ours = build("imagenet", root)
    labels = [label for _, found in samples.test_batches() for label in found.tolist()]
    assert labels == [label for _, found in ours.test_batches() for label in found.tolist()]
    # normalised alike, but for the last bits of another resize
    assert (samples.test_images([3]).images - ours.test_images([3]).images).abs().mean() < 0.2
    with pytest.raises(ValueError, match="label_noise needs samples by number, and 'timm:wds' gives batches"):
        build("timm:wds", tmp_path, label_noise=0.1)


def test_images_of_files_are_closed(root: Path) -> None:
    """A folder of a million images must not run out of files."""
    samples = build("timm:folder", root)
    with pytest.MonkeyPatch.context() as patch:
        opened: list[Any] = []

        def opening(*args: Any) -> Any:
            opened.append(open(*args))  # noqa: SIM115 (which is what is tested)
            return opened[-1]

        patch.setattr("timm.data.readers.reader_image_folder.open", opening, raising=False)
        whole(samples)
    assert len(opened) == 12
    assert all(file.closed for file in opened)
