"""Runs tests marked ``every_level`` at one CPU instruction set: ``python at_level.py LEVEL FILE...``

The instruction set is chosen once a process, when the library is loaded. A test says for itself that it has something
to find at each of them, and for which of its parameters::

    @pytest.mark.every_level(case=[CASES[0]])

Exits with an error if a file, or a marked function of it, has no test to run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest


class EveryLevel:
    """A pytest plugin that leaves the marked tests, and makes sure that there are some."""

    def __init__(self, files: list[str]) -> None:
        self.files = files

    @staticmethod
    def is_chosen(item: Any) -> bool:
        """Whether a marked test has one of the wanted values for each parameter that its mark names."""
        mark = item.get_closest_marker("every_level")
        return all(item.callspec.params[name] in values for name, values in mark.kwargs.items())

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        marked = [item for item in items if item.get_closest_marker("every_level")]
        items[:] = [item for item in marked if self.is_chosen(item)]
        functions = {(item.path.name, item.originalname) for item in items}
        lacking = {(item.path.name, item.originalname) for item in marked} - functions
        lacking |= {(file, "any function") for file in self.files} - {(file, "any function") for file, _ in functions}
        if lacking:
            raise pytest.UsageError(f"every_level chooses nothing of {sorted(lacking)}")


def main(level: str, *files: str) -> int:
    os.environ["SEMCKD_CPU_LEVEL"] = level
    import torch

    import semckd_kernels  # noqa: F401

    assert torch.ops.semckd_cpu.isa() == level, torch.ops.semckd_cpu.isa()
    folder = Path(__file__).parents[1]
    paths = [str(folder / file) for file in files]
    return pytest.main(["-q", "-p", "no:cacheprovider", *paths], plugins=[EveryLevel(list(files))])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
