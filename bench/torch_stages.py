"""The criterion's stages by torch's own library, in as few passes as it takes: what CPU kernels are measured against.

Products are in the map type, as under autocast; sums come back in the wide type.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semckd_kernels.backends.cpu import vendor_conv
from semckd_kernels.stages.interface import EndResult


class TorchStages:
    """The stages of :class:`~semckd_kernels.stages.interface.Stages` that are measured."""

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
        self, h: Tensor, weight: Tensor, z: Tensor, d_h2: Tensor, a: Tensor, b: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        torch.ops.semckd_cpu.row_affine_(d_h2, z, a, b, c)
        return vendor_conv.conv3x3_backward(h, weight, d_h2)

    def end(
        self,
        z: Tensor,
        mean: Tensor,
        scale: Tensor,
        beta: Tensor,
        weight: Tensor,
        y: Tensor,
        coef: Tensor | None,
        d_h: Tensor | None,
    ) -> EndResult:
        wide, one = mean.dtype, torch.ones_like(mean)
        z_map = z.permute(0, 3, 1, 2)
        h = _flat(F.batch_norm(z_map, mean, one, scale, beta, eps=0.0).relu_().permute(0, 2, 3, 1))
        own_weight = weight.to(h.dtype)
        r = torch.addmm(_flat(y), h, own_weight.t(), beta=-1)
        squared_error = torch.linalg.vector_norm(r.view(len(z), -1), dim=1, dtype=wide).square_()
        if coef is None or d_h is None:
            return EndResult(squared_error, None, None, None)
        r.view(len(z), -1).mul_(coef.to(r.dtype)[:, None])
        torch.ops.aten.threshold_backward(r @ own_weight, h, 0, grad_input=_flat(d_h))
        # with a standard deviation of one these are the sums that are wanted
        _, sum_dz, sum_d = torch.ops.aten.native_batch_norm_backward(
            d_h.permute(0, 3, 1, 2), z_map, one, None, None, mean, one, True, 0.0, [False, True, True]
        )
        return EndResult(squared_error, (r.t() @ h).to(wide), sum_d, sum_dz)


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
