"""Values from the smallest to the largest of their type: where plain code gives a finite number, kernels do."""

from __future__ import annotations

import pytest
import torch
from criterion_problems import Case, converted, step
from problems import Problem, make_problem
from served import CRITERION_SERVED, Backend
from torch import Tensor

pytestmark = [
    # numpy says so where it interprets a kernel
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

MAGNITUDES = {
    torch.float32: (1e-45, 1e-38, 1e-22, 1e-20, 1e-10, 1e9, 1e18, 5e18, 1e19, 1.8e19, 1e20, 1e38, 3e38),
    torch.bfloat16: (1e-37, 1e-20, 1e18, 5e18, 1e19, 1e20, 3e38),
    torch.float16: (6e-8, 1e-5, 6e4),
}
EACH = [(dtype, magnitude) for dtype, magnitudes in MAGNITUDES.items() for magnitude in magnitudes]


def kind(x: Tensor) -> Tensor:
    """0 where finite, else the sign of inf, or 2 for NaN."""
    return torch.where(x.isnan(), 2.0, torch.where(x.isinf(), x.sign(), 0.0))


def as_good(value: Tensor, plain: Tensor, exact: Tensor, what: str) -> None:
    """Finite wherever plain code is, of its sign where both are infinite, and no further off than twice plain code.

    What rounds to a denormal number may be off by one and a half of them an element.
    """
    assert (value.isfinite() | ~plain.isfinite()).all(), what
    assert ((kind(value) == kind(plain)) | value.isfinite() | value.isnan() | plain.isnan()).all(), what
    both = value.isfinite() & plain.isfinite()
    errors = [(x.double() - exact)[both].norm().item() for x in (value, plain)]
    smallest = torch.finfo(value.dtype).smallest_normal * torch.finfo(value.dtype).eps
    floor = 2e-6 * exact[both].norm().item() + 1.5 * smallest * both.sum().item() ** 0.5
    assert errors[0] <= max(2 * errors[1], floor), f"{what}: error {errors[0]:.2e}, plain code {errors[1]:.2e}"


def scaled(x: Tensor, magnitude: float) -> Tensor:
    """Values around the magnitude, which may be negative."""
    limit = torch.finfo(x.dtype).max
    around = 0.9 + 0.1 * x.double().clamp(-1, 1)
    return (around * magnitude).clamp(-limit, limit).to(x.dtype)


def problem_of(dtype: torch.dtype, magnitude: float, device: str) -> Problem:
    """Of four pairs one has a large student, one a large teacher, and two have both: of one sign, and of two."""
    problem = make_problem([[(3, 5), (70,)], [(1, 1), (2,)]], 2, dtype, dtype, device)
    for i, j, of_student, of_teacher in ((0, 0, 1, 0), (0, 1, 0, 1), (1, 0, 1, 1), (1, 1, 1, -1)):
        if of_student:
            problem.s[i][j] = scaled(problem.s[i][j], of_student * magnitude)
        if of_teacher:
            problem.t[i][j] = scaled(problem.t[i][j], of_teacher * magnitude)
    return problem


@pytest.mark.parametrize(("dtype", "magnitude"), EACH, ids=str)
def test_pair_loss(kernel: Backend, dtype: torch.dtype, magnitude: float) -> None:
    if (kernel.name, kernel.device) == ("triton", "cpu") and magnitude not in (1e-20, 6e4, 1e18, 1e19, 3e38):
        pytest.skip("interpreted kernels are slow: the magnitudes where something overflows")
    problem = problem_of(dtype, magnitude, kernel.device)
    # weight 0 for an infinite error, one sample's; the other sample's is as large as the error
    problem.weight[0] = 0
    problem.weight[1, 1] *= -1e30
    value, plain, exact = problem.run(kernel.name), problem.run("reference"), problem.double().run("reference")
    for name in ("loss", "pair_mse", "d_s", "d_t", "d_weight"):
        sides = ([x] if isinstance(x, Tensor) else x for x in (getattr(r, name) for r in (value, plain, exact)))
        for q, tensors in enumerate(zip(*sides, strict=True)):
            as_good(*tensors, f"{name}[{q}]")


def test_no_weight_for_an_infinite_error(kernel: Backend) -> None:
    problem = problem_of(torch.float32, 1e20, kernel.device)
    problem.weight = torch.zeros_like(problem.weight)
    value, plain = problem.run(kernel.name), problem.run("reference")
    assert value.loss.isnan() == plain.loss.isnan()
    assert value.loss.isnan()


def test_large_energies(kernel: Backend) -> None:
    problem = problem_of(torch.float32, 1e18, kernel.device)
    problem.weight = problem.weight * 100 + 3e38 * torch.tensor([1.0, -1.0], device=kernel.device)
    value, plain = problem.run(kernel.name, energy=True), problem.run("reference", energy=True)
    exact = problem.double().run("reference", energy=True)
    as_good(value.loss, plain.loss, exact.loss, "loss")
    for q in range(4):
        as_good(value.d_s[q], plain.d_s[q], exact.d_s[q], f"d_s[{q}]")


@pytest.fixture(params=CRITERION_SERVED, ids=lambda b: b.name)
def fused(request: pytest.FixtureRequest) -> Backend:
    return request.param


# many values of a channel, and few
CASES = [Case([4], [3], [(4, 4)], [(4, 4)], batch=b, batch_size=4) for b in (4, 1)]


def outcomes(
    case: Case, fused: Backend, student: float, parameter: str = "", factor: float = 1.0
) -> list[dict[str, Tensor]]:
    """What a step leaves behind: of the kernels, of plain code, and exactly."""
    results = []
    for backend, dtype in ((fused.name, torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        module = case.module(backend, fused.device)
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.mul_(factor if parameter and name.endswith(parameter) else 1)
        feat_s, feat_t = case.maps(fused.device)
        feat_s = [(x.detach() * student).to(dtype).requires_grad_() for x in feat_s]
        results.append(step(module.to(dtype), feat_s, converted(feat_t, dtype)).tensors)
    return results


@pytest.mark.parametrize("case", CASES, ids=["many pixels", "few pixels"])
@pytest.mark.parametrize("magnitude", [1e-45, 1e-25, 1e-10, 1e10, 1e18, 3e18, 1e19, 3e19, 1e25, 1e36])
def test_student_values(fused: Backend, magnitude: float, case: Case) -> None:
    value, plain, exact = outcomes(case, fused, magnitude)
    for name, tensor in value.items():
        if name in ("pair_mse", "loss") or "running" in name:
            assert (tensor.isfinite() | ~plain[name].isfinite()).all(), name
    # a BatchNorm whose variance overflows lets nothing through, here and in plain code
    wanted = [x["pair_mse"].double() for x in (exact, plain) if x["pair_mse"].isfinite().all()]
    assert any(torch.allclose(value["pair_mse"].double(), x, rtol=1e-5) for x in wanted)


@pytest.mark.parametrize("factor", [1e15, 1e19, 1e25])
@pytest.mark.parametrize("parameter", ["regressor.0.weight", "regressor.1.weight", "regressor.3.weight"])
def test_large_parameters(fused: Backend, parameter: str, factor: float) -> None:
    value, plain, exact = outcomes(CASES[0], fused, 1.0, parameter, factor)
    for name, tensor in value.items():
        assert (tensor.isfinite() | ~plain[name].isfinite()).all(), name
    wanted = [x["loss"].double() for x in (exact, plain)]
    assert any(torch.allclose(value["loss"].double(), x, rtol=1e-5) for x in wanted)


def test_nan_is_not_taken_for_overflow(fused: Backend) -> None:
    for bad in (float("nan"), float("inf")):
        module = CASES[0].module(fused.name, fused.device)
        feat_s, feat_t = CASES[0].maps(fused.device)
        broken = feat_s[0].detach().clone()
        broken[0, 1, 2, 3] = bad
        assert module([broken], feat_t).pair_mse.isnan().all()
