"""The criterion's stages in plain PyTorch: what every backend's are tested against in fp64, and judged by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semckd_kernels.stages.interface import EndResult, TorchMatrices


def rows(x: Tensor) -> Tensor:
    """``[B, h, w, C]`` as ``[P, C]`` in the wide type."""
    return x.flatten(0, 2).to(torch.promote_types(x.dtype, torch.float32))


def as_map(x: Tensor) -> Tensor:
    """``[B, h, w, C]`` as ``[B, C, h, w]`` in the wide type."""
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
        weight = self.rounded(weight)
        h = self.rounded(torch.relu((rows(z) - mean) * scale + beta))
        r = h @ weight.t() - rows(y)
        squared_error = r.square().view(len(z), -1).sum(1)
        if coef is None or d_h is None:
            return EndResult(squared_error, None, None, None)
        d_r = self.rounded(coef.repeat_interleave(len(r) // len(coef))[:, None] * r)
        d = (d_r @ weight) * (h > 0)
        d_h.copy_(d.view_as(d_h))
        return EndResult(squared_error, d_r.t() @ h, d.sum(0), (d * (rows(z) - mean)).sum(0))

    def conv3x3_backward(
        self, h: Tensor, weight: Tensor, z: Tensor, d_h2: Tensor, a: Tensor, b: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        d_z = as_map(self.rounded(a * rows(d_h2) + b * rows(z) + c).view(z.shape))
        wide_weight = self.rounded(weight).to(d_z.dtype)
        d_map = torch.nn.grad.conv2d_input(as_map(h).shape, wide_weight, d_z, padding=1)
        d_h1 = d_map.permute(0, 2, 3, 1).to(h.dtype).contiguous()
        d_weight = torch.empty_like(wide_weight)
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
        self, h: Tensor, weight: Tensor, z: Tensor, d_h2: Tensor, a: Tensor, b: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        d_h1, d_weight = super().conv3x3_backward(h, weight, z, d_h2, a, b, c)
        # within fp16's range, and rounded as bf16 and fp16 are
        return d_h1, self.rounded(d_weight / 256) * 256
