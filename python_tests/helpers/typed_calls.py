# mypy: warn-unused-ignores
"""What a type checker makes of calls; `make lint` checks this file, nothing runs it."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from typing_extensions import assert_type

import semckd_kernels as sk


def calls(feat_s: list[Tensor], feat_t: list[Tensor]) -> None:
    output = sk.SemCKD(64, [8], (16,), factor=4, soft=1.0, backend="cpu")(feat_s, feat_t)
    assert_type(output, sk.SemCKDOutput)
    assert_type(output.loss, Tensor)
    loss, _, pair_mse = output
    assert_type(loss, Tensor)
    assert_type(pair_mse, Tensor)
    sk.SemCKD(np.int64(64), range(8, 16), map(int, "88"), 4, 1.0, None, class_token=True)
    for attention in (sk.SelfA(1, 1, 64, [8], [16]), sk.SelfA(64, [8], [16], 1.0, 4)):
        values = attention(feat_s, feat_t)
        assert_type(values, tuple[list[list[Tensor]], list[list[Tensor]], Tensor])
        assert_type(sk.SemCKDLoss()(*values), Tensor)
    # what is refused at run time is refused here
    sk.SemCKD(64, [8], [16], 1)  # type: ignore[call-overload]
    sk.SelfA(64, 8, [16])  # type: ignore[call-overload]
    sk.SemCKD(64, [8], [16])(feat_s, 3)  # type: ignore[arg-type]
