"""README and docs are true: tables are the stored rows', commands, names, links and variables exist, examples run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import semckd_kernels as sk

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="runs in a checkout only")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def found(pattern: str, least: int) -> set[str]:
    """What a pattern finds in all pages; a pattern that finds less than it should has gone stale."""
    matches = {match for page in PAGES for match in re.findall(pattern, page.read_text(), re.MULTILINE)}
    assert len(matches) >= least, f"{pattern} finds {sorted(matches)}"
    return matches


def test_pages_are_made_from_the_stored_rows() -> None:
    from bench import pages, results

    for name, text in pages.pages(results.load()).items():
        assert (ROOT / "docs" / name).read_text() == text, f"docs/{name}: run `make tables`"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len((ROOT / "docs" / "how.md").read_text().splitlines()) <= 120


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert found(r"`?make ([a-z][\w-]+)(?=[`\s])", least=5) - {"tables"} <= targets | {"tables"}


def test_names_exist() -> None:
    for name in found(r"`functional\.(\w+)\(", least=0):
        assert hasattr(sk.functional, name)
    for name in found(r"\bsk\.(\w+)", least=1):
        assert hasattr(sk, name)


def test_files_exist() -> None:
    for path in found(r"`((?:csrc|semckd_kernels|python_tests|bench|docs)/[\w/.-]*)`", least=8):
        assert (ROOT / path).exists(), path


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([\w/.-]+)(?:#[\w-]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_environment_variable_is_in_the_table() -> None:
    sources = [*ROOT.glob("semckd_kernels/**/*.py"), ROOT / "setup.py", *ROOT.glob("python_tests/**/*.py")]
    read = {name for path in sources for name in re.findall(r"environ[^\n]*?\"(SEMCKD_\w+)\"", path.read_text())}
    documented = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "environment.md").read_text(), re.MULTILINE))
    assert len(read) >= 4
    assert read <= documented


@pytest.mark.parametrize("page", ["docs/index.md"])
def test_examples_run(page: str) -> None:
    for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        exec(compile(code, page, "exec"), {})


# the examples, links and names of its pages: the tests of this file
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="sphinx is missing: pip install '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # a page that is opened from a folder asks no other host for anything
    for page in tmp_path.glob("**/*.html"):
        assert not re.findall(r"(?:src|href)=\"https?://[^\"]+\.(?:js|css|woff2?)", page.read_text()), page.name
