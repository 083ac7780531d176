"""The parameters of SemCKD's attention and projections, their checkpoints, and checks of the maps they are given."""

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


class CrossLayerModule(nn.Module):
    """Query and key MLPs of all layers and the projections of all pairs, under the reference's names.

    State dicts have the names of the authors' first code base (``query_weight0.linear1.weight``,
    ``regressor00.regressor.0.weight``, ...), and load both that one's and those of their later one. Where
    ``regressor{i}{j}`` would name two pairs (from 12 x 11 layers on) it is ``regressor{i}_{j}``.

    Args:
        batch_size: Bq, the batch size the attention is built for.
        s_n, t_n: channels of the student's and the teacher's maps.
        factor: the attention's width is ``d = max(Bq // factor, 1)``.
        class_token: token maps begin with a class token, which is dropped.
        names: what the constructor calls ``batch_size`` and ``t_n``, for messages.
    """

    def __init__(
        self,
        batch_size: int,
        s_n: Sequence[int],
        t_n: Sequence[int],
        factor: int,
        class_token: bool,
        names: tuple[str, str],
    ) -> None:
        super().__init__()
        for name, value in ((names[0], batch_size), ("factor", factor)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, channels in (("s_n", s_n), (names[1], t_n)):
            if not channels or min(channels) < 1:
                count = f"{len(channels)} " if channels else ""
                raise ValueError(f"{name} must be {count}positive numbers of channels, got {list(channels)}")
        self.batch_size, self._batch_size_name = batch_size, names[0]
        self.s_n, self.t_n = list(s_n), list(t_n)
        self.s_len, self.t_len = len(self.s_n), len(self.t_n)
        self.class_token = class_token
        dim = max(batch_size // factor, 1)
        for i in range(self.s_len):
            self.add_module(f"query_weight{i}", SimilarityEmbedding(batch_size, dim))
        for j in range(self.t_len):
            self.add_module(f"key_weight{j}", SimilarityEmbedding(batch_size, dim))
        self._projection_names = _projection_names(self.s_len, self.t_len)
        for (i, j), name in self._projection_names.items():
            self.add_module(name, Projection(self.s_n[i], self.t_n[j]))
        self.register_load_state_dict_pre_hook(_translate_checkpoint)

    def embeddings(self) -> list[SimilarityEmbedding]:
        """The MLPs of all layers, students first."""
        names = [f"query_weight{i}" for i in range(self.s_len)] + [f"key_weight{j}" for j in range(self.t_len)]
        return [self.get_submodule(name) for name in names]  # type: ignore[misc]

    def projection(self, i: int, j: int) -> Projection:
        """The projection of pair (i, j)."""
        return self.get_submodule(self._projection_names[i, j])  # type: ignore[return-value]

    def check_maps(self, feat_s: Sequence[Tensor], feat_t: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Checked maps ``[B, c, h, w]``."""
        checked: list[list[Tensor]] = []
        for name, features, channels in (("feat_s", feat_s, self.s_n), ("feat_t", feat_t, self.t_n)):
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
                f"the attention was built for batches of up to {self._batch_size_name}={self.batch_size} samples, "
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


def _projection_names(s_len: int, t_len: int) -> dict[tuple[int, int], str]:
    pairs = [(i, j) for i in range(s_len) for j in range(t_len)]
    names = {(i, j): f"regressor{i}{j}" for i, j in pairs}
    if len(set(names.values())) < len(pairs):
        names = {(i, j): f"regressor{i}_{j}" for i, j in pairs}
    return names


def _translate_checkpoint(module: CrossLayerModule, state: dict[str, Any], prefix: str, *_args: Any) -> None:
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


def _is_renamed(module: CrossLayerModule) -> bool:
    return any("_" in name for name in module._projection_names.values())
