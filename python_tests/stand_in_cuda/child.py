"""Runs a function in a process whose CUDA is the stand-in, and hands back what it returned.

    run(measure, "ours", "cifar", "bf16")

The process imports the function itself, so it must be a module's; arguments and result are what JSON can hold.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .build import ROOT, environment

LIMIT_S = 600


class ChildFailed(Exception):
    """The process ended with an error; the message is what it printed."""


def run(function: Callable[..., Any], *arguments: Any, devices: int = 1) -> Any:
    """Calls ``function`` on the stand-in.

    Args:
        function: of a module that can be imported by its name.
        devices: how many GPUs the process sees.

    Raises:
        ChildFailed: it raised, or the process died.
    """
    name = f"{function.__module__}:{function.__name__}"
    with tempfile.NamedTemporaryFile() as result:
        command = [sys.executable, "-m", __name__, name, json.dumps(arguments), result.name]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=LIMIT_S
        )
        if done.returncode:
            raise ChildFailed(f"{name} exited with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
        return json.loads(Path(result.name).read_text())


def main() -> None:
    name, arguments, path = sys.argv[1:]
    # by name: this file is __main__ here, and must be loaded once
    importlib.import_module(f"{__package__}.prepare").prepare()
    module, function = name.split(":")
    result = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    Path(path).write_text(json.dumps(result))
    sys.stdout.flush()
    # torch's threads are not taken down: what they would wait for never runs
    os._exit(0)


if __name__ == "__main__":
    main()
