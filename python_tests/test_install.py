"""Advice to install packages keeps the torch that is there, whatever build it is."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from semckd_kernels import cli
from semckd_kernels.install import pip_install, triton_requirement

FROM_ITS_INDEX = " --extra-index-url URL, the URL that this {} build of torch was installed from"


def as_if(version: str | None, requires: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch's metadata."""

    def found(package: str) -> str:
        if package != "torch" or version is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: requires)


@pytest.mark.parametrize(
    ("version", "rest"),
    [
        ("2.14.1", ' "torch==2.14.1"'),
        # these builds are on no other index, and torchvision must be of the same build
        ("2.14.1+cpu", ' "torch==2.14.1+cpu"' + FROM_ITS_INDEX.format("cpu")),
        ("2.11.0+cu130", ' "torch==2.11.0+cu130"' + FROM_ITS_INDEX.format("cu130")),
        ("2.12.0+rocm7.0", ' "torch==2.12.0+rocm7.0"' + FROM_ITS_INDEX.format("rocm7.0")),
        # a container's own build
        ("2.12.0a0+5228986c39.nv26.3", ' "torch==2.12.0a0+5228986c39.nv26.3"'),
        (None, ""),
    ],
)
def test_the_installed_torch_is_pinned(version: str | None, rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if(version, [], monkeypatch)
    assert pip_install("semckd-kernels[train]") == f'pip install "semckd-kernels[train]"{rest}'


@pytest.mark.parametrize(
    ("requires", "wanted"),
    [
        (["numpy", "triton==3.6.0; platform_system == 'Linux'"], "triton==3.6.0"),
        (["pytorch-triton-rocm==3.5.1"], "pytorch-triton-rocm==3.5.1"),
        (["numpy"], "triton"),
    ],
)
def test_triton_is_the_one_that_torch_asks_for(
    requires: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if("2.14.1", requires, monkeypatch)
    assert triton_requirement() == wanted


def test_a_package_of_another_build_is_removed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip takes it for satisfied, so that installing the extra would change nothing."""
    pytest.importorskip("torchvision")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    reason = cli.check_dependencies()
    assert reason is not None
    assert reason.startswith("torchvision cannot be imported (operator torchvision::nms does not exist): run ")
    assert 'run pip uninstall -y torchvision && pip install "semckd-kernels[train]" "torch==' in reason
