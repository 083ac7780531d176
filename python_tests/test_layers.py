"""Imports point the way that docs/how.md draws them: it is read, and so is every import, lazy ones too."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "semckd_kernels"
CSRC = ROOT / "csrc"
PAGE = ROOT / "docs" / "how.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="runs in a checkout only")


def drawn() -> dict[str, list[str]]:
    """Rooms and what they may import, top down: lines ``rooms -> rooms`` of the page's diagram."""
    block = re.search(r"```text\n(cli .*?)```", PAGE.read_text(), re.DOTALL)
    assert block, "docs/how.md has no diagram"
    arrows = {}
    for line in block.group(1).splitlines():
        sources, targets = (_names(side) for side in line.split("#")[0].split("->"))
        arrows |= dict.fromkeys(sources, targets)
    return arrows


def _names(side: str) -> list[str]:
    return [name.strip() for name in side.split(",") if name.strip()]


def room_of(module: str, rooms: list[str]) -> str:
    """The deepest room that a module lies in; modules of the root are rooms by themselves."""
    path = module.removeprefix("semckd_kernels").strip(".") or "package"
    if f"{path}.package" in rooms:
        # the names that a folder hands out
        return f"{path}.package"
    inside = [room for room in rooms if path == room or path.startswith(f"{room}.")]
    return max(inside, key=len, default=path)


def imports(path: Path) -> set[str]:
    """Absolute names of the package's modules that a file imports, lazily or not."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    here = parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "semckd_kernels"}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            if base and base[0] == "semckd_kernels":
                # "from .. import name" may import a module or what a module holds
                for alias in node.names:
                    full = Path(*base, alias.name)
                    is_module = (ROOT / full).is_dir() or (ROOT / full).with_suffix(".py").exists()
                    found.add(".".join([*base, alias.name] if is_module else base))
    return found


def arrows() -> set[tuple[str, str, str]]:
    """Room, room, and the file in which the one imports the other."""
    rooms = list(drawn())
    found = set()
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(ROOT)
        if path.name == "_build_info.py":
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        source = room_of(module, rooms)
        for target in (room_of(name, rooms) for name in imports(path)):
            if target != source:
                found.add((source, target, str(relative)))
    return found


def test_every_import_is_drawn() -> None:
    allowed = drawn()
    wrong = sorted(arrow for arrow in arrows() if arrow[1] not in allowed.get(arrow[0], []))
    assert not wrong, "\n".join(f"{source} -> {target} in {path}" for source, target, path in wrong)


def test_every_arrow_is_an_import() -> None:
    existing = {(source, target) for source, target, _ in arrows()}
    stale = [
        (room, target) for room, targets in drawn().items() for target in targets if (room, target) not in existing
    ]
    assert not stale


def test_arrows_point_down() -> None:
    order = list(drawn())
    for room, targets in drawn().items():
        for target in targets:
            assert order.index(target) > order.index(room), f"{room} -> {target}"


# a call reads well with this many arguments
MOST_ARGUMENTS = 8
# more: a public constructor whose options are keywords, and data sets, whose parts each have a name
MORE_ARGUMENTS = {
    "modules/distiller.py: __init__",
    "training/data/memory.py: __init__",
    "training/data/__init__.py: build",
    # operators, which have their schema
    "ops/pairs.cpp: run_pairs",
    "ops/winograd.cpp: conv3x3_backward",
}


def argument_counts() -> dict[str, int]:
    """Of all functions but kernels of Triton, overloads, and fakes, which have their operator's schema."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            decorators = {part for x in node.decorator_list for part in re.findall(r"\w+", ast.unparse(x))}
            if not decorators & {"jit", "fake", "overload"}:
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                name = f"{path.relative_to(PACKAGE)}: {node.name}"
                count = sum(x.arg not in ("self", "cls") for x in arguments)
                found[name] = max(count, found.get(name, 0))
    return found


def compiled_argument_counts() -> dict[str, int]:
    """Of all functions of csrc, and pointers to them, but operators, which have their schema."""
    found = {}
    for path in (path for path in CSRC.rglob("*.*") if path.suffix in (".h", ".cpp", ".cuh", ".cu")):
        code = re.sub(r"//.*|#define(?:.*\\\n)*.*", "", path.read_text())
        for name, arguments in re.findall(r"\b(?:\(\*)?(\w+)\)?\(((?:const )?\w[^(){}]*)\)(?: const)?(?: \{|;)", code):
            # templates' own commas
            while (plain := re.sub(r"<[^<>]*>", "", arguments)) != arguments:
                arguments = plain
            parts = arguments.split(",")
            # a type and a name each: no call
            if all(re.search(r"[\w*&] ?[*&]?\w+(?: = .*)?$", part.strip()) and " " in part.strip() for part in parts):
                found[f"{path.relative_to(CSRC)}: {name}"] = len(parts)
    return found


@pytest.mark.parametrize(("count", "least"), [(argument_counts, 500), (compiled_argument_counts, 200)])
def test_what_belongs_together_travels_together(count: Callable[[], dict[str, int]], least: int) -> None:
    counts = count()
    assert len(counts) > least
    many = {name for name, number in counts.items() if number > MOST_ARGUMENTS}
    assert many <= MORE_ARGUMENTS, f"group the arguments of {sorted(many - MORE_ARGUMENTS)}"
