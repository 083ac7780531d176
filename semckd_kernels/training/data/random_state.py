"""The generators that transforms draw from: torch's, Python's and numpy's, lent to data and given back as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# whose types do not have all of it
_numpy: Any = np.random
_SPARE = np.random.MT19937(0)


def begin(seed: int) -> None:
    """Has all three begin with a seed; whoever must not notice goes by :func:`lent`."""
    # not torch.manual_seed, which seeds GPUs as well
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def lent(numpy: np.random.MT19937 | None = None) -> Iterator[None]:
    """Afterwards all three are as before.

    Args:
        numpy: what numpy draws from meanwhile; one that begin() is to be called for unless given.
    """
    # numpy's is put aside, which takes a hundredth of the time of copying its state
    before = torch.get_rng_state(), random.getstate(), _numpy.get_bit_generator()
    _numpy.set_bit_generator(_SPARE if numpy is None else numpy)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        _numpy.set_bit_generator(before[2])


class Chance:
    """Generators of somebody's own, begun with ``seed``, which go on where they were each time they are used."""

    def __init__(self, seed: int) -> None:
        self.numpy = np.random.MT19937(0)
        with lent(self.numpy):
            begin(seed)
            self.torch, self.python = torch.get_rng_state(), random.getstate()

    @contextmanager
    def used(self) -> Iterator[None]:
        with lent(self.numpy):
            torch.set_rng_state(self.torch)
            random.setstate(self.python)
            try:
                yield
            finally:
                self.torch, self.python = torch.get_rng_state(), random.getstate()
