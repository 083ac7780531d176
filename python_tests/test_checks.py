"""Bad input: a named, clear error before anything is computed."""

from __future__ import annotations

import pytest
import torch
from problems import make_problem

import semckd_kernels as sk
from semckd_kernels import functional


def pairs():
    problem = make_problem([[(4, 6, 5), (8, 3, 3)], [(2, 2, 2), (8, 3, 1)]])
    return problem.s, problem.t, problem.weight


def broken(change):
    s, t, weight = pairs()
    return change(s, t, weight) or (s, t, weight)


def put(rows, i, j, value):
    rows[i][j] = value


CASES = {
    "empty lists": (lambda s, t, w: ([], [], w), ValueError, "s_value must hold at least one student layer"),
    "empty row": (lambda s, t, w: ([[]], [[]], w), ValueError, r"s_value\[0\] must hold at least one teacher layer"),
    "not a list": (lambda s, t, w: ({}, t, w), TypeError, "s_value must be S lists of T tensors, got dict"),
    "flat list": (
        lambda s, t, w: (s[0], t[0], w),
        TypeError,
        r"s_value\[0\] must be a list of T tensors, got Tensor",
    ),
    "none": (lambda s, t, w: (None, t, w), TypeError, "s_value must be S lists of T tensors, got NoneType"),
    "student layers": (
        lambda s, t, w: (s, t[:1], w),
        ValueError,
        "f_target must hold a list for each of the 2 student layers, got 1",
    ),
    "teacher layers": (
        lambda s, t, w: (s, [t[0], t[1][:1]], w),
        ValueError,
        r"f_target\[1\] must hold 2 maps as s_value\[0\] does, got 1",
    ),
    "shapes of a pair": (
        lambda s, t, w: put(t, 0, 1, t[0][1][:, :7]),
        ValueError,
        r"f_target\[0\]\[1\] must have the shape of s_value\[0\]\[1\], \[3, 8, 3, 3\], got \[3, 7, 3, 3\]",
    ),
    "batch of a pair": (
        lambda s, t, w: (put(s, 1, 0, s[1][0][:2]), put(t, 1, 0, t[1][0][:2]))[0],
        ValueError,
        r"s_value\[1\]\[0\] must have the batch size of s_value\[0\]\[0\], 3, got 2",
    ),
    "integer map": (
        lambda s, t, w: put(t, 1, 1, t[1][1].int()),
        TypeError,
        r"f_target\[1\]\[1\] must be float32, float16, bfloat16 or float64, got int32",
    ),
    "complex map": (lambda s, t, w: put(s, 0, 0, s[0][0].cfloat()), TypeError, r"s_value\[0\]\[0\] .* got complex64"),
    "not a tensor": (lambda s, t, w: put(s, 0, 1, 3.0), TypeError, r"s_value\[0\]\[1\] must be a tensor, got float"),
    "numpy map": (
        lambda s, t, w: put(s, 0, 0, s[0][0].numpy()),
        TypeError,
        r"s_value\[0\]\[0\] must be a tensor, got ndarray",
    ),
    "sparse map": (
        lambda s, t, w: put(s, 0, 0, s[0][0].to_sparse()),
        TypeError,
        r"s_value\[0\]\[0\] must be a dense tensor, got torch.sparse_coo: use x.to_dense\(\)",
    ),
    "nested map": (
        lambda s, t, w: put(t, 0, 1, torch.nested.nested_tensor(list(t[0][1]))),
        TypeError,
        r"f_target\[0\]\[1\] must be a dense tensor, got a nested one",
    ),
    "ragged map": (
        lambda s, t, w: put(s, 1, 1, torch.nested.nested_tensor(list(s[1][1]), layout=torch.jagged)),
        TypeError,
        r"s_value\[1\]\[1\] must be a dense tensor, got a nested one",
    ),
    "sparse weight": (lambda s, t, w: (s, t, w.to_sparse()), TypeError, "weight must be a dense tensor, got torch.spa"),
    "no elements": (
        lambda s, t, w: (put(s, 0, 0, s[0][0][:, :0]), put(t, 0, 0, t[0][0][:, :0]))[0],
        ValueError,
        r"s_value\[0\]\[0\] must have at least one element a sample, got \[3, 0, 6, 5\]",
    ),
    "one dimension": (
        lambda s, t, w: (put(s, 0, 0, torch.zeros(3)), put(t, 0, 0, torch.zeros(3)))[0],
        ValueError,
        r"s_value\[0\]\[0\] must be \[B, C, h, w\], got \[3\]",
    ),
    "devices": (
        lambda s, t, w: put(t, 0, 1, t[0][1].to("meta")),
        ValueError,
        r"f_target\[0\]\[1\] must be on the device of s_value\[0\]\[0\], cpu, got meta",
    ),
    "weight shape": (
        lambda s, t, w: (s, t, w.flatten(1)),
        ValueError,
        r"weight must be \[B, S, T\] = \[3, 2, 2\], got \[3, 4\]",
    ),
    "weight type": (lambda s, t, w: (s, t, w.long()), TypeError, "weight must be float32, .* got int64"),
    "weight device": (
        lambda s, t, w: (s, t, w.to("meta")),
        ValueError,
        "weight must be on the device of the maps, cpu, got meta",
    ),
    "weight missing": (lambda s, t, w: (s, t, None), TypeError, "weight must be a tensor, got NoneType"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_arguments(name: str) -> None:
    change, error, message = CASES[name]
    arguments = broken(change)
    with pytest.raises(error, match=message):
        sk.SemCKDLoss()(*arguments)


def test_energy_is_named() -> None:
    s, t, weight = pairs()
    with pytest.raises(ValueError, match=r"energy must be \[B, S, T\]"):
        functional.semckd_loss_from_energy(s, t, weight[:, :1])


def test_pair_mse_checks_too() -> None:
    s, t, _ = pairs()
    with pytest.raises(ValueError, match="f_target must hold"):
        functional.pair_mse(s, t[:1])


def test_tuples_are_lists() -> None:
    s, t, weight = pairs()
    as_tuples = sk.SemCKDLoss()(tuple(map(tuple, s)), tuple(map(tuple, t)), weight)
    assert torch.equal(as_tuples, sk.SemCKDLoss()(s, t, weight))
