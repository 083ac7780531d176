"""The benches' own parts: networks are what their names say, rows survive storage, tables hold what was measured.

What the benches measure is checked by the benches themselves, in the process that measures it.
"""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_stages import PlainStages, TorchStages
from tolerances import assert_close
from torch.utils.flop_counter import FlopCounterMode

import semckd_kernels as sk

pytest.importorskip("bench", reason="runs in a checkout only")

from stage_interface import PairSize

from bench import fma_peak, harness, kernels, pages, picture, results, tables
from bench.shapes import NETWORK_PAIRS

SIZE = PairSize(B=3, h=5, w=4, c=6, C=7)

# student and teacher: CIFAR's as distillation papers give them, in millions, and ImageNet's to the digit
PARAMETERS = {
    "resnet32x4-resnet8x4": (1_233_540, 7_433_860),
    "vgg13-vgg8": (3_965_028, 9_462_180),
    "resnet34-resnet18-imagenet": (11_689_512, 21_797_672),
    "vit_tiny-vit_tiny": (5_717_416, 5_717_416),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks(name: str) -> None:
    pytest.importorskip("torchvision")
    from bench.models import NETWORKS

    pair, networks = NETWORK_PAIRS[name], NETWORKS[name]
    sides = ((networks.student, pair.student), (networks.teacher, pair.teacher))
    for (make, maps), parameters in zip(sides, PARAMETERS[name], strict=True):
        # sizes cost nothing there
        with torch.device("meta"):
            net = make()
            images = torch.empty(2, 3, networks.side, networks.side)
        assert net.parameter_count() == parameters
        shapes = [tuple(shape) for shape in net.map_shapes(images)]
        assert shapes == [(h * w + 1, c) for c, h, w in maps] if networks.class_token else list(maps)


def test_every_network_pair_has_its_maps() -> None:
    pytest.importorskip("torchvision")
    from bench.models import NETWORKS

    assert set(NETWORKS) == set(NETWORK_PAIRS) - {"tiny"}


def test_small_pairs() -> None:
    small = NETWORK_PAIRS["resnet34-resnet18-imagenet"].small()
    assert small.student == small.teacher == ((64, 4, 4), (128, 2, 2), (256, 1, 1), (512, 1, 1))
    assert NETWORK_PAIRS["vit_tiny-vit_tiny"].small().student == ((192, 4, 4),) * 2


def row(**values: Any) -> results.Row:
    machine = {"device": "Some CPU, 2 threads, avx2", "torch": "2", "python": "3", "commit": "c", "date": "2026-01-02"}
    base = {"op": "criterion", "backend": "reference", "direction": "forward+backward", "dtype": "fp32"}
    base |= {"shape": "net", "batch": 8}
    numbers = dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "mbytes", "gbytes_s", "copy_percent"), 2.0)
    numbers |= dict.fromkeys(("over_reference", "over_compiled", "peak_mbytes"), 3.0)
    return results.Row(**{**base, **numbers, **machine, **values})


def test_rows_survive_storage(tmp_path: Path) -> None:
    first = row(layout="nchw", over_same=1.5, over_kd=2.5, kept_mbytes=70.0)
    results.store([first], tmp_path)
    other = replace(first, layout="channels_last")
    results.store([other], tmp_path)
    again = replace(first, p50_ms=4.0)
    results.store([again], tmp_path)
    assert results.load(tmp_path) == [other, again]


def test_rows_of_kernels_survive_storage(tmp_path: Path) -> None:
    # all that tells them apart
    stored = [row(op="kernels", kernel=kernel, threads=threads) for kernel in ("conv3x3", "end") for threads in (1, 2)]
    stored[0] = replace(stored[0], gflops=196.5, peak_gflops=118.0, peak_percent=166.5, over_one_thread=1.75)
    results.store(stored, tmp_path)
    assert results.load(tmp_path) == stored


