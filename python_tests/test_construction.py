"""Constructor arguments: what can be taken as meant is taken, the rest is refused in a sentence that names it."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import semckd_kernels as sk

CHANNELS: dict[str, Callable[[], Any]] = {
    "list": lambda: [8, 16],
    "tuple": lambda: (8, 16),
    "range": lambda: range(8, 24, 8),
    "map": lambda: map(int, ["8", "16"]),
    "generator": lambda: (c for c in (8, 16)),
    "values of a dict": lambda: {"a": 8, "b": 16}.values(),
    "shape": lambda: torch.Size([8, 16]),
    "array": lambda: np.array([8, 16]),
    "array of small integers": lambda: np.array([8, 16], dtype=np.uint8),
    "tensor": lambda: torch.tensor([8, 16]),
    "numpy integers": lambda: [np.int64(8), np.int16(16)],
    "tensors": lambda: [torch.tensor(8), torch.tensor(16)],
    "whole floats": lambda: [8.0, np.float32(16)],
    "fractions": lambda: [Fraction(16, 2), 16],
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_channels(kind: str) -> None:
    for c in (
        sk.SemCKD(16, CHANNELS[kind](), CHANNELS[kind]()),
        sk.SelfA(2, 2, 16, CHANNELS[kind](), CHANNELS[kind]()),
        sk.SelfA(16, CHANNELS[kind](), CHANNELS[kind]()),
    ):
        assert (c.s_n, c.t_n, c.s_len, c.t_len) == ([8, 16], [8, 16], 2, 2)
        assert {type(n) for n in (*c.s_n, *c.t_n)} == {int}
        assert len([name for name, _ in c.named_children() if name.startswith("regressor")]) == 4


@pytest.mark.parametrize("size", [64 / 2, np.int32(32), np.float64(32), torch.tensor(32), np.array(32)], ids=repr)
def test_numbers(size: Any) -> None:
    c = sk.SemCKD(size, [8], [8], factor=np.int64(8), soft=np.float32(0.5), class_token=np.bool_(True))
    assert (c.batch_size, c.feat_dim, c.soft, c.class_token) == (32, 32, 0.5, True)
    assert type(c.batch_size) is int
    assert type(c.soft) is float
    assert c.query_weight0.linear2.out_features == 4
    # what is stored goes through a plain interpreter
    assert repr(c).startswith("SemCKD(\n  batch_size=32, soft=0.5")
    assert sk.SemCKD(4, [8], [8], soft=torch.tensor(2.0)).soft == 2


LIST = "must be a list of channels, one number a layer, got"
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batch_size": "64"}, TypeError, r"batch_size must be a whole number, got '64' \(str\)"),
    ({"batch_size": 32.5}, TypeError, r"batch_size must be a whole number, got 32.5 \(float\)"),
    ({"batch_size": float("nan")}, TypeError, "batch_size must be a whole number, got nan"),
    ({"batch_size": float("inf")}, TypeError, "batch_size must be a whole number, got inf"),
    ({"batch_size": None}, TypeError, r"batch_size must be a whole number, got None \(NoneType\)"),
    ({"batch_size": True}, TypeError, r"batch_size must be a whole number, got True \(bool\)"),
    ({"batch_size": [64]}, TypeError, r"batch_size must be a whole number, got \[64\] \(list\)"),
    ({"batch_size": 8j}, TypeError, "batch_size must be a whole number, got 8j"),
    ({"batch_size": np.array([64, 64])}, TypeError, r"batch_size must be a whole number, got array"),
    ({"batch_size": torch.tensor(6.5)}, TypeError, r"batch_size must be a whole number, got tensor\(6.5"),
    ({"batch_size": -1}, ValueError, "batch_size must be at least 1, got -1"),
    ({"s_n": 8}, TypeError, rf"s_n {LIST} 8 \(int\)"),
    ({"t_n": None}, TypeError, rf"t_n {LIST} None \(NoneType\)"),
    ({"s_n": "88"}, TypeError, rf"s_n {LIST} '88' \(str\)"),
    ({"s_n": b"88"}, TypeError, rf"s_n {LIST} b'88' \(bytes\)"),
    ({"s_n": {8, 16}}, TypeError, rf"s_n {LIST} \{{8, 16\}} \(set\)"),
    ({"s_n": OrderedDict(a=8)}, TypeError, rf"s_n {LIST} OrderedDict"),
    ({"s_n": np.array(8)}, TypeError, rf"s_n {LIST} array\(8\)"),
    ({"s_n": torch.tensor(8)}, TypeError, rf"s_n {LIST} tensor\(8\)"),
    ({"s_n": [8, 12.5]}, TypeError, r"s_n\[1\] must be a whole number, got 12.5 \(float\)"),
    ({"s_n": [[8], [16]]}, TypeError, r"s_n\[0\] must be a whole number, got \[8\] \(list\)"),
    ({"t_n": ["8"]}, TypeError, r"t_n\[0\] must be a whole number, got '8' \(str\)"),
    ({"t_n": [8, None]}, TypeError, r"t_n\[1\] must be a whole number, got None"),
    ({"t_n": [8, -3]}, ValueError, r"t_n must be 2 positive numbers of channels, got \[8, -3\]"),
    ({"t_n": iter(())}, ValueError, r"t_n must be positive numbers of channels, got \[\]"),
    ({"t_n": itertools.repeat(8)}, ValueError, "t_n must hold at most 1024 numbers of channels, got more"),
    ({"factor": 2.5}, TypeError, "factor must be a whole number, got 2.5"),
    ({"factor": 0}, ValueError, "factor must be at least 1, got 0"),
    ({"soft": "1"}, TypeError, r"soft must be a number, got '1' \(str\)"),
    ({"soft": True}, TypeError, r"soft must be a number, got True"),
    ({"soft": [1.0]}, TypeError, r"soft must be a number, got \[1.0\]"),
    ({"soft": -1.0}, ValueError, "soft must be positive, got -1.0"),
    ({"soft": float("nan")}, ValueError, "soft must be positive, got nan"),
    ({"backend": 3}, TypeError, r"backend must be a name or None, got 3 \(int\)"),
    ({"backend": ["cpu"]}, TypeError, r"backend must be a name or None, got \['cpu'\]"),
    ({"backend": "CPU"}, ValueError, "backend must be one of reference, cpu, cuda, triton, got 'CPU'"),
    ({"class_token": "False"}, TypeError, r"class_token must be True or False, got 'False' \(str\)"),
    ({"class_token": 1}, TypeError, r"class_token must be True or False, got 1 \(int\)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    (name,) = arguments
    with pytest.raises(error, match=message):
        sk.SemCKD(**{"batch_size": 16, "s_n": [8, 16], "t_n": [8], **arguments})
    if name != "backend":
        # iterators are used up
        again = {name: itertools.repeat(8) if isinstance(arguments[name], itertools.repeat) else arguments[name]}
        with pytest.raises(error, match=message):
            sk.SelfA(**{"batch_size": 16, "s_n": [8, 16], "t_n": [8], **again})


def test_backends_of_the_loss() -> None:
    with pytest.raises(TypeError, match=r"backend must be a name or None, got 3 \(int\)"):
        sk.SemCKDLoss(3)  # type: ignore[arg-type]


def options(c: sk.SemCKD) -> tuple[int, float, str | None]:
    return c.batch_size // c.query_weight0.linear2.out_features, c.soft, c.backend


@pytest.mark.parametrize(
    ("positional", "named", "expected"),
    [
        ((), {}, (4, 1.0, None)),
        ((), {"factor": 8, "soft": 2}, (8, 2.0, None)),
        # in the order of our signature
        ((8, 2.0), {}, (8, 2.0, None)),
        ((8, 2.0, "cpu"), {}, (8, 2.0, "cpu")),
        ((8, 2.0, None), {}, (8, 2.0, None)),
        # in that of the authors' later code
        ((2.0,), {}, (4, 2.0, None)),
        ((2.0, 8), {}, (8, 2.0, None)),
        ((2.0,), {"factor": 8}, (8, 2.0, None)),
        # one of them has a name, so the other is clear
        ((1,), {"factor": 8}, (8, 1.0, None)),
        ((8,), {"soft": 2}, (8, 2.0, None)),
        ((np.int64(8), np.float64(2)), {}, (8, 2.0, None)),
    ],
)
def test_options_by_position(positional: tuple[Any, ...], named: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert options(sk.SemCKD(64, [8], [8], *positional, **named)) == expected


@pytest.mark.parametrize(
    ("positional", "named"),
    [
        ((1,), {}),
        ((4,), {}),
        ((4, 1), {}),
        ((4.0, 1.0), {}),
        ((4, 1, "cpu"), {}),
        ((4, 1.0, "cpu", 3), {}),
        ((4, 1.0), {"factor": 2}),
        ((2.0,), {"soft": 1.0, "factor": 4}),
        (("cpu",), {"factor": 4, "soft": 1.0}),
        ((4, 1.0, "cpu"), {"backend": "cpu"}),
    ],
)
def test_options_that_are_not_clear(positional: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(
        TypeError, match=r"options behind t_n must be given by name, as factor=4, soft=1.0, backend=None"
    ):
        sk.SemCKD(64, [8], [8], *positional, **named)


def test_both_calls_of_the_attention_module() -> None:
    first = sk.SelfA(2, 3, 64, [8, 16], [4, 8, 12], 8)
    named = sk.SelfA(s_len=2, t_len=3, input_channel=64, s_n=[8, 16], s_t=[4, 8, 12], factor=8)
    later = sk.SelfA(64, [8, 16], [4, 8, 12], 0.5, 8)
    for c, soft in ((first, 1.0), (named, 1.0), (later, 0.5)):
        assert (c.s_len, c.t_len, c.batch_size, c.feat_dim, c.soft) == (2, 3, 64, 64, soft)
        assert c.query_weight1.linear2.out_features == 8
        assert {k: v.shape for k, v in c.state_dict().items()} == {k: v.shape for k, v in first.state_dict().items()}
    assert sk.SelfA(64, [8], [8]).soft == 1
    assert sk.SelfA(64, np.array([8]), iter([8]), 1).soft == 1
    assert sk.SelfA(64, [8], [8], soft=3, factor=16).query_weight0.linear2.out_features == 4
    assert sk.SelfA(feat_dim=64, s_n=[8], t_n=[8], soft=2.0).batch_size == 64
    assert sk.SelfA(64, [8], t_n=[8], class_token=True).class_token


def test_the_temperature_of_the_attention_module() -> None:
    generator = torch.Generator().manual_seed(0)
    feat_s = [torch.randn(6, 8, 4, 4, generator=generator)]
    feat_t = [torch.randn(6, c, 4, 4, generator=generator) for c in (4, 12)]
    torch.manual_seed(0)
    criterion, attention = sk.SemCKD(8, [8], [4, 12], soft=0.1), sk.SelfA(8, [8], [4, 12], 0.1)
    attention.load_state_dict(criterion.state_dict())
    value = attention(feat_s, feat_t)
    output = criterion(feat_s, feat_t)
    torch.testing.assert_close(value[2], output.weight)
    torch.testing.assert_close(sk.SemCKDLoss()(*value), output.loss)
    attention.soft = 1.0
    assert not torch.allclose(attention(feat_s, feat_t)[2], output.weight)


@pytest.mark.parametrize(
    ("positional", "named", "got"),
    [
        ((), {}, "missing a required argument: 's_len'"),
        ((64,), {}, "missing a required argument"),
        ((2, 2, 64, [8, 8]), {}, "missing a required argument: 's_t'"),
        ((64, [8]), {}, "missing a required argument: 't_n'"),
        ((64, [8], [8], 1.0, 4, 3), {}, "too many positional arguments"),
        ((64, [8], [8]), {"temperature": 2}, "got an unexpected keyword argument 'temperature'"),
        ((64, [8], [8], 1.0), {"soft": 2}, "multiple values for argument 'soft'"),
        ((1, 1, 64, [8], [8]), {"soft": 2}, "too many positional arguments|multiple values"),
    ],
)
def test_calls_of_neither_kind(positional: tuple[Any, ...], named: dict[str, Any], got: str) -> None:
    with pytest.raises(
        TypeError, match=rf"SelfA must be called as SelfA\(s_len, .*\) or as SelfA\(batch_size, .*{got}"
    ):
        sk.SelfA(*positional, **named)
