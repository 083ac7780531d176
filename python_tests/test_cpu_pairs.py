"""All pairs of a student layer in one operator on the CPU, against the plain steps of one pair in fp64."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from pair_problems import EVEN, MEETINGS, RAGGED, Meeting, PairProblem, check_pairs, moved_parameters
from torch import Tensor

import semckd_kernels as sk
from semckd_kernels.backends.cpu import convolution
from semckd_kernels.backends.cpu.backend import CpuBackend
from semckd_kernels.stages.projection import Projection

pytestmark = pytest.mark.skipif(not sk.available_backends()["cpu"].available, reason="the library was not built")

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def cpu(dtype: torch.dtype) -> CpuBackend:
    return CpuBackend(torch.promote_types(dtype, F32))


def check(problem: PairProblem, need_grad: bool = True) -> dict[str, Tensor]:
    return check_pairs(problem, cpu(problem.dtype), need_grad)


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, x in found.items():
        assert torch.equal(x, expected[name]), name


@pytest.mark.parametrize("choice", convolution.CHOICES)
@pytest.mark.parametrize("meetings", MEETINGS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
def test_chunk(choice: str, meetings: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMCKD_CONV", choice)
    check(PairProblem(MEETINGS[meetings], dtype, batch=9))


# neither, both, and each of a pair's two BatchNorms with statistics of the batch
@pytest.mark.parametrize("flags", [(False,), (True, False, False, True, False)], ids=["running", "mixed"])
@pytest.mark.parametrize("choice", convolution.CHOICES)
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_running_statistics(
    flags: tuple[bool, ...], choice: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMCKD_CONV", choice)
    check(PairProblem(RAGGED, dtype, batch_statistics=flags))


def test_without_gradients() -> None:
    problem = PairProblem(RAGGED, F32)
    assert_same_bits(check(problem, need_grad=False), problem.run(cpu(F32)))


@pytest.mark.parametrize("dtype", [BF16, F16, F64], ids=str)
def test_parameters_of_another_type(dtype: torch.dtype) -> None:
    value = check(PairProblem(EVEN[1:], BF16 if dtype == F64 else dtype, parameter_dtype=dtype))
    kept = F32 if dtype == F16 else dtype
    assert all(x.dtype == kept for name, x in value.items() if name.startswith(("d_w", "d_g", "d_b")))


def test_gradients_lie_as_their_parameters() -> None:
    problem = PairProblem(EVEN, F32)
    for pair in problem.pairs:
        weight1, weight3 = pair[1].weight1, pair[1].weight3
        transposed = weight3.transpose(0, 1).contiguous().transpose(0, 1)
        pair[1] = pair[1]._replace(weight1=weight1.to(memory_format=torch.channels_last), weight3=transposed)
    value = problem.run(cpu(F32))
    for q, (_, parameters, _) in enumerate(problem.pairs):
        for field, parameter in zip(Projection._fields, parameters, strict=True):
            assert value[f"d_{field} {q}"].stride() == parameter.stride(), (field, q)


def test_parameters_at_any_address() -> None:
    problem = PairProblem(EVEN, F32)
    expected = problem.run(cpu(F32))
    moved_parameters(problem, offset=1)
    assert_same_bits(problem.run(cpu(F32)), expected)


# few operations, which one thread does alone, and more
@pytest.mark.parametrize("meeting", [Meeting(3, 4, 10, (9, 4)), Meeting(24, 24, 32, (24, 16))], ids=["few", "many"])
def test_same_bits_for_any_number_of_threads(meeting: Meeting) -> None:
    problem = PairProblem([meeting], F32)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(problem.run(cpu(F32)))
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        assert_same_bits(found, results[0])


def test_calls_at_the_same_time_share_no_memory() -> None:
    problems = [PairProblem([Meeting(6, 5 + n, 8, (8, 12))], F32) for n in range(4)]
    expected = [problem.run(cpu(F32)) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, alone in zip(pool.map(lambda p: p.run(cpu(F32)), problems), expected, strict=True):
                assert_same_bits(found, alone)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("weight1", lambda x: x[:, :-1], "weight1 must be"),
        ("weight2", lambda x: x[:-1], "weight2 must be"),
        ("weight3", lambda x: x[:, :, 0], "weight3 must be"),
        ("beta2", lambda x: x[:-1], "gamma, beta must be"),
    ],
)
def test_wrong_parameters_are_refused(field: str, change: Any, message: str) -> None:
    problem = PairProblem(EVEN[1:], F32)
    parameters = problem.pairs[0][1]
    problem.pairs[0][1] = parameters._replace(**{field: change(getattr(parameters, field))})
    with pytest.raises(RuntimeError, match=f"semckd: {message}"):
        problem.run(cpu(F32))


def test_wrong_maps_are_refused() -> None:
    problem = PairProblem(EVEN[1:], F32)
    problem.pairs[0][0] = problem.pairs[0][0].double()
    with pytest.raises(RuntimeError, match="semckd: y must be"):
        problem.run(cpu(F32))
