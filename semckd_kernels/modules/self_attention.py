"""The drop-in for the reference module that computes SemCKD's attention and projections, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import FLOAT_TYPES


class SimilarityEmbedding(nn.Module):
    """Query or key of one layer: ``Linear(Bq -> 2d)``, ReLU, ``Linear(2d -> d)``, division by the L2 norm."""

    def __init__(self, batch_size: int, dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(batch_size, 2 * dim)
        self.linear2 = nn.Linear(2 * dim, dim)

    def forward(self, similarity: Tensor) -> Tensor:
        """similarity ``[B, Bq]`` -> ``[B, d]``, in the similarity's type whatever that of the parameters."""

        def linear(x: Tensor, layer: nn.Linear) -> Tensor:
            return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))

        x = linear(F.relu(linear(similarity, self.linear1)), self.linear2)
        norm = x.norm(dim=1, keepdim=True)
        # a zero row stays zero, with a finite gradient
        return x / torch.where(norm == 0, torch.ones_like(norm), norm)


class Projection(nn.Module):
    """Student map to teacher map: conv1x1, BatchNorm, ReLU, conv3x3, BatchNorm, ReLU, conv1x1, no biases."""

    def __init__(self, s_channels: int, t_channels: int) -> None:
        super().__init__()
        middle = 2 * t_channels
        self.regressor = nn.Sequential(
            nn.Conv2d(s_channels, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, middle, 3, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, t_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.regressor(x)
        return projected


class SelfA(nn.Module):
    r"""Attention over teacher layers, and all projections, as the reference module of the same name.

    Similarity of samples within a layer, query and key from it, attention between layers:

    .. math::
        G_l = R(F_l) R(F_l)^T, \quad q_{bi} = \mathrm{MLP}_i(G^s_i[b]), \quad k_{bj} = \mathrm{MLP}_j(G^t_j[b]), \quad
        \alpha_{bi\cdot} = \mathrm{softmax}_j \langle q_{bi}, k_{bj} \rangle

    and for each pair the projection of the student's map to the teacher's channels, at the smaller of the two
    resolutions (height and width each on its own).

    Args:
        s_len, t_len: numbers S, T of student and teacher layers.
        input_channel: batch size Bq that the attention is built for. Smaller batches are served as well (their
            similarities are padded with zeros), larger ones are an error.
        s_n, s_t: channels of the student's and the teacher's maps.
        factor: the attention's width is ``d = max(Bq // factor, 1)``.
        class_token: token maps ``[B, 1 + N, C]`` begin with a class token, which is dropped.

    Call:
        ``self_attention(feat_s, feat_t) -> (s_value, f_target, weight)``: lists of S and T maps ``[B, c, h, w]``,
        or tokens ``[B, N, c]`` with N a square number. ``s_value[i][j]`` and ``f_target[i][j]`` are
        ``[B, C_j, h_ij, w_ij]``, ``weight`` is ``[B, S, T]``, fp32 (fp64 for fp64 maps) also under autocast, since
        similarities of ordinary activations overflow fp16.

    State dicts have the names of the authors' first code base (``query_weight0.linear1.weight``,
    ``regressor00.regressor.0.weight``, ...), and load both that one's and those of their later one. Where
    ``regressor{i}{j}`` would name two pairs (from 12 x 11 layers on) it is ``regressor{i}_{j}``.

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

    def __init__(
        self,
        s_len: int,
        t_len: int,
        input_channel: int,
        s_n: Sequence[int],
        s_t: Sequence[int],
        factor: int = 4,
        *,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("s_len", s_len), ("t_len", t_len), ("input_channel", input_channel), ("factor", factor)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, channels, length in (("s_n", s_n, s_len), ("s_t", s_t, t_len)):
            if len(channels) != length or min(channels) < 1:
                raise ValueError(f"{name} must be {length} positive numbers of channels, got {list(channels)}")
        self.s_len, self.t_len = s_len, t_len
        self.batch_size = input_channel
        self.s_n, self.s_t = list(s_n), list(s_t)
        self.class_token = class_token
        dim = max(input_channel // factor, 1)
        for i in range(s_len):
            self.add_module(f"query_weight{i}", SimilarityEmbedding(input_channel, dim))
        for j in range(t_len):
            self.add_module(f"key_weight{j}", SimilarityEmbedding(input_channel, dim))
        self._projection_names = _projection_names(s_len, t_len)
        for (i, j), name in self._projection_names.items():
            self.add_module(name, Projection(s_n[i], s_t[j]))
        self.register_load_state_dict_pre_hook(_translate_checkpoint)

    def forward(
        self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]
    ) -> tuple[list[list[Tensor]], list[list[Tensor]], Tensor]:
        feat_s, feat_t = self._check(feat_s, feat_t)
        weight = self._attention(feat_s, feat_t)
        s_value: list[list[Tensor]] = []
        f_target: list[list[Tensor]] = []
        for i, f_s in enumerate(feat_s):
            s_value.append([])
            f_target.append([])
            for j, f_t in enumerate(feat_t):
                size = min(f_s.shape[2], f_t.shape[2]), min(f_s.shape[3], f_t.shape[3])
                project = self.get_submodule(self._projection_names[i, j])
                s_value[i].append(project(_pool(f_s, size)))
                f_target[i].append(_pool(f_t, size))
        return s_value, f_target, weight

    def _attention(self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]) -> Tensor:
        # all of it in full precision: an fp16 similarity overflows, and so would the products that follow it
        with torch.autocast(feat_s[0].device.type, enabled=False):
            queries = [self._embed(f"query_weight{i}", f) for i, f in enumerate(feat_s)]
            keys = [self._embed(f"key_weight{j}", f) for j, f in enumerate(feat_t)]
            energy = torch.bmm(torch.stack(queries, 1), torch.stack(keys, 2))
            return torch.softmax(energy, -1)

    def _embed(self, name: str, feature: Tensor) -> Tensor:
        rows = feature.flatten(1).to(torch.promote_types(feature.dtype, torch.float32))
        similarity = F.pad(rows @ rows.t(), (0, self.batch_size - rows.shape[0]))
        embedded: Tensor = self.get_submodule(name)(similarity)
        return embedded

    def _check(self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Checked maps ``[B, c, h, w]``."""
        checked: list[list[Tensor]] = []
        for name, features, channels in (("feat_s", feat_s, self.s_n), ("feat_t", feat_t, self.s_t)):
            if not isinstance(features, (list, tuple)):
                raise TypeError(f"{name} must be a list of tensors, got {type(features).__name__}")
            if len(features) != len(channels):
                raise ValueError(f"{name} must hold {len(channels)} maps, got {len(features)}")
            maps = [as_map(x, f"{name}[{n}]", self.class_token) for n, x in enumerate(features)]
            for n, (x, expected) in enumerate(zip(maps, channels, strict=True)):
                if x.shape[1] != expected:
                    raise ValueError(f"{name}[{n}] must have {expected} channels, got {list(features[n].shape)}")
            checked.append(maps)
        first = checked[0][0]
        if first.shape[0] > self.batch_size:
            raise ValueError(
                f"the attention was built for batches of up to input_channel={self.batch_size} samples, "
                f"got {first.shape[0]}"
            )
        for name, maps in (("feat_s", checked[0]), ("feat_t", checked[1])):
            for n, x in enumerate(maps):
                if x.shape[0] != first.shape[0] or x.device != first.device:
                    raise ValueError(
                        f"{name}[{n}] must have the batch size and device of feat_s[0], {first.shape[0]} on "
                        f"{first.device}, got {x.shape[0]} on {x.device}"
                    )
        return checked[0], checked[1]


def as_map(x: Tensor, name: str, class_token: bool) -> Tensor:
    """A map ``[B, c, h, w]`` as it is; tokens ``[B, N, c]`` (N square) as a map ``[B, c, sqrt N, sqrt N]``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {x.dtype}")
    if x.dim() == 4:
        if 0 in x.shape[1:]:
            raise ValueError(f"{name} must have at least one element a sample, got {list(x.shape)}")
        return x
    if x.dim() != 3:
        raise ValueError(f"{name} must be a map [B, c, h, w] or tokens [B, N, c], got {list(x.shape)}")
    tokens = x[:, 1:] if class_token else x
    side = math.isqrt(tokens.shape[1])
    if side == 0 or side * side != tokens.shape[1]:
        hint = "" if class_token else "; class_token=True drops a leading class token"
        raise ValueError(f"{name} must hold a square number of tokens, got {tokens.shape[1]}{hint}")
    return tokens.transpose(1, 2).reshape(x.shape[0], x.shape[2], side, side)


def _pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)


def _projection_names(s_len: int, t_len: int) -> dict[tuple[int, int], str]:
    pairs = [(i, j) for i in range(s_len) for j in range(t_len)]
    names = {(i, j): f"regressor{i}{j}" for i, j in pairs}
    if len(set(names.values())) < len(pairs):
        names = {(i, j): f"regressor{i}_{j}" for i, j in pairs}
    return names


def _translate_checkpoint(module: SelfA, state: dict[str, Any], prefix: str, *_args: Any) -> None:
    """Renames what the reference code bases call otherwise. Runs on a copy of the caller's state dict."""
    is_toolbox = any(key.startswith(f"{prefix}query_0.") for key in state)
    if is_toolbox:
        renamed = {f"query_{i}": f"query_weight{i}" for i in range(module.s_len)}
        renamed |= {f"key_{j}": f"key_weight{j}" for j in range(module.t_len)}
        for key in list(state):
            head, _, tail = key.removeprefix(prefix).partition(".")
            if key.startswith(prefix) and head in renamed:
                state[f"{prefix}{renamed[head]}.{tail}"] = state.pop(key)
    # where two pairs had one name they also shared one module: both get its values
    shared = {(i, j): f"regressor{i}{j}" for i, j in module._projection_names}
    for pair, name in module._projection_names.items():
        for tail in module.get_submodule(name).state_dict():
            old, new = f"{prefix}{shared[pair]}.{tail}", f"{prefix}{name}.{tail}"
            if new not in state and old in state:
                state[new] = state[old]
    known = {prefix + key for key in module.state_dict()}
    for key in list(state):
        is_shared = key.removeprefix(prefix).partition(".")[0] in shared.values()
        # what is left of shared names, and the later code base's tensors that its forward never uses
        if key.startswith(prefix) and is_shared and key not in known and (is_toolbox or _is_renamed(module)):
            del state[key]


def _is_renamed(module: SelfA) -> bool:
    return any("_" in name for name in module._projection_names.values())
