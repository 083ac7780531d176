"""Pair-loss problems in emulated device memory, and the same in fp64 by numpy: the oracle of these tests."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np
from emulation import STORAGE, Buffer, Emulation
from numpy.typing import NDArray

Array = NDArray[np.float64]

# the order of semckd::DType
DTYPES = ("float32", "float16", "bfloat16", "float64")


def narrow(values: Array, dtype: str) -> NDArray[np.generic]:
    """Rounds to nearest even, to the bits of a type."""
    if dtype != "bfloat16":
        return values.astype(STORAGE[dtype])
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widen(values: NDArray[np.generic], dtype: str) -> Array:
    if dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


class CPair(ctypes.Structure):
    """``semckd::Pair``."""

    _fields_ = (
        ("s", ctypes.c_void_p),
        ("t", ctypes.c_void_p),
        ("d_s", ctypes.c_void_p),
        ("d_t", ctypes.c_void_p),
        ("N", ctypes.c_int64),
        ("s_stride", ctypes.c_int64),
        ("t_stride", ctypes.c_int64),
        ("d_s_stride", ctypes.c_int64),
        ("d_t_stride", ctypes.c_int64),
        ("s_dtype", ctypes.c_int32),
        ("t_dtype", ctypes.c_int32),
    )


class CPairList(ctypes.Structure):
    """``semckd::PairList``."""

    _fields_ = (("pair", ctypes.POINTER(CPair)), ("Q", ctypes.c_int32), ("B", ctypes.c_int64))


class CWeighting(ctypes.Structure):
    """``semckd::Weighting``."""

    _fields_ = (("weight", ctypes.c_void_p), ("softmax", ctypes.c_bool), ("S", ctypes.c_int32), ("T", ctypes.c_int32))


@dataclass(frozen=True)
class Pair:
    """One pair of a problem.

    Attributes:
        N: elements a sample.
        s_dtype: type of the student map.
        t_dtype: type of the teacher map.
        s_gap: elements between two samples of the student map; -N for an expanded batch.
        t_gap: the same of the teacher map.
        misaligned_by: elements by which all buffers are out of alignment.
        t_misaligned_by: the same for the teacher map alone; None: as all others.
        in_place: the student's gradient is written over its map.
    """

    N: int
    s_dtype: str = "float32"
    t_dtype: str = "float32"
    s_gap: int = 0
    t_gap: int = 0
    misaligned_by: int = 0
    t_misaligned_by: int | None = None
    in_place: bool = False


@dataclass
class Maps:
    """The buffers of one pair."""

    s: Buffer
    t: Buffer
    d_s: Buffer | None
    d_t: Buffer | None
    s_stride: int
    t_stride: int
    d_s_stride: int


@dataclass
class Problem:
    """Pairs with random maps and weights, uploaded.

    Attributes:
        B: samples.
        S: student layers; there are S * T pairs.
        T: teacher layers.
        need_s: whether the student maps' gradients are asked for.
        need_t: the same of the teacher maps.
        weighted: whether there is a loss; otherwise pair errors alone.
        softmax: whether the weights are energies.
    """

    emulation: Emulation
    pairs: list[Pair]
    B: int
    S: int
    T: int
    need_s: bool = True
    need_t: bool = True
    weighted: bool = True
    softmax: bool = False
    seed: int = 0
    maps: list[Maps] = field(init=False)

    def __post_init__(self) -> None:
        assert len(self.pairs) == self.S * self.T
        self.Q = len(self.pairs)
        self.accumulator = "float64" if self.pairs[0].s_dtype == "float64" else "float32"
        rng = np.random.default_rng(self.seed)
        self.maps = [self._maps(pair, rng) for pair in self.pairs]
        shape = (self.B, self.S, self.T)
        self.set_weight(rng.standard_normal(shape) * (2 if self.softmax else 1))
        self._d_loss, self.d_loss = self._upload(np.asarray(rng.standard_normal()))
        self._d_pair_mse, self.d_pair_mse = self._upload(rng.standard_normal((self.B, self.Q)))

    def set_weight(self, weight: Array) -> None:
        self._weight, self.weight = self._upload(weight)

    def _upload(self, values: Array) -> tuple[Buffer, Array]:
        """A buffer of the accumulation type, and what its rounding leaves of the values."""
        rounded = values.astype(self.accumulator)
        return self.emulation.upload(rounded), rounded.astype(np.float64)

    def _maps(self, pair: Pair, rng: np.random.Generator) -> Maps:
        t_misaligned_by = pair.misaligned_by if pair.t_misaligned_by is None else pair.t_misaligned_by

        def map_of(dtype: str, stride: int, misaligned_by: int) -> Buffer:
            count = max(0, (self.B - 1) * stride + pair.N) if self.B else 0
            values = narrow(rng.standard_normal(count), dtype)
            return self.emulation.buffer(dtype, count, misaligned_by).fill(values)

        s_stride, t_stride = pair.N + pair.s_gap, pair.N + pair.t_gap
        s = map_of(pair.s_dtype, s_stride, pair.misaligned_by)
        t = map_of(pair.t_dtype, t_stride, t_misaligned_by)
        d_s = d_t = None
        if self.need_s:
            dense = self.B * pair.N
            d_s = s if pair.in_place else self.emulation.buffer(pair.s_dtype, dense, pair.misaligned_by)
        if self.need_t:
            d_t = self.emulation.buffer(pair.t_dtype, self.B * pair.N, t_misaligned_by)
        return Maps(s, t, d_s, d_t, s_stride, t_stride, s_stride if pair.in_place else pair.N)

    def pair_list(self) -> CPairList:
        """What launchers take; keeps its table alive in ``self``."""
        self._table = (CPair * self.Q)()
        for c, pair, maps in zip(self._table, self.pairs, self.maps, strict=True):
            c.s, c.t, c.N = maps.s.pointer, maps.t.pointer, pair.N
            c.d_s = maps.d_s.pointer if maps.d_s else None
            c.d_t = maps.d_t.pointer if maps.d_t else None
            c.s_stride, c.t_stride = maps.s_stride, maps.t_stride
            c.d_s_stride, c.d_t_stride = maps.d_s_stride, pair.N
            c.s_dtype, c.t_dtype = DTYPES.index(pair.s_dtype), DTYPES.index(pair.t_dtype)
        return CPairList(self._table, self.Q, self.B)

    def _weighting(self) -> CWeighting:
        if not self.weighted:
            return CWeighting(None, False, 0, 0)
        return CWeighting(self._weight.pointer, self.softmax, self.S, self.T)

    def run_forward(self) -> None:
        """Fills ``self.pair_mse`` and ``self.loss`` (None without weights); both are poisoned before."""
        emulation, library = self.emulation, self.emulation.library
        c_list, weighting = self.pair_list(), self._weighting()
        library.kernels_pair_loss_fwd_workspace.restype = ctypes.c_size_t
        workspace = emulation.buffer("uint8", library.kernels_pair_loss_fwd_workspace(ctypes.byref(c_list)))
        self.pair_mse = emulation.buffer(self.accumulator, self.B * self.Q)
        self.loss = emulation.buffer(self.accumulator, 1) if self.weighted else None
        emulation.check(
            library.kernels_pair_loss_fwd(
                ctypes.byref(c_list),
                ctypes.byref(weighting),
                ctypes.c_void_p(workspace.pointer),
                ctypes.c_void_p(self.pair_mse.pointer),
                ctypes.c_void_p(self.loss.pointer if self.loss else None),
            )
        )

    def run_backward(self) -> None:
        """Fills the gradients; after ``run_forward``."""
        emulation, library = self.emulation, self.emulation.library
        c_list, weighting = self.pair_list(), self._weighting()
        self.d_weight = emulation.buffer(self.accumulator, self.B * self.Q) if self.weighted else None
        emulation.check(
            library.kernels_pair_loss_bwd(
                ctypes.byref(c_list),
                ctypes.byref(weighting),
                ctypes.c_void_p(self._d_loss.pointer if self.weighted else None),
                ctypes.c_void_p(self.pair_mse.pointer if self.weighted else None),
                ctypes.c_void_p(None if self.weighted else self._d_pair_mse.pointer),
                ctypes.c_void_p(self.d_weight.pointer if self.d_weight else None),
            )
        )

    def samples(self, buffer: Buffer, q: int, stride: int) -> NDArray[np.generic]:
        """A map as [B, N], without the gaps between its samples, in the storage type."""
        if not self.B:
            return buffer.array.reshape(0, self.pairs[q].N)
        size = buffer.array.itemsize
        return np.lib.stride_tricks.as_strided(
            buffer.array, (self.B, self.pairs[q].N), (stride * size, size), writeable=False
        )

    def differences(self) -> list[Array]:
        """``s - t`` of every pair, [B, N], in fp64. To be called before an in-place backward pass."""
        return [
            widen(self.samples(maps.s, q, maps.s_stride), pair.s_dtype)
            - widen(self.samples(maps.t, q, maps.t_stride), pair.t_dtype)
            for q, (pair, maps) in enumerate(zip(self.pairs, self.maps, strict=True))
        ]


@dataclass
class Expected:
    """All results in fp64. ``d_s`` is listed by pair; ``d_t`` is its negative."""

    pair_mse: Array  # [B, Q]
    loss: Array
    d_weight: Array  # [B, Q]
    d_s: list[Array]  # [B, N] each

    @classmethod
    def of(cls, problem: Problem) -> Expected:
        differences = problem.differences()
        B, S, T, Q = problem.B, problem.S, problem.T, problem.Q
        mse = np.stack([(d**2).mean(axis=1) for d in differences], axis=1).reshape(B, Q)
        alpha = problem.weight
        if problem.softmax:
            exponentials = np.exp(alpha - alpha.max(axis=2, keepdims=True))
            alpha = exponentials / exponentials.sum(axis=2, keepdims=True)
        rows = mse.reshape(B, S, T)
        loss = np.asarray((alpha * rows).sum() / max(1, B * S))
        unit = problem.d_loss / max(1, B * S)
        d_weight = unit * rows
        if problem.softmax:
            d_weight = unit * alpha * (rows - (alpha * rows).sum(axis=2, keepdims=True))
        coef = (unit * alpha).reshape(B, Q) if problem.weighted else problem.d_pair_mse
        d_s = [coef[:, q, None] * 2 / d.shape[1] * d for q, d in enumerate(differences)]
        return cls(mse, loss, d_weight.reshape(B, Q), d_s)
