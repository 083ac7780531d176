"""Derivatives that the kernels do not have: found before anything is computed, so that none comes out as zeros."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a ``torch.func`` transform (grad, vjp, vmap, jvp, jacrev, ...) is at work."""
    return torch._C._are_functorch_transforms_active()


def is_batch_of_gradients(gradient: Tensor) -> bool:
    """Whether an upstream gradient is a batch of them, as ``is_grads_batched=True`` and vmap make it."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


def is_forward_mode(tensors: Iterable[Tensor]) -> bool:
    """Whether forward-mode derivatives are wanted of a function of ``tensors``: one of them has a tangent."""
    if forward_ad._current_level < 0:
        return False
    if is_transformed():
        # the tangent may lie below another transform's wrapper, out of sight
        return any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in tensors)
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)
