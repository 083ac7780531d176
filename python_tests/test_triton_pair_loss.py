"""The Triton pair loss called directly: what the tests of all backends (``test_pair_loss.py``) cannot reach.

That is its launches (tiles, tables, order of programs, reductions of several steps), its handling of layouts and
alignment, ``in_place`` with maps that must be copied, CUDA graphs, and the reasons it gives where it cannot serve.
Runs on the GPU if there is one, and otherwise interpreted on the CPU: ``conftest.py`` sets ``TRITON_INTERPRET=1``
before Triton is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch
from served import MISSING, device_of
from tolerances import assert_close
from torch import Tensor

from semckd_kernels.backends import reference
from semckd_kernels.backends import triton as _triton
from semckd_kernels.backends.triton.pair_loss import config as launch_config
from semckd_kernels.backends.triton.pair_loss import table as pair_table
from semckd_kernels.backends.triton.upload import upload
from semckd_kernels.layout import packed_strides

if "triton" in MISSING:
    pytest.skip(f"triton does not serve here: {MISSING['triton']}", allow_module_level=True)

from semckd_kernels.backends.triton.pair_loss import launches as triton_pair_loss

DEVICE = device_of("triton")
F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
TYPES = [(a, b) for a in (F32, F16, BF16) for b in (F32, F16, BF16)] + [(F64, F64)]
# one element, less than a vector, a vector and one more, multiples of 16 and of a tile, more than one tile
RAGGED = [(1,), (7, 1, 1), (63,), (65,), (4, 32, 33), (4099,)]
Layout = Callable[[Tensor], Tensor]

cuda_only = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")


class Case:
    """Q = S * T flat pairs of random maps, a weight and upstream gradients."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]] = RAGGED,
        batch: int = 2,
        s_types: Sequence[torch.dtype] = (F32,),
        t_types: Sequence[torch.dtype] = (F32,),
        s_layers: int = 2,
        layouts: tuple[Layout, Layout] = (torch.clone, torch.clone),
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def rand(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=F64).to(DEVICE)

        def maps(types: Sequence[torch.dtype], layout: Layout) -> list[Tensor]:
            return [layout(rand(batch, *shape).to(types[q % len(types)])) for q, shape in enumerate(shapes)]

        self.acc_dtype = F64 if F64 in s_types else F32
        self.s, self.t = maps(s_types, layouts[0]), maps(t_types, layouts[1])
        self.weight = rand(batch, s_layers, len(shapes) // s_layers).to(self.acc_dtype)
        self.d_loss = rand(1)[0].to(self.acc_dtype)
        self.d_mse = rand(batch, len(shapes)).to(self.acc_dtype)

    def eager(self, dtype: torch.dtype | None, softmax: bool) -> list[Tensor]:
        """Results of plain PyTorch in the order of :meth:`kernel`, converted to ``dtype`` first if one is given."""

        def leaf(x: Tensor) -> Tensor:
            return x.detach().to(dtype or x.dtype).requires_grad_()

        s, t, weight = [leaf(x) for x in self.s], [leaf(x) for x in self.t], leaf(self.weight)
        loss, mse = reference.pair_loss(s, t, weight, softmax)
        of_loss = torch.autograd.grad(loss, [*s, *t, weight], self.d_loss.to(loss.dtype), retain_graph=True)
        of_mse = torch.autograd.grad(mse, [*s, *t], self.d_mse.to(mse.dtype).view_as(mse))
        return [loss, mse, *of_loss, mse.flatten(1), *of_mse]

    def kernel(self, softmax: bool) -> list[Tensor]:
        """loss, pair_mse, d_s, d_t, d_weight; then of the pair errors alone: pair_mse [B, Q], d_s, d_t."""
        loss, mse = triton_pair_loss.pair_loss_fwd(self.s, self.t, self.weight, softmax)
        d_s, d_t, d_weight = triton_pair_loss.pair_loss_bwd(
            self.d_loss, self.s, self.t, self.weight, mse, softmax, True, True
        )
        alone = triton_pair_loss.pair_mse_fwd(self.s, self.t)
        alone_d_s, alone_d_t = triton_pair_loss.pair_mse_bwd(self.d_mse, self.s, self.t, True, True)
        return [loss, mse, *d_s, *d_t, d_weight, alone, *alone_d_s, *alone_d_t]

    def check(self, softmax: bool) -> list[Tensor]:
        results, exact, eager = self.kernel(softmax), self.eager(F64, softmax), self.eager(None, softmax)
        # a loss of terms with both signs cancels: its error counts against what was added up
        alpha = self.weight.double().softmax(-1) if softmax else self.weight.double()
        scale = (alpha.abs() * exact[1]).sum() / (alpha.shape[0] * alpha.shape[1])
        assert abs(results[0].double() - exact[0]) <= (1e-14 if self.acc_dtype == F64 else 2e-6) * scale
        for n, (value, other, truth) in enumerate(zip(results[1:], eager[1:], exact[1:], strict=True)):
            assert_close(value, other, truth, f"result {n + 1}")
        return results


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Uninitialised memory is NaN (the largest number, for integers)."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 32 elements in two steps, and final reductions of several steps: large shapes in small."""

    def config(*_: object) -> launch_config.PairLossConfig:
        return launch_config.PairLossConfig(16, 2, 1, 1, reduce_tiles=16, reduce_errors=4)

    monkeypatch.setattr(triton_pair_loss, "pair_loss_config", config)


@pytest.mark.parametrize(("s_type", "t_type"), TYPES, ids=lambda x: str(x).removeprefix("torch."))
def test_types(poisoned: None, s_type: torch.dtype, t_type: torch.dtype) -> None:
    results = Case(s_types=[s_type], t_types=[t_type]).check(softmax=s_type == t_type)
    assert not any(x.isnan().any() for x in results)


@pytest.mark.parametrize(("batch", "softmax"), [(1, False), (2, True), (3, False), (5, True)])
def test_batches_in_tiny_tiles(tiny_tiles: None, poisoned: None, batch: int, softmax: bool) -> None:
    # up to 5 tiles a pair, and more pairs than the reduction takes rows at once
    Case([(3,), (129,), (32,), (5, 7), (7,), (4, 2, 2)] * 2, batch, s_layers=3).check(softmax)


def test_types_that_differ_from_pair_to_pair(tiny_tiles: None, poisoned: None) -> None:
    # six launches, of which the last forms the loss from what all have left
    case = Case([(3,), (65,), (32,), (5, 7), (16, 4), (40,)], s_types=[F32, BF16], t_types=[F16, BF16, F32])
    assert len(pair_table.Pairs(case.s, case.t).groups()) == 6
    case.check(softmax=True)
    case.check(softmax=False)


def test_one_hot_weights() -> None:
    case = Case()
    case.weight = torch.zeros_like(case.weight)
    case.weight[:, 1, 2] = 1
    results = case.check(softmax=False)
    assert all(not d_s.any() for d_s in results[2:7])
    assert results[7].any()


def test_one_pair_and_one_layer() -> None:
    Case([(65,)], batch=1, s_layers=1).check(softmax=True)


def test_weight_and_upstream_of_any_strides() -> None:
    case = Case()
    case.weight = case.weight.mT.contiguous().mT
    case.d_mse = case.d_mse.t().contiguous().t()
    case.d_loss = torch.stack([case.d_loss, case.d_loss * 3])[1]
    case.check(softmax=True)


# layouts


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def sliced_batch(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1], 1)[:, 0]


