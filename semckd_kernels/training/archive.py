"""Checkpoint files whose checksums hold: ``torch.load`` by itself reads past a flipped bit.

``torch.save`` writes a zip archive with a CRC-32 of every member (the pickle, and the bytes of each tensor), but
``torch.load`` does not compare them. :func:`opened` compares all of them in one pass over the file (3 GB/s), and hands
out the open file, so that what is loaded is what was compared, whatever is renamed over it meanwhile::

    with archive.opened(path) as file:
        values = torch.load(file, map_location="cpu", weights_only=True)

Between members an archive holds headers, padding and a directory. A flipped bit there is found as well (names, sizes
and positions stand there twice) or changes nothing that is read (dates, padding).

Not protected are files that hold no checksums: those of ``torch.save`` before torch 1.6, which are no archives, and
those of a process that switched the checksums off (``torch.serialization.set_crc32_options``).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import first_line

_MAGIC = b"PK\x03\x04"
_CHUNK = 1 << 20
# an attribute of MS-DOS: torch reads such a member as empty, and leaves its tensor as the memory happened to be
_FOLDER = 0x10


class DamagedArchive(ValueError):
    """An archive that is not what was written, with the first difference in one sentence."""


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """A file at its first byte, once its checksums have been compared.

    Raises:
        OSError: it cannot be read.
        DamagedArchive: see :func:`verify`.
    """
    with open(path, "rb") as file:
        verify(file)
        yield file


def verify(file: BinaryIO) -> bool:
    """Compares the checksum of every member with its bytes, and leaves the file at its first byte.

    Args:
        file: open for reading, seekable.

    Returns:
        Whether there were checksums to compare.

    Raises:
        OSError: it cannot be read.
        DamagedArchive: a checksum, a header or the directory does not fit, or the end is missing.
    """
    file.seek(0)
    is_archive = file.read(len(_MAGIC)) == _MAGIC or zipfile.is_zipfile(file)
    try:
        return is_archive and _compare(file)
    except OSError:
        raise
    # zipfile raises half a dozen types for bytes that make no sense
    except Exception as error:
        raise DamagedArchive(first_line(error)) from error
    finally:
        file.seek(0)


def _compare(file: BinaryIO) -> bool:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(archive.NameToInfo) < len(members):
            raise DamagedArchive("a member is there twice")
        if not any(member.CRC for member in members):
            return False
        for member in members:
            if member.external_attr & _FOLDER and member.file_size:
                raise DamagedArchive(f"the member '{member.filename}' is marked as a folder")
            # zipfile compares at the end of a member
            with archive.open(member) as content:
                while content.read(_CHUNK):
                    pass
    return True
