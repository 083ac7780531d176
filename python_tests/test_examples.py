"""Every example in a docstring runs and shows what it says; the modules are found, not listed."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import semckd_kernels as sk

# what they need is optional, and their examples are those of the trainer's own tests
OPTIONAL = ("training", "analysis", "cli", "integrations")


def module_names() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(sk.__path__, "semckd_kernels.")]
    return [name for name in found if name.split(".")[1] not in (*OPTIONAL, "__main__", "lib")]


def examples(name: str) -> list[doctest.DocTest]:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin) as file:
        if ">>>" not in file.read():
            return []
    return [test for test in doctest.DocTestFinder().find(importlib.import_module(name)) if test.examples]


@pytest.mark.parametrize("name", [name for name in module_names() if examples(name)])
def test_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_name_has_an_example() -> None:
    modules = [getattr(sk, name) for name in sk.__all__]
    with_example = {test.name.rpartition(".")[2] for name in module_names() for test in examples(name)}
    public = {
        x.__name__ for x in modules if callable(x) and not issubclass(x if isinstance(x, type) else object, tuple)
    }
    public |= set(sk.functional.__all__)
    assert public <= with_example
