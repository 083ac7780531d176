"""Shapes of real network pairs, by name: the maps after each stage's last activation."""

from __future__ import annotations

from dataclasses import dataclass, replace

Map = tuple[int, int, int]


@dataclass(frozen=True)
class NetworkPair:
    """Feature maps ``(channels, height, width)`` of a student and a teacher, and the batch they are trained with.

    ``cpu_batch`` is a smaller one where the whole would not fit a CPU's time or memory, ``cpu_step_batch`` a smaller
    one still, for the whole criterion and the networks.
    """

    name: str
    student: tuple[Map, ...]
    teacher: tuple[Map, ...]
    batch: int
    cpu_batch: int | None = None
    cpu_step_batch: int | None = None

    def on(self, device: str, whole_step: bool = False, short: bool = False) -> NetworkPair:
        """This pair with the batch for a device; for the pair loss alone, or for a whole criterion or step.

        In short, half of it on the CPU.
        """
        batch = (self.cpu_step_batch if whole_step else None) or self.cpu_batch or self.batch
        return replace(self, batch=batch // 2 if short else batch) if device == "cpu" else self

    def small(self) -> NetworkPair:
        """The same channels on maps of at most 4 x 4, sixteen samples, of more than two equal maps two.

        So few ReLUs that often none falls on the other side of zero in another precision, which would move a gradient
        by more than rounding does.
        Eight samples would leave BatchNorm eight values a channel on a 1 x 1 map, which magnifies any rounding.
        """

        def shrink(maps: tuple[Map, ...]) -> tuple[Map, ...]:
            few = [x for n, x in enumerate(maps) if maps[:n].count(x) < 2]
            return tuple((c, max(h // scale, 1), max(w // scale, 1)) for c, h, w in few)

        scale = max(max(h, w) for _, h, w in (*self.student, *self.teacher)) // 4
        return replace(self, student=shrink(self.student), teacher=shrink(self.teacher), batch=16)

    def pairs(self) -> list[list[Map]]:
        """``[i][j]``: what pair (i, j) is compared at, the teacher's channels at the smaller resolution."""
        return [[(c, min(s[1], h), min(s[2], w)) for c, h, w in self.teacher] for s in self.student]

    def elements(self) -> int:
        """Elements on one side of all pairs, for the whole batch."""
        return self.batch * sum(c * h * w for row in self.pairs() for c, h, w in row)


_CIFAR_RESNET = ((64, 32, 32), (128, 16, 16), (256, 8, 8))
# of the second to fifth block, the first being the stem
_VGG = ((128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4))
_IMAGENET_RESNET = ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7))
# twelve blocks of 197 tokens, 192 channels: 14 x 14 without the class token
_VIT_TINY = ((192, 14, 14),) * 12
_OVERHEAD = ((8, 8, 8), (16, 4, 4), (32, 2, 2))

NETWORK_PAIRS = {
    pair.name: pair
    for pair in (
        NetworkPair("resnet32x4-resnet8x4", _CIFAR_RESNET, _CIFAR_RESNET, 64),
        NetworkPair("vgg13-vgg8", _VGG, _VGG, 64),
        NetworkPair(
            "resnet34-resnet18-imagenet", _IMAGENET_RESNET, _IMAGENET_RESNET, 256, cpu_batch=16, cpu_step_batch=8
        ),
        NetworkPair("vit_tiny-vit_tiny", _VIT_TINY, _VIT_TINY, 64, cpu_batch=8, cpu_step_batch=2),
        # nothing but overhead: nine pairs of 2 x 4 elements
        NetworkPair("tiny", ((4, 1, 1),) * 3, ((4, 1, 1),) * 3, 2),
        # the same for a whole criterion, whose BatchNorms need more values than that
        NetworkPair("overhead", _OVERHEAD, _OVERHEAD, 16),
    )
}