def test_rows_without_later_columns_load(tmp_path: Path) -> None:
    path = results.store([row(op="pair_loss")], tmp_path)
    with path.open(newline="") as file:
        records = list(csv.DictReader(file))
    later = {"layout", "over_same", "over_kd", "kept_mbytes"}
    later |= {"kernel", "threads", "gflops", "peak_gflops", "peak_percent", "over_one_thread"}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in records[0] if name not in later], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
    assert results.load(tmp_path) == [row(op="pair_loss")]


def test_criterion_table_puts_contenders_side_by_side() -> None:
    eager = row(layout="nchw", p50_ms=1700.0, kept_mbytes=538.0, peak_mbytes=789.0)
    compiled = replace(eager, backend="reference compiled", p50_ms=1600.0)
    ours = replace(eager, backend="cpu", p50_ms=700.0, over_reference=2.4, over_same=2.3, over_compiled=2.2)
    ours = replace(ours, kept_mbytes=70.0, peak_mbytes=257.0)
    half = replace(eager, dtype="bf16", layout="channels_last", p50_ms=690.0)
    text = tables.table("criterion", [half, ours, compiled, eager, row(op="step", shape="elsewhere")])
    lines = [line for line in text.splitlines() if line.startswith("| net")]
    assert lines == [
        "| net, 8 | fp32, nchw | 1700 | 1600 | 700 | 2.40 | 2.30 | 2.20 | 538 / 70 | 789 / 257 |",
        "| net, 8 | bf16, channels_last | 690 | - | - | - | - | - | 538 | 789 |",
    ]
    assert "elsewhere" not in text


def test_step_table_divides_by_plain_kd() -> None:
    steps = [
        row(op="step", backend=name, layout="nchw", p50_ms=ms, over_kd=ms / 100, over_reference=300 / ms, over_same=2.0)
        for name, ms in (("KD", 100.0), ("reference", 300.0), ("triton", 150.0))
    ]
    line = next(x for x in tables.table("step", steps).splitlines() if x.startswith("| net"))
    assert line == "| net, 8 | fp32, nchw | 100 | 300 | 150 | 3.00 | 1.50 | 2.00 | 2.00 | 3 / 3 / 3 |"


def test_data_table_gives_images_a_second() -> None:
    loader = row(
        op="data", backend="DataLoader, 2 workers", direction="batch", p50_ms=4.0, batch=64, over_reference=1.0
    )
    ours = replace(loader, backend="ours", p50_ms=0.16, over_reference=25.0)
    lines = [line for line in tables.table("data", [ours, loader]).splitlines() if line.startswith("| net")]
    assert lines == [
        "| net, 64 | DataLoader, 2 workers | 4 | 16,000 | 1.00 |",
        "| net, 64 | ours | 0.16 | 400,000 | 25.00 |",
    ]


def test_pages_have_a_table_of_each_kind_of_row_by_machine() -> None:
    rows = [row(op="data", direction="batch"), row(op="step", device="Some GPU"), kernel_row("cpu", 1, 100.0)]
    made = pages.pages(rows)
    assert "| conv3x3 | forward | 64x32x32, 64 | fp32 |" in made["performance/some-cpu.md"]
    assert "## Batches of CIFAR-100" in made["performance/some-cpu.md"]
    assert "## A whole training step" not in made["performance/some-cpu.md"]
    assert "## A whole training step" in made["performance/some-gpu.md"]
    assert "not measured on a GPU" not in made["performance.md"]
    assert "not measured on a GPU" in pages.pages(rows[:1])["performance.md"]


def test_the_picture_has_three_bars_for_each_machine_with_all_three() -> None:
    steps = [
        row(op="step", shape="resnet32x4-resnet8x4", layout="nchw", backend=name, p50_ms=ms, over_kd=ms / 100)
        for name, ms in (("KD", 100.0), ("reference", 300.0), ("cpu", 150.0))
    ]
    elsewhere = replace(steps[0], device="Another CPU, 2 threads")
    found = picture.bars([*steps, elsewhere], pages.machine_of)
    assert [(bar.name, bar.over_kd) for bar in found] == [("KD", 1.0), ("reference", 3.0), ("ours", 1.5)]
    assert picture.draw(found, "dark").count("<rect") == 2 * len(found)


