"""The commands that add packages, as messages advise them: none of them replaces the torch that is installed."""

from __future__ import annotations

import importlib.metadata
import re

# builds of torch that have a package index of their own; a container's build, such as 2.9.0a0+abc.nv25.9, has none
OWN_INDEX = re.compile(r"cpu|xpu|cu\d+|rocm[\d.]+")


def pip_install(requirement: str, reinstall: str | None = None) -> str:
    """A shell command that installs a package and leaves torch alone.

    Packages such as torchvision and timm ask for a torch of their own choice: without the pin, pip would replace a CPU
    build or an older torch by a CUDA build of the newest one.

    Args:
        requirement: such as ``semckd-kernels[train]`` or ``timm``.
        reinstall: a package that is installed, but of another build than torch; it is removed first, since pip would
            take it for satisfied.

    Example:
        >>> from semckd_kernels.install import pip_install
        >>> pip_install("timm").startswith('pip install "timm" "torch==')
        True
    """
    command = f'pip install "{requirement}"'
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        # a torch that was built in place: pip knows nothing of it
        return command
    command += f' "torch=={torch}"'
    _, _, build = torch.partition("+")
    if reinstall:
        command = f"pip uninstall -y {reinstall} && {command}"
    if OWN_INDEX.fullmatch(build):
        command += f" --extra-index-url URL, the URL that this {build} build of torch was installed from"
    return command


def triton_requirement() -> str:
    """The triton that the installed torch asks for, such as ``triton==3.6.0``; any where it names none."""
    try:
        wanted = importlib.metadata.requires("torch") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    named = (line.partition(";")[0].strip() for line in wanted)
    return next((line for line in named if re.match(r"(pytorch-)?triton\b", line)), "triton")
