"""Groups of values, as a file or ``config.json`` has them, by dotted name and in the types of the fields.

Names are looked at here, and answered with the nearest one; jsonargparse reads the types, and the numbers of YAML as
people write them (``5e-4``, which plain YAML takes for a text).
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .parser import nearest

# letters of a wrong value in a message
LONGEST = 80


def read(path: Path) -> dict[str, Any]:
    """The groups of a YAML or a JSON file; YAML unless its name ends with ``.json``.

    Raises:
        ValueError: it cannot be read, is no such file, or holds no groups; one sentence with its name.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not a text file in UTF-8") from error
    kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
    try:
        found = json.loads(text, object_pairs_hook=_once) if kind == "JSON" else _load_yaml(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not {kind}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' must hold groups of fields, such as `recipe: {{lr: 0.05}}`, got {_short(found)}")
    return found


def _load_yaml(text: str) -> Any:
    import yaml
    from jsonargparse import get_loader

    try:
        _check_once(yaml.compose(text, Loader=yaml.SafeLoader))
        return get_loader("yaml")(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ValueError(f"{place}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _check_once(node: Any) -> None:
    """Raises ValueError where a group has a name twice: YAML's readers take the last one without a word."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        _once([(str(key.value), None) for key, _ in node.value])
        for _, value in node.value:
            _check_once(value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has '{name}' twice in one group")
        found[name] = value
    return found


def typed(
    kinds: Mapping[str, Any], groups: Mapping[str, Any], shown: str = "{}", also: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Values by dotted name.

    Args:
        kinds: the type of each field by its dotted name; that of a group which may be left empty is ``NoneType``.
        groups: fields by name, in groups.
        shown: how a message names a field.
        also: further names of fields, which an unknown one may be near to.

    Raises:
        ValueError: a field or a group does not exist, or a value is of another type.

    Example:
        >>> from semckd_kernels.training import values
        >>> values.typed({"recipe.lr": float, "recipe.milestones": tuple[int, ...]}, {"recipe": {"milestones": [3, 5]}})
        {'recipe.milestones': (3, 5)}
    """
    leaves = list(_leaves(kinds, groups, shown, also or {}))
    return {name: _typed(kinds[name], value, shown.format(name)) for name, value in leaves}


def _leaves(
    kinds: Mapping[str, Any], groups: Mapping[str, Any], shown: str, also: Mapping[str, str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in groups.items():
        name = f"{prefix}{key}"
        is_group = any(known.startswith(f"{name}.") for known in kinds)
        if name in kinds and not (is_group and isinstance(value, Mapping)):
            yield name, value
        elif is_group:
            if not isinstance(value, Mapping):
                raise ValueError(f"{shown.format(name)} must be a group of fields, got {_short(value)}")
            yield from _leaves(kinds, value, shown, also, f"{name}.")
        else:
            near = _near(name, kinds, also)
            known = [text.removeprefix(prefix).partition(".")[0] for text in kinds if text.startswith(prefix)]
            hint = f"did you mean {shown.format(near)}?" if near else f"there are {', '.join(dict.fromkeys(known))}"
            raise ValueError(f"{shown.format(name)} is not a field: {hint}")


def _near(name: str, kinds: Iterable[str], also: Mapping[str, str]) -> str | None:
    """The field that was probably meant: of the same group before others, and by its own name or another one."""
    group, _, last = name.rpartition(".")
    own = {known.rpartition(".")[2]: known for known in kinds if known.rpartition(".")[0] == group}
    groups = {known.partition(".")[0]: known.partition(".")[0] for known in kinds}
    fields = {known.rpartition(".")[2]: known for known in kinds}
    for known in (own, {**groups, **also, **fields}):
        if (near := nearest(last.lower().replace("-", "_"), known)) is not None:
            return known[near]
    return None


@functools.cache
def _parser(kind: Any) -> Any:
    """A parser of one value."""
    # not before it is needed: `semckd info` does without it
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind, default=jsonargparse.SUPPRESS)
    return parser


def _typed(kind: Any, value: Any, name: str) -> Any:
    """A value as a field's type; a text is neither a number nor a switch, and nothing is left empty that may not be."""
    from jsonargparse import ArgumentError

    if isinstance(value, Path):
        # from Python
        value = str(value)
    try:
        found = None if value is None else _parser(kind).parse_object({"value": value}, defaults=False).value
        fits = isinstance(found, str) == isinstance(value, str) and (found is None) == (value is None)
    except ArgumentError:
        fits = False
    if not fits or (value is None and kind is not type(None) and type(None) not in typing.get_args(kind)):
        raise ValueError(f"{name} must be {_described(kind)}, got {_short(value)}")
    return found


def _described(kind: Any) -> str:
    if kind is type(None):
        return "a group of fields"
    inner = [part for part in typing.get_args(kind) if part not in (type(None), ...)]
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(map(_described, inner))
    if typing.get_origin(kind) is tuple:
        count = "" if ... in typing.get_args(kind) else f"{len(inner)} "
        return f"a list of {count}{inner[0].__name__}"
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    return f"of type {kind.__name__}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
