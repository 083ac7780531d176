"""Other libraries' trainers on one thread: processes that are compared must add up in one order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threads import one_thread


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield
