"""Checks of the maps that the modules are called with: tokens become maps, the rest is refused in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..dtypes import FLOAT_NAMES, FLOAT_TYPES
from ..pair_loss.checks import explain_kind, is_ordinary


def check_features(name: str, features: Sequence[Tensor], channels: Sequence[int], class_token: bool) -> list[Tensor]:
    """One network's maps as ``[B, c, h, w]``.

    Raises:
        TypeError, ValueError: their number, shapes, channels or types are wrong.
    """
    if not isinstance(features, (list, tuple)):
        raise TypeError(f"{name} must be a list of tensors, got {type(features).__name__}")
    if len(features) != len(channels):
        raise ValueError(f"{name} must hold {len(channels)} maps, got {len(features)}")
    pairs = zip(features, channels, strict=True)
    return [as_map(x, f"{name}[{n}]", expected, class_token) for n, (x, expected) in enumerate(pairs)]


def check_together(feat_s: Sequence[Tensor], feat_t: Sequence[Tensor], batch_size: int, size_name: str) -> None:
    """Raises ValueError unless all maps have one batch size, of at most ``batch_size``, and one device."""
    first = feat_s[0]
    if first.shape[0] > batch_size:
        raise ValueError(
            f"the attention was built for batches of up to {size_name}={batch_size} samples, got {first.shape[0]}"
        )
    for name, maps in (("feat_s", feat_s), ("feat_t", feat_t)):
        for n, x in enumerate(maps):
            if x.shape[0] != first.shape[0] or x.device != first.device:
                raise ValueError(
                    f"{name}[{n}] must have the batch size and device of feat_s[0], {first.shape[0]} on "
                    f"{first.device}, got {x.shape[0]} on {x.device}"
                )


def as_map(x: Tensor, name: str, channels: int, class_token: bool) -> Tensor:
    """A map ``[B, c, h, w]`` as it is; tokens ``[B, N, c]`` (N square) as a map ``[B, c, sqrt N, sqrt N]``."""
    if not is_ordinary(x):
        explain_kind(name, x)
    if x.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} must be {FLOAT_NAMES}, got {x.dtype}")
    if x.dim() == 4:
        if 0 in x.shape[1:]:
            raise ValueError(f"{name} must have at least one element a sample, got {list(x.shape)}")
        if x.shape[1] != channels:
            raise ValueError(f"{name} must have {channels} channels, got {list(x.shape)}")
        return x
    if x.dim() != 3:
        hint = "; fold the depth into the height with x.flatten(2, 3)" if x.dim() == 5 else ""
        raise ValueError(f"{name} must be a map [B, c, h, w] or tokens [B, N, c], got {list(x.shape)}{hint}")
    return _tokens_as_map(x, name, channels, class_token)


def _tokens_as_map(x: Tensor, name: str, channels: int, class_token: bool) -> Tensor:
    if x.shape[2] != channels:
        # a map of one spatial axis has its channels in front
        hint = "; a map [B, c, l] becomes one of height 1 with x.unsqueeze(2)" if x.shape[1] == channels else ""
        raise ValueError(
            f"{name} must have {channels} channels, as tokens [B, N, {channels}] or a map [B, {channels}, h, w], got "
            f"{list(x.shape)}{hint}"
        )
    tokens = x[:, 1:] if class_token else x
    count = tokens.shape[1]
    side = math.isqrt(count)
    if side == 0 or side * side != count:
        advice = _advice(x.shape[1], class_token)
        raise ValueError(f"{name} must hold a square number of tokens, got {count}{advice} (shape {list(x.shape)})")
    return tokens.transpose(1, 2).reshape(x.shape[0], x.shape[2], side, side)


def _advice(count: int, class_token: bool) -> str:
    """The way to a square number of tokens, for a count that is none."""
    side = math.isqrt(count)
    prefix = count - side * side
    if count <= class_token:
        return ""
    if prefix == 1 and not class_token:
        return "; class_token=True drops a leading class token"
    if prefix == 0 and class_token:
        return "; without a class token it needs class_token=False"
    return (
        f"; drop leading tokens that are no patches yourself (x[:, {prefix}:] with class_token=False leaves "
        f"{side} x {side}), and give patches that are no square as a map [B, c, h, w]"
    )
