"""The criterion's stages in plain PyTorch, for tests and benches: to be tested against, judged by and measured against.

:class:`PlainStages`  as the formulas are, in fp64 what every backend's are tested against
:class:`EagerStages`  as torch computes under autocast: how exact kernels must be
:class:`TorchStages`  by torch's own library in as few passes as it takes: what CPU kernels are measured against
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import vendor_conv
from plain_algebra import BackwardCoefficients, BatchNorm
from stage_interface import EndResult, TorchMatrices
from torch import Tensor


def rows(x: Tensor) -> Tensor:
    """``[B, h, w, C]`` as ``[P, C]`` in the accumulation type."""
    return x.flatten(0, 2).to(torch.promote_types(x.dtype, torch.float32))


def as_map(x: Tensor) -> Tensor:
    """``[B, h, w, C]`` as ``[B, C, h, w]`` in the accumulation type."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).permute(0, 3, 1, 2)


class PlainStages(TorchMatrices):
    def rounded(self, x: Tensor) -> Tensor:
        """What enters a product."""
        return x

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = rows(x).mean(0)
        centred = rows(x) - mean
        return mean, centred.t() @ centred / len(centred)

    def linear_relu(self, x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> None:
        h.copy_(torch.relu(rows(x) @ self.rounded(weight).t() + bias).view_as(h))

    def conv3x3(self, h: Tensor, weight: Tensor, statistics: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        z_map = F.conv2d(as_map(h), self.rounded(weight).to(as_map(h).dtype), padding=1)
        z = z_map.permute(0, 2, 3, 1).to(h.dtype).contiguous()
        return (z, rows(z).mean(0), rows(z).var(0, unbiased=False)) if statistics else (z, None, None)

    def end(
        self, z: Tensor, norm: BatchNorm, weight: Tensor, y: Tensor, coef: Tensor | None, d_h: Tensor | None
    ) -> EndResult:
        weight = self.rounded(weight)
        h = self.rounded(torch.relu((rows(z) - norm.mean) * norm.scale + norm.beta))
        r = h @ weight.t() - rows(y)
        squared_error = r.square().view(len(z), -1).sum(1)
        if coef is None or d_h is None:
            return EndResult(squared_error, None, None, None)
        d_r = self.rounded(coef.repeat_interleave(len(r) // len(coef))[:, None] * r)
        d = (d_r @ weight) * (h > 0)
        d_h.copy_(d.view_as(d_h))
        return EndResult(squared_error, d_r.t() @ h, d.sum(0), (d * (rows(z) - norm.mean)).sum(0))

    def conv3x3_backward(
        self, h: Tensor, weight: Tensor, z: Tensor, d_h2: Tensor, coefficients: BackwardCoefficients
    ) -> tuple[Tensor, Tensor]:
        a, b, c = coefficients
        d_z = as_map(self.rounded(a * rows(d_h2) + b * rows(z) + c).view(z.shape))
        own_weight = self.rounded(weight).to(d_z.dtype)
        d_map = torch.nn.grad.conv2d_input(as_map(h).shape, own_weight, d_z, padding=1)
        d_h1 = d_map.permute(0, 2, 3, 1).to(h.dtype).contiguous()
        d_weight = torch.empty_like(own_weight)
        return d_h1, d_weight.copy_(torch.nn.grad.conv2d_weight(as_map(h), weight.shape, d_z, padding=1))

    def linear_relu_backward(
        self, x: Tensor, h: Tensor, d_h: Tensor, weight: Tensor, d_x: Tensor, accumulate: bool
    ) -> tuple[Tensor, Tensor]:
        d = rows(d_h) * (rows(h) > 0)
        back = (d @ self.rounded(weight)).view_as(d_x)
        d_x.copy_(d_x + back if accumulate else back)
        return d.t() @ rows(x), d.sum(0)

    def linear_add_(self, x: Tensor, weight: Tensor, bias: Tensor, d_x: Tensor) -> None:
        d_x.add_((rows(x) @ self.rounded(weight).t() + bias).view_as(d_x))


class EagerStages(PlainStages):
    """As torch computes under autocast: what enters a product, and what a map keeps, is of the maps' type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def rounded(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).to(x.dtype)

    def conv3x3_backward(
        self, h: Tensor, weight: Tensor, z: Tensor, d_h2: Tensor, coefficients: BackwardCoefficients
    ) -> tuple[Tensor, Tensor]:
        d_h1, d_weight = super().conv3x3_backward(h, weight, z, d_h2, coefficients)
        # within fp16's range, and rounded as bf16 and fp16 are
        return d_h1, self.rounded(d_weight / 256) * 256


class TorchStages:
    """The stages that are measured: products in the map type, as under autocast; sums in the accumulation type."""

    def linear_relu(self, x: Tensor, weight: Tensor, bias: Tensor, h: Tensor) -> None:
        torch.addmm(bias.to(x.dtype), _flat(x), weight.to(x.dtype).t(), out=_flat(h)).relu_()

    def linear_relu_backward(
        self, x: Tensor, h: Tensor, d_h: Tensor, weight: Tensor, d_x: Tensor, accumulate: bool
    ) -> tuple[Tensor, Tensor]:
        d = torch.ops.aten.threshold_backward(_flat(d_h), _flat(h), 0)
        back = weight.to(d.dtype)
        if d.dtype == d_x.dtype:
            torch.addmm(_flat(d_x), d, back, beta=int(accumulate), out=_flat(d_x))
        elif accumulate:
            _flat(d_x).add_(d @ back)
        else:
            _flat(d_x).copy_(d @ back)
        return (d.t() @ _flat(x)).to(weight.dtype), d.sum(0, dtype=weight.dtype)

    def conv3x3(self, h: Tensor, weight: Tensor, statistics: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        z = vendor_conv.conv3x3(h, weight)
        # passes over rows are ours here and in the backward: the vendor's convolution at its best
        return (z, *torch.ops.semckd_cpu.row_statistics(z)) if statistics else (z, None, None)

    def conv3x3_backward(
        self, h: Tensor, weight: Tensor, z: Tensor, d_h2: Tensor, coefficients: BackwardCoefficients
    ) -> tuple[Tensor, Tensor]:
        torch.ops.semckd_cpu.row_affine_(d_h2, z, *coefficients)
        return vendor_conv.conv3x3_backward(h, weight, d_h2)

    def end(
        self, z: Tensor, norm: BatchNorm, weight: Tensor, y: Tensor, coef: Tensor | None, d_h: Tensor | None
    ) -> EndResult:
        acc_dtype, one = norm.mean.dtype, torch.ones_like(norm.mean)
        z_map = z.permute(0, 3, 1, 2)
        h = _flat(F.batch_norm(z_map, norm.mean, one, norm.scale, norm.beta, eps=0.0).relu_().permute(0, 2, 3, 1))
        own_weight = weight.to(h.dtype)
        r = torch.addmm(_flat(y), h, own_weight.t(), beta=-1)
        squared_error = torch.linalg.vector_norm(r.view(len(z), -1), dim=1, dtype=acc_dtype).square_()
        if coef is None or d_h is None:
            return EndResult(squared_error, None, None, None)
        r.view(len(z), -1).mul_(coef.to(r.dtype)[:, None])
        torch.ops.aten.threshold_backward(r @ own_weight, h, 0, grad_input=_flat(d_h))
        # with a standard deviation of one these are the sums that are wanted
        _, sum_dz, sum_d = torch.ops.aten.native_batch_norm_backward(
            d_h.permute(0, 3, 1, 2), z_map, one, None, None, norm.mean, one, True, 0.0, [False, True, True]
        )
        return EndResult(squared_error, (r.t() @ h).to(acc_dtype), sum_d, sum_dz)


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
