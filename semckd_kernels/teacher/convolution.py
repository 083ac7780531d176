"""A convolution that does what followed it: BatchNorm in its weights, addition and ReLU on the way out."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends.cpu import frozen

_CUDNN_TYPES = (torch.float32, torch.float16, torch.bfloat16)
# devices and types whose cuDNN has refused
_refused: set[tuple[torch.device, torch.dtype]] = set()


class FrozenConv2d(nn.Conv2d):
    """``relu(conv(x) + residual)``, the ReLU and the residual where there are any, with constant weights.

    Made of a convolution by :meth:`take_over`. On the CPU, 3x3 convolutions of stride 1 are ours
    (``csrc/cpu/winograd``), with weights that are transformed once: see :mod:`semckd_kernels.backends.cpu.frozen`. On
    an NVIDIA GPU cuDNN adds and clips within the convolution. Gradients of inputs are as ever.
    """

    relu: bool
    # of the weight at `_version_seen`; in no state dict
    transformed: Tensor | None
    _version_seen: int | None

    @classmethod
    @torch.no_grad()
    def take_over(cls, conv: nn.Conv2d, norm: nn.Module | None, relu: bool) -> None:
        """Turns a convolution into a :class:`FrozenConv2d` that does a BatchNorm as well, which becomes an identity.

        Both stay the objects that they are: whatever refers to them, or hooks them, goes on to do so.
        """
        if norm is not None:
            scale, shift = _scale_and_shift(norm)
            # an own one, which others do not share; memory formats stay
            weight = torch.empty_like(conv.weight).copy_(conv.weight.double() * scale.view(-1, 1, 1, 1))
            bias = shift if conv.bias is None else conv.bias.double() * scale + shift
            conv.weight = nn.Parameter(weight, requires_grad=False)
            conv.bias = nn.Parameter(bias.to(weight), requires_grad=False)
            _become_folded(norm)
        conv.__class__ = cls
        assert isinstance(conv, cls)
        conv.relu = relu
        conv.register_buffer("transformed", None, persistent=False)
        conv._transform()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        kind = x.device.type
        if not torch.compiler.is_compiling() and self._version_seen != _version(self.weight):
            self._transform()
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        elif x.dtype != self.weight.dtype:
            return self._plain(x, residual)
        if x.dim() != 4:
            return self._plain(x, residual)
        needs_gradient = x.requires_grad or (residual is not None and residual.requires_grad)
        if torch.is_grad_enabled() and needs_gradient:
            return self._plain(x, residual)
        if residual is not None and (residual.dtype != x.dtype or residual.shape != self._shape_of_result(x)):
            return self._plain(x, residual)
        if kind == "cpu" and self.transformed is not None and frozen.serves(x):
            return frozen.convolve(x, self.transformed, self.out_channels, self.bias, residual, self.relu)
        if kind == "cuda" and self.relu and self._is_for_cudnn(x):
            return self._by_cudnn(x, residual)
        return self._plain(x, residual)

    def _plain(self, x: Tensor, residual: Tensor | None) -> Tensor:
        out = self._conv_forward(x, self.weight, self.bias)
        if residual is not None:
            fits = residual.shape == out.shape and residual.dtype == out.dtype
            out = out.add_(residual) if fits else out + residual
        return F.relu_(out) if self.relu else out

    def _is_for_cudnn(self, x: Tensor) -> bool:
        usable = torch.version.cuda is not None and torch.backends.cudnn.enabled
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        return usable and plain and x.dtype in _CUDNN_TYPES and (x.device, x.dtype) not in _refused

    def _by_cudnn(self, x: Tensor, residual: Tensor | None) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype) if self.bias is not None else None
        options: Any = bias, self.stride, self.padding, self.dilation, self.groups
        try:
            if residual is None:
                return torch.cudnn_convolution_relu(x, weight, *options)
            return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, *options)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # not every GPU has a kernel for every type
            _refused.add((x.device, x.dtype))
            first = str(error).splitlines()[0]
            warnings.warn(f"prepare_teacher: cuDNN does not fuse ReLUs of {x.dtype} here ({first})", stacklevel=2)
            return self._plain(x, residual)

    def _shape_of_result(self, x: Tensor) -> tuple[int, ...] | None:
        """Of padding by numbers."""
        if isinstance(self.padding, str):
            return None
        sizes = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return (len(x), self.out_channels, *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes))

    @torch.no_grad()
    def _transform(self) -> None:
        self._version_seen = _version(self.weight)
        self.transformed = frozen.transform(self.weight) if frozen.may_serve(self) else None

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenConv2d:
        # made anew, of the weight in its new type
        self.transformed = None
        super()._apply(fn, recurse)
        self._transform()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # its order is that of this machine's instruction set
        return {**self.__dict__, "_buffers": {**self._buffers, "transformed": None}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._transform()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._transform()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}{', relu=True' if self.relu else ''}"


class FoldedNorm(nn.Identity):
    """What a BatchNorm becomes that is folded into the convolution before it."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # also where `strict` is False: the convolution's weights would miss what is in these
        if found := next((name for name in state_dict if name.startswith(prefix)), None):
            arguments[-1].append(f"'{found}' is folded into a convolution: load weights before prepare_teacher")


def _become_folded(norm: nn.Module) -> None:
    norm._parameters.clear()
    norm._buffers.clear()
    norm.__class__ = FoldedNorm


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A BatchNorm in eval mode as ``scale * x + shift``, in fp64."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _version(x: Tensor) -> int | None:
    """How often a tensor was written to, where that is counted."""
    return None if x.is_inference() else x._version
