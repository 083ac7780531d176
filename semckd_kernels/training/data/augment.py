"""Random crops and mirror images of whole batches, without a loop over samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Crops(NamedTuple):
    """What is cut out for each sample: offsets in the padded image (0 to ``2 * pad``), and whether it is mirrored."""

    top: Tensor  # [N], int64
    left: Tensor  # [N], int64
    mirrored: Tensor  # [N], int64, 0 or 1


class PaddedImages:
    """Images between zeros, from which any crop of the padded image is one stretch of memory.

    Images lie in memory one after the other with ``pad`` zeros before each row and ``pad`` rows of zeros above each
    channel: the zeros after a row are those before the next one, and those below a channel are the next one's. The
    crop at (top, left) then begins ``top`` rows and ``left`` pixels after the sample, and is as wide, in memory, as a
    row with its padding. A batch of crops is a batch of equally long stretches, each copied as a whole.

    Args:
        images: ``[N, C, H, W]``, of any type and device.
        pad: zeros on each side; 0 holds the images as they are.
    """

    def __init__(self, images: Tensor, pad: int) -> None:
        count, channels, height, width = images.shape
        self.pad = pad
        self.shape = (channels, height, width)
        self.row = width + pad
        self.plane = (height + pad) * self.row
        self.sample = channels * self.plane
        # the last sample has no next one to lend it zeros
        memory = images.new_zeros(count * self.sample + pad * self.row + pad)
        padded = memory[: count * self.sample].view(count, channels, height + pad, self.row)
        padded[:, :, pad:, pad:] = images
        self.length = self.sample - self.plane + (height - 1) * self.row + width
        # one for each place where a crop may begin: they overlap, and no memory is taken
        self.stretches = memory.as_strided((len(memory) - self.length + 1, self.length), (1, 1))

    def draw(self, count: int, generator: torch.Generator) -> Crops:
        """Random crops of ``count`` samples, each independent of the others, on the generator's device."""
        top, left = torch.randint(2 * self.pad + 1, (2, count), generator=generator)
        return Crops(top, left, torch.randint(2, (count,), generator=generator))

    def starts(self, index: Tensor, crops: Crops | None = None) -> Tensor:
        """Where the stretches of samples ``index`` begin: those of the images themselves, or of ``crops`` of them."""
        if crops is None:
            return index * self.sample + self.pad * (self.row + 1)
        return index * self.sample + crops.top * self.row + crops.left

    def cut(self, starts: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """The images ``[B, C, H, W]`` that begin at ``starts``, those with a one in ``mirrored`` ``[B]`` mirrored.

        The result is a view of fresh memory, with strides of its own.
        """
        channels, height, width = self.shape
        stretches = self.stretches.index_select(0, starts)
        strides = (self.length, self.plane, self.row, 1)
        images = stretches.as_strided((len(starts), channels, height, width), strides)
        if mirrored is None:
            return images
        # both, and of both the one asked for: a quarter of the time of torch.where with one value a sample
        both = torch.cat([images, images.flip(-1)])
        return both.index_select(0, mirrored * len(starts) + torch.arange(len(starts), device=starts.device))
