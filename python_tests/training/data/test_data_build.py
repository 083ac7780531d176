"""What :func:`build` refuses before it looks for anything."""

from __future__ import annotations

import re
from typing import Any

import pytest

from semckd_kernels.training import data

KNOWN = "data must be one of 'digits', 'cifar100', 'imagenet', 'folder', 'timm:NAME' or 'package.module:factory'"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "cifar10",
            {},
            f"{KNOWN}, got 'cifar10'; the nearest is 'cifar100'",
        ),
        ("!", {}, f"{KNOWN}, got '!'"),
        ("cifar100", {}, "root must be the folder that holds 'cifar-100-python' or 'cifar-100-binary', got None"),
        ("imagenet", {}, "root must be the folder that holds 'train' and 'val', got None"),
        ("digits", {"workers": -1}, "workers must be at least 0, got -1"),
        ("digits", {"download": True}, "download is for 'cifar100' only, got it for 'digits'"),
        ("digits", {"image_size": 32}, "image_size of 'digits' must be 16, got 32"),
        ("cifar100", {"root": "x", "image_size": 64}, "image_size of 'cifar100' must be 32, got 64"),
        ("imagenet", {"root": "x", "image_size": 0}, "image_size must be at least 1, got 0"),
        ("digits", {"batch_size": 1438}, "batch_size must be at most 1437, the number of training samples, got 1438"),
        ("digits", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("digits", {"rank": 1}, "rank must be from 0 to world_size - 1 = 0, got 1"),
    ],
)
def test_bad_arguments(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        data.build(name, **{"batch_size": 8} | options)


def test_names_are_those_that_build() -> None:
    assert data.names() == ["digits", "cifar100", "imagenet", "folder"]
