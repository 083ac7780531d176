"""A package that is missing or too old is named in one sentence."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("library", "part", "version"),
    [("torchdistill", "torchdistill.common.module_util", "1.1.5"), ("timm", "timm.task", "1.0.29")],
)
def test_the_message_says_what_to_install(
    library: str, part: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"semckd_kernels.integrations.{library}"
    # None: the import fails, as that of a version without the part does
    monkeypatch.setitem(sys.modules, part, None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=rf"needs {library} {version} or newer .*pip install '{library}>={version}'"):
        importlib.import_module(name)
