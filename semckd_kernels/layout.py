"""How a map's elements lie in memory, as far as the kernels care: a sample is read as one run of elements.

Both maps of a pair may lie in any order, if it is the same one and leaves no gaps within a sample; how far samples lie
apart does not matter. ``csrc/ops/tensor.h`` holds the same rules for the compiled operators.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def sample_order(x: Tensor) -> tuple[int, ...] | None:
    """The order of a sample's elements in memory, or None where they do not fill one run.

    Two maps of one shape have the same order exactly if the results are equal.
    """
    dims = [(stride, size) for stride, size in zip(x.stride()[1:], x.shape[1:], strict=True) if size != 1]
    run = 1
    for stride, size in sorted(dims):
        if stride != run:
            return None
        run *= size
    return tuple(stride for stride, _ in dims)


def samples_overlap(x: Tensor) -> bool:
    """Whether samples share memory, as those of an expanded batch do: they cannot each hold a gradient."""
    return x.shape[0] > 1 and x.stride(0) < x[0].numel()


def row_major_strides(shape: Sequence[int]) -> list[int]:
    """Strides of a row-major tensor."""
    strides = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * shape[d + 1]
    return strides


def packed_strides(x: Tensor) -> list[int]:
    """Strides that put samples in x's order one behind the other; row-major where x's samples leave gaps.

    Both gradients of a pair have the packed strides of its student map.
    """
    strides = row_major_strides(x.shape)
    return strides if sample_order(x) is None else [strides[0], *x.stride()[1:]]
