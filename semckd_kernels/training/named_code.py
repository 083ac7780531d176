"""Code that a configuration names, ``package.module:factory``: imported only where the user has asked for it.

A run's folder is passed on, and its ``config.json`` names the networks and the data to build. What the flags of this
command line name is imported from anywhere, the working folder included. What a stored configuration names is imported

* where this process has imported it already, or
* from an installed package: a module below the interpreter's ``site-packages``, or
* under ``--allow-code``.

Anything else is refused before it is imported, above all a module that lies in the run's folder or the working folder.
Networks of the zoo are no such code, nor are networks and data sets of torchvision and timm; files of weights run none.
"""

from __future__ import annotations

import argparse
import importlib
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..features import nearest
from .errors import typed_line

FLAG = "--allow-code"
# modules that may be imported; None stands for all
_allowed: ContextVar[frozenset[str] | None] = ContextVar("allowed", default=frozenset())


def add_flag(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    help_text = "import code that a stored configuration names (package.module:factory), also from this folder"
    parser.add_argument(FLAG, action="store_true", help=help_text)


def module_of(name: str | None) -> str | None:
    """The module that the name of a network or a data set makes Python import; None where it is none of the user's."""
    if not name or ":" not in name or name.startswith(("torchvision/", "timm/", "timm:")):
        return None
    return name.partition(":")[0]


def load(name: str) -> Callable[..., Any]:
    """The function ``package.module:factory``; the working folder is searched as well.

    Raises:
        ValueError: there is no such module or function, or the module fails.
    """
    path, _, attribute = name.partition(":")
    # a console script's search path lacks the folder it is started in; at the end it can hide nothing. What is imported
    # already, as installed packages are that a stored configuration names, must not find more there.
    if path not in sys.modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(path)
    # a user's module may fail in any way
    except Exception as error:
        raise ValueError(f"{name}: the module '{path}' cannot be imported ({typed_line(error)})") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value)]
        raise ValueError(f"{name}: '{path}' has no function '{attribute}'{nearest(attribute, names)}")
    found: Callable[..., Any] = function
    return found


@contextmanager
def asked_for(args: argparse.Namespace) -> Iterator[None]:
    """Within it, what a command line's flags name is allowed."""
    given = vars(args)
    named = ("student.name", "teacher.name", "data.name")
    names = None if given.get("allow_code") else [given.get(name) for name in named]
    with allowed(names):
        yield


@contextmanager
def allowed(names: Iterable[str | None] | None) -> Iterator[None]:
    """Within it, code that these networks and data sets name is allowed; None allows all."""
    modules = None if names is None else frozenset(module for name in names if (module := module_of(name)))
    token = _allowed.set(modules)
    try:
        yield
    finally:
        _allowed.reset(token)


def check(name: str) -> None:
    """Imports the module that a network or a data set is made by, if it is an installed one; leaves others alone.

    Raises:
        ValueError: it is neither allowed, nor imported already, nor an installed package; nothing of it has run.
    """
    path, modules = module_of(name), _allowed.get()
    if path is None or modules is None or path in modules:
        return
    parts = path.split(".")
    for n in range(1, len(parts) + 1):
        module = ".".join(parts[:n])
        if module in sys.modules:
            continue
        if not _is_installed(spec := _find(module)):
            found = _origin(module, spec)
            raise ValueError(
                f"the stored configuration names code that is not an installed package, '{name}'{found}: if you trust "
                f"it, give {FLAG} (in Python, import it first)"
            )
        try:
            importlib.import_module(module)
        # as any foreign module may
        except Exception as error:
            raise ValueError(f"{name}: the module '{module}' cannot be imported ({error})") from error


def _find(module: str) -> ModuleSpec | None:
    """What an import would take; its parent has been imported already."""
    try:
        return find_spec(module)
    except (ImportError, ValueError):
        return None


def _is_installed(spec: ModuleSpec | None) -> bool:
    if spec is None:
        return False
    # a folder without code of its own has places, and each of its modules is looked at in turn
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
    folders = _installed_folders()
    return bool(places) and all(
        any(Path(os.path.realpath(place)).is_relative_to(folder) for folder in folders) for place in places
    )


def _installed_folders() -> list[str]:
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [os.path.realpath(folder) for folder in folders]


def _origin(module: str, spec: ModuleSpec | None) -> str:
    if spec is None and "." not in module:
        spec = PathFinder.find_spec(module, [os.getcwd()])
    places = [spec.origin, *(spec.submodule_search_locations or [])] if spec is not None else []
    return next((f" (found as '{place}')" for place in places if place), "")
