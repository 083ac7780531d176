"""From a configuration to everything that a run needs, checked before any work starts and any file is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from . import data as data_sets
from . import methods, models, named_code
from .config import ModelConfig, TrainConfig
from .distributed import Ranks
from .errors import first_line
from .models import FeatureNet
from .process import set_precision

# BatchNorm needs more than one value a channel
LEAST_VALUES = 2


Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Setup:
    """What a run trains with; networks, criterion and batches are on ``device``."""

    config: TrainConfig
    ranks: Ranks
    device: torch.device
    data: data_sets.DataSet
    student: FeatureNet
    teacher: FeatureNet | None
    # as it was before it was prepared
    teacher_parameters: int
    criterion: methods.Criterion
    # of the maps, without the batch: [c, h, w] or [N, c]
    student_shapes: list[torch.Size]
    teacher_shapes: list[torch.Size]

    def images(self, images: Tensor) -> Tensor:
        """Images in the memory format of the networks."""
        return images.contiguous(memory_format=torch.channels_last) if self.config.hardware.channels_last else images


def check_device(name: str) -> None:
    """Raises ValueError where a device does not exist or cannot be used."""
    try:
        torch.ones(1, device=name).item()
    except Exception as error:
        # torch raises half a dozen types here, with a sentence first and pages of hints behind it
        raise ValueError(f"device '{name}' cannot be used: {first_line(error)}") from error


def prepare(config: TrainConfig, ranks: Ranks | None = None, training: bool = True) -> Setup:
    """Builds and checks data, networks and criterion; nothing is written.

    Args:
        config: of the run.
        ranks: the processes; this one alone unless given.
        training: whether batches must be fit to train with.

    Raises:
        ValueError, OSError: something does not exist or does not fit; the message says what in one sentence.
    """
    ranks = ranks or Ranks()
    check_device(config.hardware.device)
    device = ranks.device(config.hardware.device)
    if device.type == "cuda":
        # streams, events and random generators are those of the current device
        torch.cuda.set_device(device)
    set_precision(config.hardware)
    data = build_data(config, device, ranks)
    student = build_network(config.student, config, data, device)
    teacher, teacher_parameters = None, 0
    if config.teacher is not None:
        teacher = build_network(config.teacher, config, data, device).eval().requires_grad_(False)
        teacher_parameters = sum(p.numel() for p in teacher.parameters())
        if config.hardware.prepare_teacher and not config.method.record.keeps_teacher:
            teacher.prepare()
    shapes = [_map_shapes(net, data, device) if net is not None else [] for net in (student, teacher)]
    torch.manual_seed(config.recipe.seed)
    criterion = methods.build(config.method, config.recipe.batch_size, *shapes)
    criterion = _placed(criterion, config, device)
    setup = Setup(config, ranks, device, data, student, teacher, teacher_parameters, criterion, *shapes)
    if training:
        _check_batches(setup)
    _check_criterion(setup)
    # of what draws random numbers in training, such as dropout: different numbers in every process
    torch.manual_seed(config.recipe.seed + ranks.rank)
    return setup


def build_data(config: TrainConfig, device: torch.device, ranks: Ranks) -> data_sets.DataSet:
    """This process's share of the data set.

    Raises:
        ValueError, OSError: as ``data.build`` does; or its name is code that is not allowed (``named_code``).
    """
    options = config.data
    if data_sets.is_code(options.name):
        named_code.check(options.name)
    return data_sets.build(
        options.name,
        root=options.root,
        batch_size=config.recipe.batch_size,
        device=device,
        seed=config.recipe.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        workers=options.workers,
        download=options.download,
        image_size=options.image_size,
        augment=options.augment,
        skip_broken=options.skip_broken,
        train_fraction=options.train_fraction,
        label_noise=options.label_noise,
    )


def build_network(
    options: ModelConfig,
    config: TrainConfig,
    data: data_sets.DataSet | data_sets.Images,
    device: torch.device,
    weights: bool = True,
) -> FeatureNet:
    """A network for a data set; its fresh parameters depend on its name and the seed only.

    Args:
        weights: whether to read the file or run that ``options.weights`` names.

    Raises:
        ValueError, OSError: as ``models.build`` and ``models.load_weights`` do; ``options.name`` is code that is not
            allowed (``named_code``).
    """
    named_code.check(options.name)
    net = models.build(
        options.name,
        classes=data.classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        layers=options.layers,
        pretrained=options.pretrained and weights,
        seed=config.recipe.seed,
    )
    if options.weights is not None and weights:
        models.load_weights(net, weights_file(options.weights), options.name)
    return _placed(net, config, device)


def weights_file(name: str) -> Path:
    """The file behind a file's name, or behind that of a run: its best checkpoint.

    Raises:
        ValueError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    for candidate in (path / "checkpoints" / "best.pt", path / "checkpoints" / "last.pt"):
        if candidate.is_file():
            return candidate
    what = "a folder without checkpoints/best.pt" if path.is_dir() else "neither a file nor the folder of a run"
    raise ValueError(f"weights '{name}': {what}")


