"""The paper's recipes by name, and the one of the demo.

Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021: CIFAR-100 trains 240 epochs in batches of
64 with a learning rate of 0.05 (0.01 for MobileNetV2 and the ShuffleNets), divided by ten after epochs 150, 180 and
210, weight decay 5e-4, beta 400; ImageNet 90 epochs in batches of 256 over all GPUs, 0.1, divided by ten after epochs
30 and 60, weight decay 1e-4, beta 50. KD's temperature is 4 and both weights are 1.
"""

from __future__ import annotations

from .config import DataConfig, HardwareConfig, LoggingConfig, ModelConfig, RecipeConfig, TrainConfig
from .methods import MethodConfig

NAMES = ("digits", "cifar100", "imagenet")
# beginnings of names of the networks that need a smaller learning rate
SMALL_LR_NETWORKS = ("mobile", "shuffle")
IMAGENET_BATCH = 256


def preset(name: str, student: str, world_size: int = 1, batch_size: int | None = None) -> TrainConfig:
    """The recipe of a data set for a student trained alone; method and teacher are the caller's to replace.

    Args:
        name: of :data:`NAMES`.
        student: name of the network; some take a smaller learning rate.
        world_size: processes, which share ImageNet's batch of 256. CIFAR's 64 is per process.
        batch_size: of one process, in place of the recipe's.

    Raises:
        ValueError: no such preset, or ImageNet's batch cannot be shared evenly.
    """
    if name == "digits":
        return _digits(student, world_size, batch_size or 64)
    if name == "cifar100":
        lr = 0.01 if student.lower().startswith(SMALL_LR_NETWORKS) else 0.05
        recipe = RecipeConfig(
            240, batch_size or 64, lr=lr, weight_decay=5e-4, schedule="step", milestones=(150, 180, 210)
        )
        method = MethodConfig(beta=400.0)
        data = DataConfig("cifar100")
    elif name == "imagenet":
        if batch_size is None and IMAGENET_BATCH % world_size:
            raise ValueError(
                f"{world_size} processes cannot share preset imagenet's batch of {IMAGENET_BATCH}: give --batch-size"
            )
        recipe = RecipeConfig(
            90,
            batch_size or IMAGENET_BATCH // world_size,
            lr=0.1,
            weight_decay=1e-4,
            schedule="step",
            milestones=(30, 60),
        )
        method = MethodConfig(beta=50.0)
        data = DataConfig("imagenet", workers=4)
    else:
        raise ValueError(f"preset must be one of {', '.join(NAMES)}, got '{name}'")
    return TrainConfig(
        ModelConfig(student),
        method=method,
        data=data,
        recipe=recipe,
        hardware=HardwareConfig(world_size=world_size, prepare_teacher=True),
    )


def _digits(student: str, world_size: int, batch_size: int) -> TrainConfig:
    """Seconds on a CPU.

    ``beta`` is 50 and not 400: the maps of a teacher trained for seconds have a mean square of about 3, and from there
    a training as short as this one does not settle with 400. Projections with fresh weights give large first
    gradients, hence the warm-up.
    """
    return TrainConfig(
        ModelConfig(student),
        method=MethodConfig(beta=50.0),
        recipe=RecipeConfig(10, batch_size, lr=0.05, weight_decay=5e-4, schedule="cosine", warm_up=0.1),
        # on two idle cores the second thread saves a third of the time; on busy ones waiting for it has cost a factor
        # of ten
        hardware=HardwareConfig(threads=1, deterministic=True, world_size=world_size, prepare_teacher=True),
        logging=LoggingConfig(steps=True),
    )
