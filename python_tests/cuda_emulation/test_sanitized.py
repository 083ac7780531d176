"""All tests of the pair loss once more, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from emulation import CHOSEN, sanitizer_environment


# on the plain and the observed build: test_pair_loss_emulated.py
@pytest.mark.slow
@pytest.mark.skipif("sanitized" in CHOSEN, reason="this is the process that runs under the sanitizers")
def test_pair_loss_under_sanitizers(built: None) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--confcutdir", str(here)]
    ran = subprocess.run(
        [*command, str(here / "test_pair_loss_emulated.py")],
        env={**sanitizer_environment(), "SEMCKD_EMULATION": "sanitized"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-8000:]
    assert " passed" in ran.stdout