def channels_last_sliced_channel(x: Tensor) -> Tensor:
    return channels_last(torch.cat([x, x], 1))[:, : x.shape[1]]


def expanded_batch(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def batch_last(x: Tensor) -> Tensor:
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


def odd_offset(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)


LAYOUTS = [channels_last, sliced_batch, channels_last_sliced_channel, expanded_batch, batch_last, odd_offset]
MAPS = [(16, 4, 4), (3, 5, 7), (6, 1, 1), (1, 4, 1)]


@pytest.mark.parametrize("t_layout", [torch.clone, channels_last], ids=lambda f: f.__name__)
@pytest.mark.parametrize("s_layout", [torch.clone, *LAYOUTS], ids=lambda f: f.__name__)
def test_layouts(poisoned: None, s_layout: Layout, t_layout: Layout) -> None:
    for layouts in {(s_layout, t_layout), (t_layout, s_layout)}:
        case = Case(MAPS, batch=3, layouts=layouts)
        gradients = case.check(softmax=True)[2:10]
        # what a fake tensor promises torch.compile
        for gradient, x in zip(gradients, [*case.s, *case.s], strict=True):
            assert list(gradient.stride()) == packed_strides(x)


def test_maps_that_need_no_copy_get_none() -> None:
    for layout in (torch.clone, channels_last, sliced_batch, expanded_batch, odd_offset):
        case = Case(MAPS, batch=3, layouts=(layout, layout))
        for s, t, pair in zip(case.s, case.t, pair_table.Pairs(case.s, case.t).pairs, strict=True):
            assert pair.s is s
            assert pair.t is t


def test_wide_accesses_only_where_every_sample_is_aligned() -> None:
    def wide(layout: Layout, dtype: torch.dtype, shape: tuple[int, ...] = (8, 3, 4), t_layout: Layout = torch.clone):
        case = Case([shape], 2, [dtype], [dtype], 1, (layout, t_layout))
        rows, _ = pair_table.tabulate(list(enumerate(pair_table.Pairs(case.s, case.t, True, True).pairs)), 64)
        return bool(dict(zip(pair_table.COLUMNS, rows, strict=True))["aligned"])

    for dtype in (F64, F32, BF16):
        assert wide(torch.clone, dtype)
        assert wide(channels_last, dtype)
        assert not wide(odd_offset, dtype)
        assert not wide(torch.clone, dtype, t_layout=odd_offset)
        assert not wide(torch.clone, dtype, (5, 3, 3))
    assert wide(torch.clone, F32, (4, 1, 1))
    assert not wide(torch.clone, BF16, (4, 1, 1))
    # the samples of this slice are whole, but they lie 13 * 12 elements apart
    assert not wide(lambda x: torch.cat([x, x[:, :5]], 1)[:, :8], BF16)


# gradients


@pytest.mark.parametrize("softmax", [False, True])
def test_only_the_gradients_asked_for(softmax: bool) -> None:
    case = Case()
    _, mse = triton_pair_loss.pair_loss_fwd(case.s, case.t, case.weight, softmax)
    args = (case.d_loss, case.s, case.t, case.weight, mse, softmax)
    d_s, d_t, d_weight = triton_pair_loss.pair_loss_bwd(*args, True, True)
    only_s = triton_pair_loss.pair_loss_bwd(*args, True, False)
    only_t = triton_pair_loss.pair_loss_bwd(*args, False, True)
    neither = triton_pair_loss.pair_loss_bwd(*args, False, False)
    assert [len(only_s[1]), len(only_t[0]), len(neither[0]), len(neither[1])] == [0, 0, 0, 0]
    assert equal(only_s[0], d_s)
    assert equal(only_t[1], d_t)
    assert equal([only_s[2], only_t[2], neither[2]], [d_weight] * 3)
    d_s, d_t = triton_pair_loss.pair_mse_bwd(case.d_mse, case.s, case.t, True, True)
    assert equal(triton_pair_loss.pair_mse_bwd(case.d_mse, case.s, case.t, True, False)[0], d_s)
    assert equal(triton_pair_loss.pair_mse_bwd(case.d_mse, case.s, case.t, False, True)[1], d_t)
    assert triton_pair_loss.pair_mse_bwd(case.d_mse, case.s, case.t, False, False) == ([], [])


@pytest.mark.parametrize("layout", [torch.clone, *LAYOUTS], ids=lambda f: f.__name__)
def test_in_place(layout: Layout) -> None:
    case = Case(MAPS, batch=3, s_types=[F32, BF16], layouts=(layout, torch.clone))
    _, mse = triton_pair_loss.pair_loss_fwd(case.s, case.t, case.weight, True)
    args = (case.d_loss, case.s, case.t, case.weight, mse, True)
    expected = triton_pair_loss.pair_loss_bwd(*args, True, True)
    before = [x.clone() for x in case.s]
    d_s, d_t, d_weight = triton_pair_loss.pair_loss_bwd_(*args, True)
    assert equal([*d_s, *d_t, d_weight], [*expected[0], *expected[1], expected[2]])
    # of one pixel, the third map is dense in whatever part of the channels
    copied = {
        expanded_batch: (True, True, True, True),
        batch_last: (True, True, True, True),
        channels_last_sliced_channel: (True, True, False, True),
    }.get(layout, (False,) * 4)
    for gradient, x, was, is_copy in zip(d_s, case.s, before, copied, strict=True):
        assert (gradient is x) == (not is_copy)
        assert torch.equal(x, was) == is_copy


def test_empty_batch() -> None:
    case = Case(MAPS, batch=0, s_types=[BF16])
    loss, mse = triton_pair_loss.pair_loss_fwd(case.s, case.t, case.weight, True)
    assert loss.item() == 0
    assert loss.dtype == F32
    assert mse.shape == (0, 2, 2)
    d_s, d_t, d_weight = triton_pair_loss.pair_loss_bwd(
        case.d_loss, case.s, case.t, case.weight, mse, True, True, False
    )
    assert [x.shape for x in d_s] == [x.shape for x in case.s]
    assert d_t == []
    assert d_weight.shape == (0, 2, 2)
    assert triton_pair_loss.pair_mse_fwd(case.s, case.t).shape == (0, 4)
    assert [x.dtype for x in triton_pair_loss.pair_mse_bwd(case.d_mse, case.s, case.t, True, False)[0]] == [BF16] * 4


def test_bf16_gradients_are_rounded_to_nearest() -> None:
    # one factor for all, so that each element's exact gradient is known to fp32
    case = Case([(4096,)], 1, [BF16], [F32], 1)
    case.weight.fill_(1)
    d_s, d_t, _ = triton_pair_loss.pair_loss_bwd(
        case.d_loss, case.s, case.t, case.weight, case.weight, False, True, True
    )
    assert torch.equal(d_s[0], (-d_t[0]).to(BF16))


# repeatability


@pytest.mark.parametrize("softmax", [False, True])
def test_order_of_programs_changes_no_bit(tiny_tiles: None, monkeypatch: pytest.MonkeyPatch, softmax: bool) -> None:
    case = Case([(65,), (40,), (7,), (3,)], s_types=[F32, BF16])
    first = case.kernel(softmax)
    assert equal(case.kernel(softmax), first)
    if DEVICE == "cuda":
        return
    from triton.runtime.interpreter import InterpreterBuilder

    set_grid_idx = InterpreterBuilder.set_grid_idx
    # descending, and every third one first: other programs draw the last tickets
    for order in (lambda x, n: n - 1 - x, lambda x, n: sorted(range(n), key=lambda i: (i % 3, i))[x]):

        def reordered(self: InterpreterBuilder, x: int, y: int, z: int, order=order) -> None:
            set_grid_idx(self, order(x, self.grid_dim[0]), y, z)

        monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", reordered)
        assert equal(case.kernel(softmax), first)


# launches


def test_every_element_is_in_one_tile() -> None:
    members = [
        (q, pair_table.Pair(torch.empty(2, n), torch.empty(2, n))) for q, n in enumerate([1, 64, 65, 200, 63], start=3)
    ]
    words, tiles = pair_table.tabulate(members, tile=64)
    columns = len(pair_table.COLUMNS)
    rows = [
        SimpleNamespace(**dict(zip(pair_table.COLUMNS, words[i : i + columns], strict=True)))
        for i in range(0, len(words), columns)
    ]
    assert [row.tiles for row in rows] == [1, 1, 2, 4, 1]
    assert [row.first_tile for row in rows] == [0, 1, 2, 4, 8]
    assert [row.pair for row in rows] == [3, 4, 5, 6, 7]
    assert tiles == 9


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942", "gfx1100"])
@pytest.mark.parametrize(("s_type", "t_type"), TYPES, ids=lambda x: str(x).removeprefix("torch."))
def test_config(arch: str, s_type: torch.dtype, t_type: torch.dtype) -> None:
    for batch, sizes in [(1, [1]), (64, [65536, 16384, 4096] * 3), (256, [200704] * 16), (1, [2**33])]:
        config = launch_config.pair_loss_config(batch, sizes, s_type, t_type, arch)
        assert config == launch_config.pair_loss_config(batch, sizes, s_type, t_type, arch)
        assert config.block & (config.block - 1) == 0
        # wide enough for 128-bit accesses of the narrower map by every thread
        assert config.block % (config.num_warps * 32 * launch_config.vector_numel(s_type, t_type)) == 0
        programs = batch * sum(-(-n // config.tile) for n in sizes)
        assert programs <= launch_config.TARGET_PROGRAMS + batch * len(sizes)
        assert config.tile < 2**31


def test_default_device_does_not_matter() -> None:
    case = Case([(5,)], s_layers=1)
    with torch.device("meta"):
        assert upload([1, 2], torch.device(DEVICE)).tolist() == [1, 2]
        loss, _ = triton_pair_loss.pair_loss_fwd(case.s, case.t, case.weight, False)
    assert loss.device.type == DEVICE


@cuda_only
def test_cuda_graph() -> None:
    case, other = Case(s_types=[F32, BF16]), Case(s_types=[F32, BF16], seed=1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        case.kernel(True)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = case.kernel(True)
    for source in (other, Case(s_types=[F32, BF16], seed=2)):
        for mine, theirs in zip(
            [*case.s, *case.t, case.weight, case.d_loss, case.d_mse],
            [*source.s, *source.t, source.weight, source.d_loss, source.d_mse],
            strict=True,
        ):
            mine.copy_(theirs)
        # eager work between the replays must not disturb what the graph reads
        expected = source.kernel(True)
        for _ in range(2):
            graph.replay()
            assert equal(results, expected)


@cuda_only
def test_second_stream() -> None:
    case = Case()
    expected = case.kernel(True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        with torch.cuda.stream(stream):
            beside = case.kernel(True)
        assert equal(case.kernel(True), expected)
        stream.synchronize()
        assert equal(beside, expected)


# reasons


def test_reason_names_the_device() -> None:
    assert "not on meta devices" in (_triton.why_not("meta") or "")
    assert _triton.why_not(DEVICE) is None


def test_reason_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for device in ("cpu", "cuda"):
        assert 'pip install "triton' in (_triton.why_not(device) or "")


def test_reason_for_an_old_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.__version__", "3.5.1")
    assert "triton 3.6 or newer is needed, this one is 3.5.1" in (_triton.why_not(DEVICE) or "")


@pytest.mark.skipif(DEVICE != "cpu", reason="Triton is not interpreted here")
def test_reasons_of_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "interpreted kernels serve CPU tensors only" in (_triton.why_not("cuda") or "")
    monkeypatch.setattr("triton.__version__", "3.6.0")
    monkeypatch.setattr("numpy.__version__", "2.4.1")
    assert "needs numpy < 2.4" in (_triton.why_not("cpu") or "")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "set it before the program starts" in (_triton.why_not("cpu") or "")
