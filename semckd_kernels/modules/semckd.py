"""The whole criterion in one module."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, overload

import torch
from torch import Tensor, nn

from ..backends import check_name, reference, resolve
from ..criterion import Call, criterion
from ..derivatives import is_forward_mode, is_transformed
from ..dtypes import acc_dtype
from . import contract
from .arguments import Channels, channel_list, criterion_options, flag, positive_number, whole_number
from .cross_layer import CrossLayerModule
from .placement import check_placement

FORWARD_MODE = (
    "the gradients of the fused criterion are computed for backward() alone, and forward-mode derivatives "
    "(torch.func.jvp, dual numbers) are not; use backend='reference' where you need one"
)
TRANSFORMED = "a torch.func transform (grad, vjp, vmap, ...) is at work, which its kernels know nothing of"


class SemCKDOutput(NamedTuple):
    """What :class:`SemCKD` returns; ``weight`` and ``pair_mse`` are detached."""

    loss: Tensor  # scalar
    weight: Tensor  # [B, S, T], the attention
    pair_mse: Tensor  # [B, S, T]


class SemCKD(CrossLayerModule):
    r"""SemCKD from feature maps to the loss, in one operator that keeps nothing but finished gradients.

    Similarity of samples within a layer, query and key from it, attention between layers:

    .. math::
        G_l = R(F_l) R(F_l)^T, \quad q_{bi} = \mathrm{MLP}_i(G^s_i[b]), \quad k_{bj} = \mathrm{MLP}_j(G^t_j[b]), \quad
        \alpha_{bi\cdot} = \mathrm{softmax}_j \langle q_{bi}, k_{bj} \rangle / \mathrm{soft}

    and the squared error of each pair's projection (conv1x1, BatchNorm, ReLU, conv3x3, BatchNorm, ReLU, conv1x1, at the
    smaller of the two resolutions, height and width each on its own), weighted by it:

    .. math::
        L = \frac{1}{B S} \sum_{b,i,j} \alpha_{bij} \frac{1}{N_{ij}} \lVert P_{ij}(F^s_i)[b] - F^t_j[b] \rVert^2

    Takes the place of the reference's attention module and loss module together; state dicts are those of its attention
    module (and of :class:`semckd_kernels.SelfA`), which holds all parameters.

    Args:
        batch_size: Bq, the batch size that the attention is built for. Smaller batches are served as well (their
            similarities are padded with zeros), larger ones are an error.
        s_n, t_n: channels of the S student and T teacher maps, in any ordered collection or iterator.
        factor: the attention's width is ``d = max(Bq // factor, 1)``, 4 unless given.
        soft: temperature of the attention, 1.0 unless given.
        backend: None takes the fastest that serves the maps; ``"cpu"``, ``"triton"``, or ``"reference"``, which is
            plain PyTorch, layer by layer and pair by pair. See :func:`semckd_kernels.available_backends`.
        class_token: token maps ``[B, 1 + N, C]`` begin with a class token, which is dropped.

    Options are best given by name. By position they may come as ``factor, soft, backend``, or as ``soft, factor`` of
    the authors' later code, if their types tell (4 and 1.0); a single whole number could be either and is refused.

    Call:
        ``criterion(feat_s, feat_t) -> SemCKDOutput(loss, weight, pair_mse)`` with lists of S and T maps
        ``[B, c, h, w]``, or tokens ``[B, N, c]`` with N a square number, of any strides (channels_last is spared a
        copy). ``loss`` is a scalar, ``weight`` and ``pair_mse`` are ``[B, S, T]`` and detached. All three are fp32
        (fp64 for fp64 maps).

    Gradients reach the student's maps and all parameters; the teacher's maps are detached. They are computed in the
    forward pass, so that ``backward()`` is a multiplication; it may be called again (``retain_graph=True``) and gives
    the same gradients. A second derivative, and forward mode, need ``backend="reference"``; under a transform of
    ``torch.func`` the reference path serves. Under ``torch.no_grad()`` nothing is computed but the loss.

    Maps are computed in autocast's type where autocast is on, else in that of parameters and maps. Sums, similarities,
    attention and BatchNorm's statistics are fp32 (fp64 for fp64 maps) throughout, and gradients of fp16 maps stay fp32
    until the upstream gradient has scaled them. The BatchNorms follow ``train()`` and ``eval()`` as ``nn.BatchNorm2d``.

    The kernels compute what the modules compute as they were made. Each call looks whether they still are: where one
    was pruned, parametrized, hooked, replaced, converted (SyncBatchNorm, GroupNorm) or given other settings, the
    reference path calls the modules instead, with one warning that names the first of them. BatchNorms may be frozen,
    and differ in eps and momentum.

    Raises:
        ValueError, TypeError: numbers of layers, channels, batch sizes, shapes or types do not fit, or a parameter is
            on another device, without values, or one of shards; the message says which and what came.
        RuntimeError: the backend asked for cannot serve these maps or these modules, or a forward-mode derivative is
            asked for.

    Example:
        >>> import torch, semckd_kernels as sk
        >>> criterion = sk.SemCKD(batch_size=16, s_n=[8, 16], t_n=[12, 24])
        >>> feat_s = [torch.randn(16, 8, 8, 8, requires_grad=True), torch.randn(16, 16, 4, 4, requires_grad=True)]
        >>> feat_t = [torch.randn(16, 12, 8, 8), torch.randn(16, 24, 4, 4)]
        >>> loss, weight, pair_mse = criterion(feat_s, feat_t)
        >>> loss.backward()
        >>> weight.shape, feat_s[0].grad.shape
        (torch.Size([16, 2, 2]), torch.Size([16, 8, 8, 8]))

    Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021.
    """

    if TYPE_CHECKING:

        def __call__(self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]) -> SemCKDOutput: ...

    @overload
    def __init__(
        self,
        batch_size: SupportsIndex,
        s_n: Channels,
        t_n: Channels,
        *,
        factor: SupportsIndex = 4,
        soft: float = 1.0,
        backend: str | None = None,
        class_token: bool = False,
    ) -> None: ...

    @overload
    def __init__(
        self,
        batch_size: SupportsIndex,
        s_n: Channels,
        t_n: Channels,
        factor: SupportsIndex,
        soft: float,
        backend: str | None = None,
        *,
        class_token: bool = False,
    ) -> None: ...
    def __init__(
        self,
        batch_size: Any,
        s_n: Any,
        t_n: Any,
        *options: Any,
        factor: Any = None,
        soft: Any = None,
        backend: Any = None,
        class_token: Any = False,
    ) -> None:
        factor, soft, backend = criterion_options(options, factor, soft, backend)
        super().__init__(
            whole_number("batch_size", batch_size),
            channel_list("s_n", s_n),
            channel_list("t_n", t_n),
            whole_number("factor", factor),
            positive_number("soft", soft),
            flag("class_token", class_token),
            "batch_size",
        )
        check_name(backend, "backend")
        self.backend = backend

    def forward(self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]) -> SemCKDOutput:
        feat_s, feat_t = self.check_maps(feat_s, feat_t)
        feat_t = [x.detach() for x in feat_t]
        device = feat_s[0].device
        backend = resolve(self.backend, device.type, "criterion")
        fault, parts = contract.look(self)
        if backend != "reference":
            if is_forward_mode(chain(feat_s, self.parameters())):
                raise RuntimeError(FORWARD_MODE)
            reason = TRANSFORMED if is_transformed() else fault
            if reason is not None:
                contract.call_modules_instead(self, backend, self.backend, reason)
                backend = "reference"
        check_placement(self, parts, device)
        if len(feat_s[0]) == 0:
            return self._empty_batch(feat_s)
        self.check_statistics(feat_s, feat_t)
        if backend == "reference" or parts is None:
            return self._reference(feat_s, feat_t)
        return self._fused(feat_s, feat_t, parts, backend)

    def _fused(
        self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor], parts: contract.Parts, backend: str
    ) -> SemCKDOutput:
        given = (*feat_s, *parts.embedding, *parts.projection)
        call = Call(
            feat_s,
            feat_t,
            parts.embedding,
            parts.projection,
            parts.running,
            soft=self.soft,
            eps=[norm.eps for norm in parts.norms],
            batch_statistics=[norm.training for norm in parts.norms],
            map_dtype=_map_dtype(feat_s[0].device.type, [*feat_s, *feat_t, parts.convolutions[0]]),
            need_grad=torch.is_grad_enabled() and any(x.requires_grad for x in given),
            backend=backend,
        )
        results = criterion(call)
        _update_running(parts.norms, results.statistics)
        return SemCKDOutput(results.loss, results.weight, results.pair_mse)

    def extra_repr(self) -> str:
        return f"batch_size={self.batch_size}, soft={self.soft}, backend={self.backend!r}"

    def _reference(self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]) -> SemCKDOutput:
        mlps = self.embeddings()
        projections = [[self.projection(i, j) for j in range(self.t_len)] for i in range(self.s_len)]
        loss, weight, mse = reference.semckd(
            feat_s, feat_t, mlps[: self.s_len], mlps[self.s_len :], projections, self.batch_size, self.soft
        )
        return SemCKDOutput(loss, weight.detach(), mse.detach())

    def _empty_batch(self, feat_s: Sequence[Tensor]) -> SemCKDOutput:
        """A zero loss whose gradients are zeros, of every parameter."""
        acc = acc_dtype(feat_s[0].dtype)
        loss = sum(x.flatten()[:0].sum().to(acc) for x in (*feat_s, *self.parameters()))
        nothing = feat_s[0].new_empty((0, self.s_len, self.t_len), dtype=acc)
        return SemCKDOutput(loss, nothing, nothing.clone())  # type: ignore[arg-type]


def _map_dtype(device: str, tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = tensors[0].dtype
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return dtype


def _update_running(norms: Sequence[nn.BatchNorm2d], statistics: Sequence[Tensor]) -> None:
    """Moves running statistics towards the batch's, as ``nn.BatchNorm2d`` does.

    Args:
        norms: all of them; those in eval mode stay as they are.
        statistics: the batch's mean and variance, of those in training mode.
    """
    moving = [norm for norm in norms if norm.training]
    if not moving:
        return
    with torch.no_grad():
        counters: list[Any] = [norm._buffers["num_batches_tracked"] for norm in moving]
        torch._foreach_add_(counters, 1)
        old: list[Any] = [norm._buffers[name] for norm in moving for name in ("running_mean", "running_var")]
        new = [x.to(y.dtype) for x, y in zip(statistics, old, strict=True)]
        momenta = {norm.momentum for norm in moving}
        common = momenta.pop()
        if not momenta and common is not None:
            torch._foreach_lerp_(old, new, common)
            return
        steps = [(norm.momentum, counter) for norm, counter in zip(moving, counters, strict=True) for _ in range(2)]
        for x, value, (momentum, counter) in zip(old, new, steps, strict=True):
            # without a momentum, the mean over all batches so far
            step = 1 / counter if momentum is None else torch.full_like(x, momentum)
            x.lerp_(value, step.to(x))
