"""The README is true: its tables are the stored rows', its commands and names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import semckd_kernels as sk

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="runs in a checkout only")


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_tables_are_made_from_the_stored_rows() -> None:
    from bench import results

    assert results.render_readme(readme(), results.load()) == readme(), "run `make readme-table`"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"`?make ([a-z][\w-]+)", readme()):
        assert target in targets, target


def test_names_exist() -> None:
    for name in re.findall(r"`functional\.(\w+)\(", readme()):
        assert hasattr(sk.functional, name)
    for name in re.findall(r"\bsk\.(\w+)", readme()):
        assert hasattr(sk, name)


def test_files_exist() -> None:
    for path in re.findall(r"^(?:csrc|semckd_kernels|python_tests|bench)/[\w/.]*", readme(), re.MULTILINE):
        assert (ROOT / path).exists(), path