def test_kept_bytes_count_what_is_new_and_once() -> None:
    x = torch.randn(1000, requires_grad=True)
    weight = torch.randn(1000)

    def forward() -> torch.Tensor:
        y = x * weight  # keeps what was given
        z = y.exp()  # keeps its result
        return (z * z.view(-1)).sum()  # keeps it again, twice

    assert harness.kept_bytes(forward, [x, weight]) == 4000


class Rounds:
    """In place of pytest-benchmark's fixture: runs what it is given, and counts."""

    rounds = 0

    def pedantic(self, run: Any, setup: Any, rounds: int) -> None:
        self.rounds = rounds
        for _ in range(rounds):
            arguments, keywords = setup()
            run(*arguments, **keywords)


def test_a_budget_bounds_the_rounds() -> None:
    def rounds(budget_s: float) -> int:
        benchmark = Rounds()
        contenders = [harness.Contender(str(n), lambda _: torch.zeros(1000).sum()) for n in range(2)]
        harness.interleave(contenders, [None], 7, "cpu", benchmark, budget_s=budget_s)
        assert [len(c.seconds) for c in contenders] == [benchmark.rounds] * 2
        return benchmark.rounds

    assert rounds(budget_s=0.0) == harness.LEAST_ROUNDS
    assert rounds(budget_s=60.0) == 7


def test_a_settled_contender_follows_itself() -> None:
    calls: list[str] = []
    contenders = [harness.Contender(name, lambda _, name=name: calls.append(name)) for name in ("a", "b")]  # type: ignore[misc]
    harness.interleave(contenders, [None], 3, "cpu", Rounds(), budget_s=60.0, settle=True)
    warm_up = ["a", "b"]
    assert calls == warm_up + ["a", "a", "b", "b"] * 3
    assert [len(c.seconds) for c in contenders] == [3, 3]


def kernel_row(backend: str, threads: int, p50_ms: float, **values: Any) -> results.Row:
    base: dict[str, Any] = {"op": "kernels", "kernel": "conv3x3", "direction": "forward", "batch": 64}
    base |= {"shape": "resnet32x4-resnet8x4 64x32x32", "backend": backend, "threads": threads, "p50_ms": p50_ms}
    return row(**{**base, **values})


def test_kernels_table_has_one_thread_and_what_all_make_of_it() -> None:
    ours = kernel_row("cpu", 1, 100.0, over_same=1.95, gflops=193.3, peak_percent=164.2)
    torch_s = kernel_row("torch", 1, 195.0, over_same=1.0, gflops=99.1, peak_percent=84.0)
    two = kernel_row("cpu", 2, 53.0, over_same=1.9, gflops=364.0, peak_percent=155.0, over_one_thread=1.89)
    coarse = replace(ours, shape="resnet32x4-resnet8x4 256x8x8", peak_percent=0.0)
    half = replace(ours, dtype="bf16")
    elsewhere = replace(ours, shape="vgg13-vgg8 512x4x4")
    rows = [half, elsewhere, coarse, two, torch_s, ours]
    lines = [line for line in tables.table("kernels", rows).splitlines() if line.startswith("| conv3x3")]
    assert lines == [
        "| conv3x3 | forward | 64x32x32, 64 | fp32 | 195 | 100 | 1.95 | 193 | 164 | 1.89 on 2 |",
        "| conv3x3 | forward | 256x8x8, 64 | fp32 | - | 100 | 1.95 | 193 | not measured | - |",
        "| conv3x3 | forward | 64x32x32, 64 | bf16 | - | 100 | 1.95 | 193 | 164 | - |",
    ]
    head, *body = results.as_text(rows)
    assert "GFLOP/s" in head
    assert len(body) == len(rows)
    assert sum("not measured" in line for line in body) == 1


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_operations_are_those_of_the_plain_algorithm(name: str) -> None:
    kernel = kernels.KERNELS[name]
    with FlopCounterMode(display=False) as counter:
        kernel.values(PlainStages(), kernel.make(kernels.Maker(SIZE, torch.float32, 0)))
    assert kernel.operations(SIZE) == counter.get_total_flops()


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_bytes_are_those_of_the_large_arguments_and_results(name: str) -> None:
    kernel, dtype = kernels.KERNELS[name], torch.bfloat16
    arguments = kernel.make(kernels.Maker(SIZE, dtype, 0))
    given = {key: x for key, x in arguments.items() if isinstance(x, torch.Tensor) and key != kernel.writes}
    found = kernel.values(PlainStages(), arguments)
    large = [x for x in (*given.values(), *found.values()) if x.dim() > 1]
    assert kernel.bytes(SIZE, dtype) == sum(x.nbytes for x in large)


