"""The drop-in for the reference module that computes SemCKD's attention and projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import reference
from ..backends.reference import check_projection
from ..dtypes import acc_dtype
from ..stages import attention
from ..stages.records import split
from . import contract
from .arguments import Channels, attention_arguments, channel_list, flag, positive_number, whole_number
from .cross_layer import CrossLayerModule
from .placement import check_placement


class SelfA(CrossLayerModule):
    r"""Attention over teacher layers, and all projections, as the reference module of the same name.

    Similarity of samples within a layer, query and key from it, attention between layers:

    .. math::
        G_l = R(F_l) R(F_l)^T, \quad q_{bi} = \mathrm{MLP}_i(G^s_i[b]), \quad k_{bj} = \mathrm{MLP}_j(G^t_j[b]), \quad
        \alpha_{bi\cdot} = \mathrm{softmax}_j \langle q_{bi}, k_{bj} \rangle / \mathrm{soft}

    and for each pair the projection of the student's map to the teacher's channels, at the smaller of the two
    resolutions (height and width each on its own).

    Both published calls are served, told apart by the type of the second argument: ``SelfA(s_len, t_len,
    input_channel, s_n, s_t, factor=4)`` of the authors' first code base, and ``SelfA(batch_size, s_n, t_n, soft=1.0,
    factor=4)`` of their later one.

    Args:
        s_len, t_len: numbers S, T of student and teacher layers.
        input_channel (batch_size, feat_dim): batch size Bq that the attention is built for. Smaller batches are served
            as well (their similarities are padded with zeros), larger ones are an error.
        s_n, s_t (s_n, t_n): channels of the student's and the teacher's maps, in any ordered collection or iterator.
        soft: temperature of the attention, energies are divided by it.
        factor: the attention's width is ``d = max(Bq // factor, 1)``.
        class_token: token maps ``[B, 1 + N, C]`` begin with a class token, which is dropped.

    Call:
        ``self_attention(feat_s, feat_t) -> (s_value, f_target, weight)``: lists of S and T maps ``[B, c, h, w]``,
        or tokens ``[B, N, c]`` with N a square number. ``s_value[i][j]`` and ``f_target[i][j]`` are
        ``[B, C_j, h_ij, w_ij]``, ``weight`` is ``[B, S, T]``, fp32 (fp64 for fp64 maps) also under autocast, since
        similarities of ordinary activations overflow fp16.

    State dicts have the names of the authors' first code base (``query_weight0.linear1.weight``,
    ``regressor00.regressor.0.weight``, ...), and load both that one's and those of their later one, strictly;
    :meth:`toolbox_state_dict` writes the latter. Where ``regressor{i}{j}`` would name two pairs (from 12 x 11 layers
    on) it is ``regressor{i}_{j}``. Parameters are created in the order of the authors' code: a seed gives the same
    start, and an optimizer's state means the same.

    Raises:
        ValueError, TypeError: numbers of layers, channels, batch sizes, shapes or types do not fit; the message
            says which and what came.

    Example:
        >>> import torch, semckd_kernels as sk
        >>> attention = sk.SelfA(2, 2, input_channel=16, s_n=[8, 16], s_t=[12, 24])
        >>> feat_s = [torch.randn(16, 8, 8, 8), torch.randn(16, 16, 4, 4)]
        >>> feat_t = [torch.randn(16, 12, 8, 8), torch.randn(16, 24, 4, 4)]
        >>> s_value, f_target, weight = attention(feat_s, feat_t)
        >>> s_value[0][1].shape, weight.shape
        (torch.Size([16, 24, 4, 4]), torch.Size([16, 2, 2]))

    Source: Chen et al., AAAI 2021, "Semantic Calibration" and "Attention Allocation".
    """

    if TYPE_CHECKING:

        def __call__(
            self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]
        ) -> tuple[list[list[Tensor]], list[list[Tensor]], Tensor]: ...

    @overload
    def __init__(
        self,
        s_len: SupportsIndex,
        t_len: SupportsIndex,
        input_channel: SupportsIndex,
        s_n: Channels,
        s_t: Channels,
        factor: SupportsIndex = 4,
        *,
        class_token: bool = False,
    ) -> None: ...

    @overload
    def __init__(
        self,
        batch_size: SupportsIndex,
        s_n: Channels,
        t_n: Channels,
        soft: float = 1.0,
        factor: SupportsIndex = 4,
        *,
        class_token: bool = False,
    ) -> None: ...
    def __init__(self, *arguments: Any, class_token: Any = False, **named: Any) -> None:
        given = attention_arguments(arguments, named)
        is_toolbox = "s_len" not in given
        lengths: list[int | None] = [None, None]
        if not is_toolbox:
            lengths = [whole_number(name, given[name]) for name in ("s_len", "t_len")]
        size_name = "batch_size" if is_toolbox else "input_channel"
        super().__init__(
            whole_number(size_name, given["batch_size"]),
            channel_list("s_n", given["s_n"], lengths[0]),
            channel_list("t_n" if is_toolbox else "s_t", given["t_n"], lengths[1]),
            whole_number("factor", given["factor"]),
            positive_number("soft", given["soft"]),
            flag("class_token", class_token),
            size_name,
        )

    def forward(
        self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]
    ) -> tuple[list[list[Tensor]], list[list[Tensor]], Tensor]:
        feat_s, feat_t = self.check_maps(feat_s, feat_t)
        _, parts = contract.look(self)
        check_placement(self, parts, feat_s[0].device)
        if len(feat_s[0]):
            self.check_statistics(feat_s, feat_t)
        weight = self._attention(feat_s, feat_t, parts)
        pooled: dict[tuple[int, tuple[int, int]], Tensor] = {}

        def at(x: Tensor, size: tuple[int, int]) -> Tensor:
            # several pairs look at one layer at one resolution
            if x.shape[2:] == size:
                return x
            if (id(x), size) not in pooled:
                pooled[id(x), size] = F.adaptive_avg_pool2d(x, size)
            return pooled[id(x), size]

        s_value: list[list[Tensor]] = []
        f_target: list[list[Tensor]] = []
        for i, f_s in enumerate(feat_s):
            sizes = [(min(f_s.shape[2], f_t.shape[2]), min(f_s.shape[3], f_t.shape[3])) for f_t in feat_t]
            s_value.append([self.projection(i, j)(at(f_s, size)) for j, size in enumerate(sizes)])
            f_target.append([at(f_t, size) for f_t, size in zip(feat_t, sizes, strict=True)])
            for j, (value, target) in enumerate(zip(s_value[i], f_target[i], strict=True)):
                check_projection(i, j, value, target)
        return s_value, f_target, weight

    def extra_repr(self) -> str:
        return f"batch_size={self.batch_size}, soft={self.soft}"

    def _attention(self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor], parts: contract.Parts | None) -> Tensor:
        if parts is None:
            mlps = self.embeddings()
            queries, keys = mlps[: self.s_len], mlps[self.s_len :]
            return reference.attention(feat_s, feat_t, queries, keys, self.batch_size, self.soft)
        acc = acc_dtype(feat_s[0].dtype)
        # all of it in full precision: an fp16 similarity overflows, and so would the products that follow it
        with torch.autocast(feat_s[0].device.type, enabled=False):
            similarities = [attention.similarity(x.flatten(1).to(acc), acc) for x in (*feat_s, *feat_t)]
            parameters = attention.Embeddings.stack(split(attention.Embedding, parts.embedding), acc)
            return attention.allocate(similarities, parameters, self.s_len, self.soft).weight
