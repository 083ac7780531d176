"""BatchNorms that see few values of a channel: rounding is amplified there, so such pairs are computed in fp64."""

from __future__ import annotations

import pytest
import torch
from criterion_problems import Case, Size, converted, step
from served import CRITERION_SERVED, Backend
from tolerances import relative_error

from semckd_kernels.stages.projection import ENOUGH_PIXELS, pair_dtype

# map size and batch: 2, 3, 5, 8, 30 and 24 values of a channel
FEW: list[tuple[Size, int]] = [((1, 1), 2), ((1, 1), 3), ((1, 1), 5), ((2, 2), 2), ((1, 1), 30), ((4, 2), 3)]


@pytest.fixture(params=CRITERION_SERVED, ids=lambda b: b.name)
def fused(request: pytest.FixtureRequest) -> Backend:
    return request.param


def worst_error(case: Case, fused: Backend, seed: int, dtype: torch.dtype, offset: float = 0.0) -> float:
    """Of the loss and all gradients of projections and maps, against the reference in fp64 on the same inputs."""
    maps = [[x.detach() + offset for x in side] for side in case.maps(fused.device, seed=seed)]
    maps[0] = [x.requires_grad_() for x in maps[0]]
    maps = [converted(side, dtype) for side in maps]
    with torch.autocast(fused.device, dtype, enabled=dtype != torch.float32):
        value = step(case.module(fused.name, fused.device), *maps)
    exact_maps = [converted(side, torch.float64) for side in maps]
    exact = step(case.module("reference", fused.device, torch.float64), *exact_maps)
    names = [name for name in value.tensors if name.startswith("regressor") or name in ("loss", "pair_mse")]
    # a gradient in half precision is rounded to it
    names += [name for name in value.tensors if name.startswith("d_feat_s") and dtype == torch.float32]
    return max(relative_error(value.tensors[name], exact.tensors[name]) for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("size", "batch"), FEW)
def test_as_exact_as_fp64(fused: Backend, size: Size, batch: int, dtype: torch.dtype) -> None:
    interpreted = (fused.name, fused.device) == ("triton", "cpu")
    if interpreted and (dtype != torch.float32) != (batch == 5):
        pytest.skip("interpreted kernels are slow: fp32 but for five values, where half precision is tried")
    case = Case([16], [8], [size], [size], batch=batch, batch_size=batch)
    # which channels deviate little is chance
    for seed in range(1 if interpreted else 4):
        assert worst_error(case, fused, seed, dtype) <= 2e-6


def test_far_from_zero(fused: Backend) -> None:
    case = Case([12], [6], [(1, 1)], [(1, 1)], batch=6, batch_size=6)
    assert worst_error(case, fused, 0, torch.float32, offset=30.0) <= 2e-6


def test_pooled_to_few_pixels(fused: Backend) -> None:
    # the pooled map has to be as exact as what follows; the other pair has pixels enough
    case = Case([8], [4, 3], [(6, 6)], [(6, 6), (1, 1)], batch=2, batch_size=2)
    maps = case.maps(fused.device)
    value = step(case.module(fused.name, fused.device), *maps)
    exact_maps = [converted(side, torch.float64) for side in maps]
    exact = step(case.module("reference", fused.device, torch.float64), *exact_maps)
    for name, tensor in value.items():
        if name.startswith("regressor01"):
            assert relative_error(tensor, exact.tensors[name]) <= 2e-6, name
        if name.startswith(("d_feat_s", "regressor", "loss")):
            assert tensor.dtype == torch.float32, name


def test_the_rest_keeps_the_type_of_its_maps() -> None:
    assert pair_dtype(torch.float32, ENOUGH_PIXELS - 1) == torch.float64
    assert pair_dtype(torch.float32, ENOUGH_PIXELS) == torch.float32
    assert pair_dtype(torch.bfloat16, ENOUGH_PIXELS) == torch.bfloat16