needs_cpu = pytest.mark.skipif(
    not sk.available_backends()["cpu"].available, reason="passes over rows are those of the compiled CPU library"
)


@needs_cpu
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_what_kernels_are_measured_against_computes_the_same(name: str) -> None:
    kernel = kernels.KERNELS[name]
    arguments = kernels.double(kernel.make(kernels.Maker(SIZE, torch.float32, 0)))
    variants = [arguments]
    if "accumulate" in arguments:
        variants.append({**arguments, "accumulate": True, "d_x": torch.randn_like(arguments["d_x"])})
    for given in variants:
        expected = kernel.values(PlainStages(), given)
        values = kernel.values(TorchStages(), given)
        assert values.keys() == expected.keys()
        for what, value in values.items():
            assert_close(value, expected[what], expected[what], f"{name}: {what}")


@needs_cpu
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_no_row_for_a_wrong_kernel(name: str, dtype: str) -> None:
    kernel = kernels.KERNELS[name]
    arguments = kernel.make(kernels.Maker(SIZE, kernels.DTYPES[dtype], 0))

    class Wrong(TorchStages):
        def __getattribute__(self, method: str) -> Any:
            right = super().__getattribute__(method)

            def wrong(**given: Any) -> Any:
                returned = right(**given)
                for x in (*(returned or ()), given.get(kernel.writes or "")):
                    if x is not None:
                        x.mul_(1.1)
                return returned

            return wrong if method == kernel.method else right

    right, wrong = (kernel.values(stages, arguments) for stages in (TorchStages(), Wrong()))
    exact = kernel.values(PlainStages(), kernels.double(arguments))
    kernels.check(kernel, right, right, exact)
    with pytest.raises(AssertionError, match=kernel.name):
        kernels.check(kernel, wrong, right, exact)


def test_no_relu_of_a_kernel_is_next_to_zero() -> None:
    kernel = kernels.KERNELS["end forward"]
    for dtype in kernels.DTYPES.values():
        given = kernels.double(kernel.make(kernels.Maker(PairSize(8, 16, 16, 8, 32), dtype, 0)))
        norm = given["norm"]
        before = (given["z"] - norm.mean) * norm.scale + norm.beta
        assert before.abs().min() > kernels.MARGIN / 2


def test_peak_of_multiply_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peak = fma_peak.build(tmp_path)
    if isinstance(peak, str):
        pytest.skip(f"no probe: {peak}")
    monkeypatch.setattr(fma_peak, "SECONDS", 0.001)
    for dtype in kernels.DTYPES:
        contender = peak.contender(dtype, 2)
        contender.time(None, "cpu")
        assert peak.operations(dtype, 2) == 2 * peak.operations(dtype, 1) > 0
        # between what any processor does and what none does on two threads
        assert 1e8 < peak.operations(dtype, 2) / contender.seconds[0] < 1e13


def test_no_peak_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    assert "/bin/false failed" in str(fma_peak.build(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert fma_peak.build(tmp_path) == "no C++ compiler"
