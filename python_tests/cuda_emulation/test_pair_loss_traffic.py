"""Bytes that the pair-loss kernels move, counted, against the formula in the header of pair_loss.cu."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from emulation import STORAGE, Buffer, Emulation
from pair_loss_problem import Pair, Problem

LOW = ("float32", "float16", "bfloat16")
COMBINATIONS = [*itertools.product(LOW, LOW), ("float64", "float64")]
# what the formula does not name may come to this part of it
OVERHEAD = 0.02


def every_byte_once(buffer: Buffer | None, stores: bool = False) -> bool:
    assert buffer
    traffic = buffer.traffic()
    counts = (traffic.min_loads, traffic.max_loads, traffic.min_stores, traffic.max_stores)
    return counts == ((0, 0, 1, 1) if stores else (1, 1, 0, 0))


def total_traffic(emulation: Emulation) -> int:
    return sum(buffer.traffic().loaded + buffer.traffic().stored for buffer in emulation._buffers)


def problem_of(emulation: Emulation, s_dtype: str, t_dtype: str, **options: bool) -> Problem:
    # of the sizes of real maps: a chunk and a bit, two chunks, one chunk
    sizes = (8192, 6272, 4096)
    emulation.schedule(check_races=False)
    return Problem(emulation, [Pair(N, s_dtype, t_dtype) for N in sizes], B=4, S=1, T=3, **options)


def elements(problem: Problem) -> int:
    return sum(problem.B * pair.N for pair in problem.pairs)


def size(dtype: str) -> int:
    return np.dtype(STORAGE[dtype]).itemsize


@pytest.mark.parametrize(("s_dtype", "t_dtype"), COMBINATIONS)
@pytest.mark.parametrize("softmax", [False, True])
def test_forward(observed: Emulation, s_dtype: str, t_dtype: str, softmax: bool) -> None:
    problem = problem_of(observed, s_dtype, t_dtype, softmax=softmax)
    observed.library.emulation_reset_traffic()
    problem.run_forward()
    assert all(every_byte_once(maps.s) and every_byte_once(maps.t) for maps in problem.maps)
    assert every_byte_once(problem.loss, stores=True)
    formula = elements(problem) * (size(s_dtype) + size(t_dtype))
    assert formula <= total_traffic(observed) <= (1 + OVERHEAD) * formula


@pytest.mark.parametrize(("s_dtype", "t_dtype"), COMBINATIONS)
@pytest.mark.parametrize(("need_s", "need_t"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("softmax", [False, True])
def test_backward(observed: Emulation, s_dtype: str, t_dtype: str, need_s: bool, need_t: bool, softmax: bool) -> None:
    problem = problem_of(observed, s_dtype, t_dtype, need_s=need_s, need_t=need_t, softmax=softmax)
    problem.run_forward()
    observed.library.emulation_reset_traffic()
    problem.run_backward()
    formula = 0
    for maps in problem.maps:
        for gradient in filter(None, (maps.d_s, maps.d_t)):
            assert every_byte_once(gradient, stores=True)
            formula += gradient.array.nbytes
        for source in (maps.s, maps.t):
            assert every_byte_once(source) or not (need_s or need_t)
            formula += source.array.nbytes if need_s or need_t else 0
    assert every_byte_once(problem.d_weight, stores=True)
    if formula:
        assert formula <= total_traffic(observed) <= (1 + OVERHEAD) * formula


@pytest.mark.parametrize("in_place", [False, True])
def test_misaligned_samples_are_read_once_too(observed: Emulation, in_place: bool) -> None:
    observed.schedule(check_races=False)
    pairs = [Pair(5001, "bfloat16", "bfloat16", misaligned_by=1, in_place=in_place)]
    problem = Problem(observed, pairs, B=3, S=1, T=1, need_t=False)
    problem.run_forward()
    observed.library.emulation_reset_traffic()
    problem.run_backward()
    maps = problem.maps[0]
    s = maps.s.traffic()
    assert (s.min_loads, s.max_loads) == (1, 1)
    assert every_byte_once(maps.t)
    assert (s.min_stores, s.max_stores) == ((1, 1) if in_place else (0, 0))