def _placed(module: Module, config: TrainConfig, device: torch.device) -> Module:
    """All modules of a run have one memory format, so that no operation has to convert."""
    if config.hardware.channels_last:
        module = module.to(memory_format=torch.channels_last)
    return module.to(device)


def _map_shapes(net: FeatureNet, data: data_sets.DataSet, device: torch.device) -> list[torch.Size]:
    return net.map_shapes(torch.zeros(1, data.in_channels, *data.image_size, device=device))


def _check_batches(setup: Setup) -> None:
    """A last batch that BatchNorm can normalise, and updates of as many steps as they say they have."""
    steps, accumulate = setup.data.steps_per_epoch, setup.config.recipe.accumulate
    if accumulate > steps:
        raise ValueError(f"accumulate must be at most {steps}, the number of steps of an epoch, got {accumulate}")
    batch_size, count = setup.config.recipe.batch_size, setup.data.train_count
    share = -(-count // setup.ranks.world_size)
    last = setup.data.last_batch
    if last is None or last >= LEAST_VALUES or (name := _needs_several_images(setup)) is None:
        return
    # the nearest: every smaller one is worth a try, and then the larger ones
    sizes = [*range(batch_size - 1, LEAST_VALUES - 1, -1), *range(batch_size + 1, share + 1)]
    other = next((f", such as {n}" for n in sizes if _last_batch(share, n) >= LEAST_VALUES), "")
    raise ValueError(
        f"batch_size {batch_size} leaves 1 image for the last batch of an epoch, but {name} sees one value a channel "
        f"of each image and needs more than one to train: give another --batch-size{other}"
    )


def _last_batch(share: int, batch_size: int) -> int:
    return share - (-(-share // batch_size) - 1) * batch_size


@torch.no_grad()
def _needs_several_images(setup: Setup) -> str | None:
    """A BatchNorm that uses the statistics of its batch, and gets one value a channel of each image."""
    if setup.criterion.attention is not None:
        for shape in (*setup.student_shapes, *setup.teacher_shapes):
            if shape[1:] == (1, 1):
                return "BatchNorm of the projections, behind maps of 1 x 1,"
    student, found = setup.student, list[str]()
    norms = {
        name: module
        for name, module in student.net.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and (module.training or module.running_mean is None)
        # its statistics are those of all processes
        and not (isinstance(module, nn.SyncBatchNorm) and setup.ranks.world_size > 1)
    }

    def look(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and inputs[0].numel() == inputs[0].shape[1]:
            found.append(f"the student's {type(module).__name__} '{name}'")

    hooks = [module.register_forward_pre_hook(partial(look, name)) for name, module in norms.items()]
    try:
        # one image in evaluation mode, which changes nothing
        student.map_shapes(torch.zeros(1, setup.data.in_channels, *setup.data.image_size, device=setup.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


@torch.no_grad()
def _check_criterion(setup: Setup) -> None:
    """One evaluation of everything on blank images, which changes nothing.

    Raises:
        ValueError: maps, backend or type do not fit the criterion.
    """
    data = setup.data
    images = torch.zeros(
        min(2, setup.config.recipe.batch_size), data.in_channels, *data.image_size, device=setup.device
    )
    modules = [m for m in (setup.student, setup.teacher, setup.criterion) if m is not None]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        labels = torch.zeros(len(images), dtype=torch.int64, device=setup.device)
        student = setup.student(images)
        if student.logits.shape != (len(images), data.classes):
            raise ValueError(
                f"student '{setup.config.student.name}' must give logits for {data.classes} classes, got "
                f"{list(student.logits.shape)}"
            )
        teacher = setup.teacher(images) if setup.teacher is not None else None
        if teacher is not None and teacher.logits.shape != student.logits.shape:
            raise ValueError(f"teacher must give logits for {data.classes} classes, got {list(teacher.logits.shape)}")
        setup.criterion(student, teacher, labels)
    except (RuntimeError, TypeError) as error:
        # such as a backend that cannot serve these maps
        raise ValueError(first_line(error)) from error
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
