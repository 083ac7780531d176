"""Triton's work on whole layers against the plain code in fp64: maps, similarities, attention, loss, all gradients.

Runs on the GPU if there is one, and otherwise interpreted on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from served import MISSING, device_of
from tolerances import assert_close, assert_close_on_average
from torch import Tensor

from semckd_kernels.stages import attention, pooling
from semckd_kernels.stages.attention import Allocation, Embedding, Embeddings
from semckd_kernels.stages.backend import MapPart, kept_dtype
from semckd_kernels.stages.records import flatten

if "triton" in MISSING:
    pytest.skip(MISSING["triton"], allow_module_level=True)

from semckd_kernels.backends.triton.criterion.layers import Layers
from semckd_kernels.backends.triton.device import device_arch
from semckd_kernels.backends.triton.launch import Launches

DEVICE = torch.device(device_of("triton"))
F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
DTYPES = (F32, BF16, F16, F64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: str(x)[6:])


class CountedLaunches(Launches):
    """Counts uploads and launches."""

    uploads = 0
    launched: ClassVar[list[str]] = []

    def run(self) -> None:
        CountedLaunches.uploads += bool(self._launches)
        super().run()

    def launch(self, kernel: Any, *rest: Any) -> None:
        CountedLaunches.launched.append(kernel.__name__)
        super().launch(kernel, *rest)


def subject(acc_dtype: torch.dtype = F32) -> Layers:
    CountedLaunches.uploads, CountedLaunches.launched = 0, []
    return Layers(DEVICE, device_arch(DEVICE), CountedLaunches, acc_dtype)


def acc_dtype_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, F32)


@pytest.fixture(autouse=True)
def _exact_fp32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def randn(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape, dtype=F64).to(DEVICE, dtype)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody writes is NaN."""
    for name in ("empty", "empty_like"):
        make: Callable[..., Tensor] = getattr(torch, name)

        def poisoned(*args: Any, make: Callable[..., Tensor] = make, **kwargs: Any) -> Tensor:
            x = make(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        monkeypatch.setattr(torch, name, poisoned)


# [B, C, H, W] and the sizes wanted beside: channels and pixels that fill no vector, and that do; more channels than a
# tile; windows that divide, that do not, along one axis only, and of one pixel
MAPS = [
    ((3, 24, 5, 4), [(5, 4), (4, 2), (3, 3)]),
    ((2, 3, 2, 9), [(2, 3), (1, 1)]),
    ((1, 72, 4, 4), [(2, 4)]),
    ((2, 5, 1, 1), []),
]
SIZES = [sizes for _, sizes in MAPS]


def _full(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _odd(x: Tensor) -> Tensor:
    """Of strides that are neither."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


Layout = Callable[[Tensor], Tensor]
LAYOUTS: dict[str, Layout] = {"nchw": torch.clone, "channels_last": _channels_last, "odd": _odd}


def _maps(dtype: torch.dtype, layout: str) -> list[Tensor]:
    return [LAYOUTS[layout](randn(*shape, dtype=dtype)) for shape, _ in MAPS]


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(F32, "nchw"), (F32, "channels_last"), (F32, "odd"), (BF16, "nchw"), (F16, "nchw"), (F64, "nchw")],
)
def test_resolutions(dtype: torch.dtype, layout: str) -> None:
    maps = _maps(dtype, layout)
    result = subject().resolutions(maps, SIZES, dtype)
    # odd strides are torch's; the last map is its own rows whatever they are
    assert CountedLaunches.launched == ["rows_kernel"] * (layout == "nchw") + ["pool_kernel"]
    assert CountedLaunches.uploads == 1
    copies = [by_size[_full(x)].data_ptr() != x.data_ptr() for x, by_size in zip(maps, result, strict=True)]
    assert copies == [layout != "channels_last"] * 3 + [False]
    for x, sizes, by_size in zip(maps, SIZES, result, strict=True):
        assert by_size.keys() == {_full(x), *sizes}
        assert torch.equal(by_size[_full(x)], x.permute(0, 2, 3, 1))
        for size, rows in by_size.items():
            assert rows.is_contiguous()
            exact = pooling.pool(x.double().permute(0, 2, 3, 1).contiguous(), size)
            eager = F.adaptive_avg_pool2d(x, size).permute(0, 2, 3, 1)
            assert_close(rows, eager, exact, f"{tuple(x.shape)} at {size}")


@pytest.mark.parametrize(
    ("source", "target", "layout"),
    [
        (F32, BF16, "nchw"),
        (F32, BF16, "channels_last"),
        (BF16, F32, "nchw"),
        (F64, F16, "odd"),
        (F16, F64, "channels_last"),
    ],
)
def test_rows_of_another_type(source: torch.dtype, target: torch.dtype, layout: str) -> None:
    maps = _maps(source, layout)
    result = [x[_full(m)] for m, x in zip(maps, subject().resolutions(maps, [[]] * len(maps), target), strict=True)]
    for x, rows in zip(maps, result, strict=True):
        assert torch.equal(rows, x.permute(0, 2, 3, 1).to(target))
    for x, own in zip(maps, subject().own_rows(maps, result), strict=True):
        assert torch.equal(own, x.permute(0, 2, 3, 1).flatten(1))


def _unaligned(x: Tensor) -> Tensor:
    """The same where no multiple of 16 bytes lies."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:]
    return memory.view(x.shape).copy_(x)


def test_maps_at_any_address() -> None:
    x = _unaligned(randn(2, 3, 2, 2))
    rows, cast = subject().resolutions([x], [[]], F32)[0][2, 2], subject().resolutions([x], [[]], BF16)[0][2, 2]
    assert torch.equal(rows, x.permute(0, 2, 3, 1))
    assert torch.equal(cast, x.permute(0, 2, 3, 1).bfloat16())
    # rows as they are, but for their address
    x = _unaligned(randn(2, 4, 1, 1))
    rows = subject().resolutions([x], [[]], F32)[0][1, 1]
    assert rows.data_ptr() % 16 == 0
    assert torch.equal(rows.flatten(), x.flatten())


class Shape(NamedTuple):
    batch: int
    batch_size: int
    s_layers: int
    t_layers: int
    numel: tuple[int, ...]  # elements a sample of each layer

    @property
    def size(self) -> int:
        return max(1, self.batch_size // 4)


# d = 1 and one sample, whose attention is one; a smaller last batch, rows that fill no vector; more layers than a tile
ALONE = Shape(1, 1, 1, 1, (5, 16))
SMALLER = Shape(7, 12, 2, 3, (40, 24, 264, 33, 8))
LAYERS = Shape(3, 8, 1, 17, (8,) * 18)


class AttentionProblem:
    def __init__(self, shape: Shape, dtype: torch.dtype, parameter_dtype: torch.dtype) -> None:
        self.shape, self.acc_dtype = shape, acc_dtype_of(dtype)
        self.rows = [randn(shape.batch, n, dtype=dtype) / n**0.5 for n in shape.numel]
        d, columns = shape.size, shape.batch_size
        one_layer = [(2 * d, columns), (2 * d,), (d, 2 * d), (d,)]
        self.embedding = [Embedding(*(randn(*size, dtype=parameter_dtype) for size in one_layer)) for _ in self.rows]
        self.mse = randn(shape.batch, shape.s_layers, shape.t_layers, dtype=self.acc_dtype) ** 2

    def plain(self, acc_dtype: torch.dtype) -> tuple[Allocation, Tensor, list[Embedding], Tensor]:
        """Allocation, gradients and the loss in a type."""
        parameters = Embeddings.stack(self.embedding, acc_dtype)
        similarities = [attention.similarity(x.to(acc_dtype), acc_dtype) for x in self.rows]
        saved = attention.allocate(similarities, parameters, self.shape.s_layers, 1.5)
        mse = self.mse.to(acc_dtype)
        d_similarity, gradients = attention.allocate_backward(mse, saved, parameters, 1.5)
        loss = (saved.weight * mse).sum() / (self.shape.batch * self.shape.s_layers)
        saved = saved._replace(similarity=saved.similarity[:, :, : self.shape.batch])
        return saved, d_similarity, gradients.unstack(), loss

    def ours(self) -> tuple[Allocation, Tensor, list[Embedding], Tensor]:
        layers = subject(self.acc_dtype)
        saved = layers.allocate(self.rows, self.embedding, self.shape.s_layers, 1.5)
        loss = layers.loss(saved.weight, self.mse)
        return saved, *layers.allocate_backward(self.mse, saved, self.embedding, 1.5), loss


def _flat(result: tuple[Allocation, Tensor, list[Embedding], Tensor]) -> list[Tensor]:
    saved, d_similarity, gradients, loss = result
    return [*saved, d_similarity, *flatten(gradients), loss]


@pytest.mark.parametrize(
    ("shape", "dtype", "parameter_dtype"),
    [
        (ALONE, F32, F32),
        (SMALLER, F32, F32),
        (LAYERS, F32, F32),
        (SMALLER, BF16, F32),
        (SMALLER, F16, F16),
        (ALONE, BF16, BF16),
        (Shape(3, 5, 2, 1, (9, 8, 7)), F64, F64),
    ],
)
def test_attention(shape: Shape, dtype: torch.dtype, parameter_dtype: torch.dtype) -> None:
    problem = AttentionProblem(shape, dtype, parameter_dtype)
    ours = problem.ours()
    forward = ["similarity_kernel", "sum_splits_kernel", "embed_kernel", "energy_kernel", "loss_kernel"]
    assert CountedLaunches.launched == [*forward, "embed_backward_kernel", "parameter_gradients_kernel"]
    assert CountedLaunches.uploads == 3
    for like, gradient in zip(flatten(problem.embedding), flatten(ours[2]), strict=True):
        assert gradient.stride() == like.stride()
        assert gradient.dtype == kept_dtype(like.dtype)
    plain, exact = problem.plain(problem.acc_dtype), problem.plain(F64)
    for n, (value, x, y) in enumerate(zip(*([*r[0], r[1], r[3]] for r in (ours, plain, exact)), strict=True)):
        assert_close(value, x, y, f"result {n}")
    for name in Embedding._fields:
        # an embedding's gradient is what is left of a difference: chance decides about a single layer
        value, x, y = ([getattr(layer, name) for layer in r[2]] for r in (ours, plain, exact))
        value, x = ([gradient.to(problem.acc_dtype) for gradient in side] for side in (value, x))
        assert_close_on_average(value, x, y, f"gradients of {name}")


def test_parameters_of_any_strides_addresses_and_types() -> None:
    usual, other = (AttentionProblem(SMALLER._replace(batch=2), F32, F32) for _ in range(2))
    other.rows, other.mse = usual.rows, usual.mse
    other.embedding = [
        Embedding(p.weight1, _unaligned(p.bias1), p.weight2.t().contiguous().t(), _unaligned(p.bias2))
        for p in usual.embedding
    ]
    first = other.embedding[0]
    other.embedding[0] = first._replace(weight1=first.weight1.double())
    gradients = (flatten(x) for x in (other.embedding, other.ours()[2], usual.ours()[2]))
    for like, value, expected in zip(*gradients, strict=True):
        assert value.stride() == like.stride()
        assert value.dtype == like.dtype
        assert torch.equal(value.to(F32), expected)


def test_tf32_is_torchs_choice() -> None:
    """Of products of fp32; 16-bit rows are exact in it."""
    layers = Layers(DEVICE, "sm_90")
    assert [layers._precision(dtype) for dtype in (F32, BF16, F16)] == ["ieee", "tf32", "tf32"]
    torch.backends.cuda.matmul.allow_tf32 = True
    assert layers._precision(F32) == "tf32"
    assert Layers(DEVICE, "gfx942")._precision(F32) == "ieee"


def test_attention_repeats_bitwise() -> None:
    problem = AttentionProblem(SMALLER, F32, F32)
    for x, y in zip(_flat(problem.ours()), _flat(problem.ours()), strict=True):
        assert torch.equal(x, y)


def _similarities(rows: list[Tensor], batch_size: int, acc_dtype: torch.dtype) -> Tensor:
    layers = subject(acc_dtype)
    launches = layers.launches(DEVICE)
    similarity = layers._similarities(launches, rows, batch_size)
    launches.run()
    return similarity


@dtypes
def test_similarities_of_more_samples_than_a_tile(dtype: torch.dtype) -> None:
    # the number decides about the tile's side, 16; rows of one and of two splits
    rows = [randn(35, n, dtype=dtype) for n in (40, 528)]
    for x, value in zip(rows, _similarities(rows, 16, acc_dtype_of(dtype)), strict=True):
        assert_close(
            value, attention.similarity(x, acc_dtype_of(dtype)), attention.similarity(x.double(), F64), str(x.shape)
        )


def test_similarities_of_different_types() -> None:
    rows = [randn(2, 8, dtype=dtype) for dtype in (F32, F64, BF16)]
    for x, value in zip(rows, _similarities(rows, 2, F32), strict=True):
        assert_close(value, attention.similarity(x.float(), F32), attention.similarity(x.double(), F64), str(x.dtype))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_zeros_and_nan_stay() -> None:
    """Rows of zeros give zeros, not NaN; a NaN reaches whatever the plain code lets it reach, and no more."""
    problem = AttentionProblem(SMALLER._replace(batch=3), F32, F32)
    for layer in problem.embedding:
        layer.bias1.zero_()
        layer.bias2.zero_()
    problem.rows[0].zero_()
    problem.mse[1, 0, 2] = float("nan")
    for value, plain in zip(_flat(problem.ours()), _flat(problem.plain(F32)), strict=True):
        assert torch.equal(value.isnan(), plain.isnan())
    problem.rows[0][2, 5] = float("nan")
    for value, plain in zip(_flat(problem.ours()), _flat(problem.plain(F32)), strict=True):
        assert torch.equal(value.isnan(), plain.isnan())


@pytest.mark.parametrize("dtype", [F32, F64])
def test_loss_of_several_programs(dtype: torch.dtype) -> None:
    weight, mse = (randn(60, 3, 24, dtype=dtype) for _ in range(2))
    loss = subject(dtype).loss(weight, mse)
    assert_close(loss, (weight * mse).sum() / 180, (weight.double() * mse.double()).sum() / 180, "loss")
    assert torch.equal(loss, subject(dtype).loss(weight, mse))


# of 24 channels and 20 pixels: multiples of a vector or not, by the type; of neither
ALIGNED, RAGGED = MAPS[:1], [MAPS[1], MAPS[3]]


class MapsProblem:
    """Gradients of maps: of all their resolutions and through similarities."""

    def __init__(self, maps: list[tuple[tuple[int, ...], list[pooling.Size]]], dtype: torch.dtype, layout: str) -> None:
        batch = 3
        self.acc_dtype = acc_dtype_of(dtype)
        self.maps = [LAYOUTS[layout](randn(batch, *shape[1:], dtype=dtype)) for shape, _ in maps]
        self.rows = [x.permute(0, 2, 3, 1).flatten(1) for x in self.maps]
        self.parts = [
            [
                MapPart(randn(batch, *size, x.shape[1], dtype=self.acc_dtype), size, 0.5 + n)
                for n, size in enumerate(sizes)
            ]
            for x, (_, sizes) in zip(self.maps, maps, strict=True)
        ]
        self.d_similarity = randn(len(self.maps), batch, batch, dtype=self.acc_dtype)

    def ours(self) -> list[Tensor]:
        return subject(self.acc_dtype).finish_maps(self.maps, self.rows, self.parts, self.d_similarity)

    def plain(self, acc_dtype: torch.dtype) -> list[Tensor]:
        results = []
        for x, rows, parts, d in zip(self.maps, self.rows, self.parts, self.d_similarity.to(acc_dtype), strict=True):
            full = ((d + d.t()) @ rows.to(acc_dtype)).view(len(x), *_full(x), x.shape[1])
            for part in parts:
                pooling.unpool_add_(full, part.d_x.to(acc_dtype) * part.factor)
            results.append(full.permute(0, 3, 1, 2))
        return results


@pytest.mark.parametrize(
    ("maps", "dtype", "layout"),
    [
        (ALIGNED, F32, "nchw"),
        (ALIGNED, BF16, "nchw"),
        (ALIGNED, F32, "channels_last"),
        (RAGGED, F32, "nchw"),
        (RAGGED, F16, "odd"),
        (RAGGED, F64, "channels_last"),
    ],
)
def test_finish_maps(maps: list[tuple[tuple[int, ...], list[pooling.Size]]], dtype: torch.dtype, layout: str) -> None:
    problem = MapsProblem(maps, dtype, layout)
    ours = problem.ours()
    assert CountedLaunches.launched == ["map_gradient_kernel"]
    assert CountedLaunches.uploads == 1
    for x, value, eager, exact in zip(
        problem.maps, ours, problem.plain(problem.acc_dtype), problem.plain(F64), strict=True
    ):
        assert value.stride() == torch.empty_like(x).stride()
        assert_close(value, eager.to(kept_dtype(dtype)), exact, str(tuple(x.shape)))


def test_gradients_of_maps_repeat_bitwise() -> None:
    problem = MapsProblem(ALIGNED, F32, "nchw")
    assert torch.equal(problem.ours()[0], problem.ours()[0])


def test_gradients_of_more_samples_than_a_tile() -> None:
    x = randn(40, 2, 1, 1)
    d_similarity, d_x = randn(1, 40, 40), randn(40, 1, 1, 2)
    (value,) = subject().finish_maps([x], [x.flatten(1)], [[MapPart(d_x, (1, 1), 1.0)]], d_similarity)
    exact = (d_similarity[0] + d_similarity[0].t()).double() @ x.flatten(1).double() + d_x.flatten(1)
    eager = (d_similarity[0] + d_similarity[0].t()) @ x.flatten(1) + d_x.flatten(1)
    assert_close(value.flatten(1), eager, exact, "d_x")
