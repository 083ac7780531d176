"""timm's data sets, ``timm:NAME``: folders, tar files, torchvision's, Hugging Face's, webdataset's, TensorFlow's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...install import pip_install
from ..errors import typed_line
from . import folders
from .base import AsGiven, DataSet
from .folders import check_same_classes
from .indexed import MEAN, STD, Indexed, Pair, image_size, image_transforms
from .loader import leave_signals
from .options import Options
from .sources import Source
from .streams import Loaders, Streamed, check_options
from .torch_sets import Samples, class_names_of

PREFIX = "timm:"
FORMS = "timm:folder, timm:tar, timm:torch/NAME, timm:hfds/NAME, timm:hfids/NAME, timm:tfds/NAME or timm:wds"
# files below root; names of others' data follow a slash
FILES, NAMED = ("folder", "tar", "wds"), ("torch", "hfds", "hfids", "tfds")
STREAMED = ("wds", "hfids", "tfds")
HUGGING_FACE = ("hfds", "hfids")
PACKAGES = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset", "tfds": "tensorflow_datasets"}
# of the test samples, the first that is there
TEST = ("validation", "val", "test")
# names of classes in the order of labels, where a data set does not know them
CLASSES_FILE = "classes.txt"


def load(name: str, options: Options) -> DataSet:
    """A data set of timm's ``create_dataset``.

    * ``folder`` (``train/CLASS/``, ``val/CLASS/``) and ``tar`` (``train.tar``, ``val.tar``, with folders in them), with
      classes in timm's order, ``torch/NAME`` and ``hfds/NAME`` have samples by number: they are read, augmented and
      ordered as image folders are.
    * ``wds`` (webdataset, with timm's ``_info.json``), ``hfids/NAME`` and ``tfds/NAME`` are streams: timm's
      ``create_loader`` orders and augments them.

    Raises:
        ValueError, OSError: timm or what it needs is not installed, the name is none, or there is no such data.
    """
    kind, _, rest = name.removeprefix(PREFIX).partition("/")
    if kind not in (*FILES, *NAMED) or bool(rest) != (kind in NAMED):
        raise ValueError(f"data '{name}' must be one of {FORMS}")
    for package in ("timm", PACKAGES.get(kind, "timm")):
        if find_spec(package) is None:
            raise ValueError(f"data '{name}' needs {package}, which is not installed: run {pip_install(package)}")
    root = options.root
    if root is None and kind not in HUGGING_FACE:
        raise ValueError(f"root must be the folder of '{name}', got None")
    if root is not None and kind in FILES and not root.is_dir():
        raise FileNotFoundError(f"there is no folder '{root}'")
    if options.download and kind in FILES:
        raise ValueError(f"download is for data that others keep, got it for '{name}'")
    return (_streamed if kind in STREAMED else _indexed)(name, kind, options)


class Reader:
    """Files of a timm reader: a :class:`.Source`. timm's own data set takes another sample in place of a broken one."""

    def __init__(self, reader: Any, labels: Any) -> None:
        self.reader = reader
        self.labels = torch.as_tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> tuple[Any, Any]:
        file, label, *_ = self.reader[index]
        with file, Image.open(file) as image:
            return image.convert("RGB"), int(label)

    def where(self, index: int) -> str:
        return str(self.reader.filename(index, absolute=True))


def _indexed(name: str, kind: str, options: Options) -> Indexed:
    (train, classes), (test, test_classes) = (_source(name, kind, training, options) for training in (True, False))
    check_same_classes(classes, test_classes, f"'{name}'", ("train", "test"))
    size = image_size(options)
    transforms = image_transforms(size, options.augment)
    return Indexed(name, classes, Pair(train, test), transforms, (3, size, size), options)


def _source(name: str, kind: str, training: bool, options: Options) -> tuple[Source, list[str]]:
    """Samples by number, and their classes in the order of their labels."""
    root = options.root
    if kind in FILES:
        assert root is not None
        place = _place(root, kind, training)
        # a cache of a tar's contents would be a pickle beside it, and an open file be shared by workers
        more = {"cache_tarinfo": False, "cache_tarfiles": False} if kind == "tar" else {}
        reader = _made(name, options, "", root=str(place), search_split=False, **more).reader
        labels = reader.targets if kind == "tar" else [label for _, label in reader.samples]
        return Reader(reader, labels), _in_order(reader.class_name_to_idx if kind == "tar" else reader.class_to_idx)
    made = _split(name, training, options)
    what = f"the {'training' if training else 'test'} set of '{name}'"
    source: Source
    if kind == "torch":
        source, classes = Samples(made, what), class_names_of(made)
    else:
        reader = made.reader
        column = reader.dataset.select_columns(reader.label_key).with_format("numpy")
        source, classes = Reader(reader, column[:][reader.label_key]), _in_order(reader.class_to_idx)
    if not classes:
        raise ValueError(f"the classes of {what} are not known: it must name them")
    return source, classes


def _place(root: Path, kind: str, training: bool) -> Path:
    """The folder or the tar file of training or test images."""
    if kind == "folder":
        found = root / (folders.TRAIN if training else folders.find_test(root))
    else:
        names = (folders.TRAIN,) if training else folders.TEST
        found = next(
            (root / f"{name}.tar" for name in names if (root / f"{name}.tar").is_file()), root / f"{names[0]}.tar"
        )
    if not found.exists():
        raise FileNotFoundError(
            f"there is no '{found}': root must hold train and val (or valid, validation, test), as "
            f"{'folders with a folder a class' if kind == 'folder' else 'tar files with a folder a class in them'}"
        )
    return found


def _streamed(name: str, kind: str, options: Options) -> Streamed:
    from timm.data.loader import create_loader

    share, size = options.share, image_size(options)
    check_options(name, options)
    more: dict[str, Any] = {"batch_size": share.batch_size, "seed": share.seed % 2**31}
    train, test = (_split(name, training, options, is_training=training, **more) for training in (True, False))
    # random parts and mirror images alone, as elsewhere
    looks: dict[str, Any] = {"no_aug": not options.augment, "color_jitter": None, "mean": MEAN, "std": STD}
    work: dict[str, Any] = {"use_prefetcher": False, "num_workers": options.workers, "persistent_workers": False}
    loaders = [
        create_loader(dataset, (3, size, size), share.batch_size, is_training=dataset is train, **looks, **work)
        for dataset in (train, test)
    ]
    for loader in loaders:
        leave_signals(loader)
    normaliser = AsGiven(options.device, MEAN, STD)
    names = _stream_classes(name, train.reader, options)
    # theirs are of one process
    counts = share.world_size * len(train), share.world_size * len(test)
    return Streamed(name, names, Loaders(*loaders), (3, size, size), counts, normaliser, options)


def _stream_classes(name: str, reader: Any, options: Options) -> list[str]:
    if named := getattr(reader, "class_to_idx", None):
        return _in_order(named)
    path = None if options.root is None else options.root / CLASSES_FILE
    if path is None or not path.is_file():
        raise ValueError(
            f"the classes of '{name}' are not known: '{CLASSES_FILE}' in the folder of its files must name them, one a "
            "line in the order of the labels"
        )
    return path.read_text().splitlines()


def _in_order(numbers: dict[str, int]) -> list[str]:
    return [str(name) for name in sorted(numbers, key=lambda name: numbers[name])]


def _split(name: str, training: bool, options: Options, **more: Any) -> Any:
    """Training or test samples of a data set that names its splits: timm's data set."""
    names = ("train",) if training else TEST
    problem = None
    for split in names:
        try:
            return _made(name, options, name.removeprefix(PREFIX), split=split, **more)
        except ValueError as error:
            # another name may be there
            problem = problem or error
            if "split" not in str(error).lower():
                break
    assert problem is not None
    raise problem


def _made(name: str, options: Options, timm_name: str, **more: Any) -> Any:
    """timm's ``create_dataset``, which fetches nothing unless it is asked to.

    Raises:
        ValueError: it fails, in one sentence.
    """
    from timm.data.dataset_factory import create_dataset

    root = None if options.root is None else str(options.root)
    wanted: dict[str, Any] = {"root": root, "download": options.download, **more}
    try:
        with _offline(not options.download and timm_name.startswith(HUGGING_FACE)):
            return create_dataset("wds/" if timm_name == "wds" else timm_name, **wanted)
    # it raises what a dozen libraries do
    except (Exception, SystemExit) as error:
        raise ValueError(f"data '{name}' cannot be read: {typed_line(error)}") from error


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Hugging Face's libraries take what is on this machine, and ask nobody, where it is ``wanted``."""
    if not wanted:
        yield
        return
    import datasets.config
    import huggingface_hub.constants

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
