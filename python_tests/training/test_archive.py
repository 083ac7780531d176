"""Checksums of checkpoint files: every single flipped bit is found, or changes nothing that is read."""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import training_nets

from semckd_kernels.training import archive
from semckd_kernels.training.archive import DamagedArchive

VALUES = {"format": 1, "epoch": 3, "student": {"w": torch.arange(50.0), "b": torch.zeros(3)}, "name": "text"}


def saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(VALUES, buffer)
    return buffer.getvalue()


def load(content: bytes) -> Any:
    file = io.BytesIO(content)
    archive.verify(file)
    return torch.load(file, weights_only=True)


def test_a_flipped_bit_anywhere_is_found_or_harmless() -> None:
    """One bit of every byte: members, headers, padding, directory; all bits in the attributes of the directory."""
    content, random_bit = saved(), random.Random(0)
    directory = content.index(b"PK\x01\x02")
    found = 0
    for place in range(len(content)):
        bits = range(8) if place >= directory else [random_bit.randrange(8)]
        for bit in bits:
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            try:
                values = load(bytes(damaged))
            # torch's own refusals have half a dozen types
            except Exception:
                found += 1
            else:
                assert training_nets.differences(values, VALUES) == [], (place, bit)
    # more than half of so small a file is padding
    assert found > 1000


def test_a_file_cut_off_anywhere_does_not_load() -> None:
    content = saved()
    for size in range(0, len(content), 7):
        with pytest.raises((DamagedArchive, EOFError, pickle.UnpicklingError)):
            load(content[:size])


def test_what_has_no_checksums_is_not_compared() -> None:
    """Files from before torch 1.6, and of processes that switched checksums off."""
    old = io.BytesIO()
    torch.save(VALUES, old, _use_new_zipfile_serialization=False)
    assert not archive.verify(old)
    assert training_nets.differences(torch.load(old, weights_only=True), VALUES) == []
    torch.serialization.set_crc32_options(False)
    try:
        without = saved()
    finally:
        torch.serialization.set_crc32_options(True)
    assert not archive.verify(io.BytesIO(without))
    assert archive.verify(io.BytesIO(saved()))


def test_the_message_names_the_member(tmp_path: Path) -> None:
    content = bytearray(saved())
    content[content.index(torch.arange(50.0).numpy().tobytes()) + 7] ^= 0x40
    (tmp_path / "last.pt").write_bytes(content)
    with (
        pytest.raises(DamagedArchive, match=r"Bad CRC-32 for file 'archive/data/0'"),
        archive.opened(tmp_path / "last.pt"),
    ):
        pass
