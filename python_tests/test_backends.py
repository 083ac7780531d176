"""Choice of a backend: names, reasons, the environment variable, and what is said where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import semckd_kernels as sk
from semckd_kernels import backends, functional

ONE_PAIR = ([[torch.zeros(2, 3, 1, 1)]], [[torch.ones(2, 3, 1, 1)]], torch.ones(2, 1, 1))


@pytest.fixture
def half_built(tmp_path: Path) -> Path:
    """A copy of the package without its shared libraries."""
    package = Path(sk.__file__).parent
    ignored = shutil.ignore_patterns("lib", "_build_info.py", "__pycache__", "training")
    return Path(shutil.copytree(package, tmp_path / "semckd_kernels", ignore=ignored))


def run(code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


def test_available_backends_name_all_with_a_sentence() -> None:
    available = sk.available_backends()
    assert set(available) == set(backends.NAMES)
    assert available["reference"].available
    assert available["cpu"].available
    assert any(f"{isa} instructions" in available["cpu"].detail for isa in backends.CPU_LEVELS)
    for name, (_, detail) in available.items():
        assert detail, name


def test_fastest_on_the_cpu_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMCKD_BACKEND", raising=False)
    assert backends.resolve(None, "cpu") == "cpu"


def test_devices_without_kernels_get_the_reference() -> None:
    assert backends.resolve(None, "meta") == "reference"
    s, t, weight = ([[x.to("meta") for x in row] for row in rows] for rows in (*ONE_PAIR[:2], [[ONE_PAIR[2]]]))
    assert functional.semckd_loss(s, t, weight[0][0]).device.type == "meta"


def test_unknown_name() -> None:
    message = "backend must be one of reference, cpu, cuda, triton, got 'cublas'"
    with pytest.raises(ValueError, match=message):
        functional.semckd_loss(*ONE_PAIR, backend="cublas")
    with pytest.raises(ValueError, match=message):
        sk.SemCKDLoss(backend="cublas")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: nothing is missing")
def test_backend_that_cannot_serve() -> None:
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot serve cpu tensors: it serves CUDA tensors only"):
        functional.semckd_loss(*ONE_PAIR, backend="cuda")
    assert not sk.available_backends()["cuda"].available


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMCKD_BACKEND", "reference")
    assert backends.resolve(None, "cpu") == "reference"
    # an argument goes before the environment
    assert backends.resolve("cpu", "cpu") == "cpu"
    monkeypatch.setenv("SEMCKD_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"SEMCKD_BACKEND must be one of .*, got 'fast'"):
        functional.semckd_loss(*ONE_PAIR)
    monkeypatch.setenv("SEMCKD_BACKEND", "")
    assert backends.resolve(None, "cpu") == "cpu"


def test_library_that_was_not_built(half_built: Path) -> None:
    script = """
import torch, warnings
import semckd_kernels as sk
warnings.simplefilter("error")
maps = [[torch.zeros(2, 3, 1, 1)]]
try:
    sk.SemCKDLoss("cpu")(maps, maps, torch.ones(2, 1, 1))
except RuntimeError as error:
    print(error)
try:
    sk.SemCKDLoss()(maps, maps, torch.ones(2, 1, 1))
except RuntimeWarning as warning:
    print(warning)
print(sk.SemCKDLoss("reference")(maps, maps, torch.ones(2, 1, 1)).item())
"""
    result = run(script, cwd=half_built.parent)
    assert result.returncode == 0, result.stderr
    refused, warned, value = result.stdout.splitlines()
    assert refused.startswith("backend 'cpu' cannot serve cpu tensors: the compiled library is missing")
    assert refused.endswith("install the package with `pip install .`")
    assert warned.startswith(
        "the plain PyTorch reference serves cpu tensors here, since faster kernels do not (cpu: the"
    )
    assert value == "0.0"


def test_library_that_does_not_load(half_built: Path) -> None:
    (half_built / "lib").mkdir()
    (half_built / "lib" / "libsemckd.so").write_bytes(b"not a library")
    script = "import semckd_kernels as sk; print(sk.available_backends()['cpu'].detail)"
    result = run(script, cwd=half_built.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("the compiled library does not load beside torch")
    assert result.stdout.rstrip().endswith("reinstall it")


def test_torch_that_is_too_old(half_built: Path) -> None:
    (half_built.parent / "torch.py").write_text('__version__ = "2.10.1+cu128"\n')
    result = run("import semckd_kernels", cwd=half_built.parent)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last == "ImportError: semckd_kernels needs torch >= 2.11, found 2.10.1+cu128: pip install -U torch"


def test_missing_cuda_kernels_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"cuda": "no working nvcc was found when the library was built", "triton": None}
    monkeypatch.setattr(backends, "why_not", lambda name, device: reasons[name])
    monkeypatch.setattr(torch.version, "hip", None)
    backends._fastest.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"'triton' serves cuda tensors here, since .*no working nvcc"):
            assert backends._fastest("pair_loss", "cuda") == "triton"
        assert backends._fastest("pair_loss", "cuda") == "triton"
    finally:
        backends._fastest.cache_clear()


UNKNOWN_LEVEL = """
import torch, semckd_kernels as sk
x = torch.zeros(2, 3, 1, 1)
print(sk.available_backends()["cpu"].detail)
for backend in (None, "cpu", "reference"):
    for call in (
        lambda: sk.SemCKDLoss(backend)([[x]], [[x]], torch.ones(2, 1, 1)),
        lambda: sk.SemCKD(2, [3], [3], backend=backend).eval()([x], [x]).loss,
    ):
        try:
            call()
            print("served")
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
"""


def test_unknown_cpu_level() -> None:
    # another backend, or another instruction set, would be a loss of speed without a word
    result = run(UNKNOWN_LEVEL, SEMCKD_CPU_LEVEL="avx1024")
    sentence = "SEMCKD_CPU_LEVEL is 'avx1024', not one of base, avx2, avx512, avx512_bf16: unset or correct it"
    forced = f"RuntimeError: backend 'cpu' cannot serve cpu tensors: {sentence}"
    expected = [sentence, *[f"ValueError: {sentence}"] * 2, *[forced] * 2, "served", "served"]
    assert result.stdout.splitlines() == expected, result.stderr


@pytest.mark.parametrize("level", ["", "AVX2", "avx2 ", "foo"])
def test_names_of_cpu_levels(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMCKD_BACKEND", raising=False)
    monkeypatch.setenv("SEMCKD_CPU_LEVEL", level)
    backends._fastest.cache_clear()
    with pytest.raises(ValueError, match=f"SEMCKD_CPU_LEVEL is '{level}', not one of base, avx2"):
        functional.semckd_loss(*ONE_PAIR)
    monkeypatch.delenv("SEMCKD_CPU_LEVEL")
    assert functional.semckd_loss(*ONE_PAIR) == 1


def test_report_names_everything() -> None:
    result = subprocess.run([sys.executable, "-m", "semckd_kernels"], capture_output=True, text=True, check=True)
    for fact in ("semckd_kernels", "python", "torch", "triton", "gpu", "built with", *backends.NAMES):
        assert fact in result.stdout
    assert torch.__version__ in result.stdout


def test_import_is_light() -> None:
    # the compiler and Triton take seconds to import; who does not use them does not wait for them
    result = run("import semckd_kernels, sys; print({'torch._dynamo', 'triton'} & set(sys.modules))")
    assert result.stdout.strip() == "set()", result.stdout + result.stderr
