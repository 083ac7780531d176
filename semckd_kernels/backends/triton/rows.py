"""How a program of a grouped kernel finds its work in a table: device functions. ``launch.py`` writes the table."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_row(table_ptr, rows, ROW: tl.constexpr):
    """The row that this program works on, and which of the row's programs it is: rows hold their first, in order."""
    program = tl.program_id(0)
    low = 0
    high = rows
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(table_ptr + middle * ROW) <= program:
            low = middle
        else:
            high = middle
    row = table_ptr + low * ROW
    return row, program - tl.load(row).to(tl.int32)


@triton.jit
def pointer(row, COLUMN: tl.constexpr, TYPE: tl.constexpr):
    """An address. What comes out of memory carries no alignment of its own, and without one every access is scalar."""
    return tl.multiple_of(tl.load(row + COLUMN).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def size(row, COLUMN: tl.constexpr):
    """A number below 2^31."""
    return tl.load(row + COLUMN).to(tl.int32)


@triton.jit
def channels(row, COLUMN: tl.constexpr, VECTOR: tl.constexpr):
    """A number of channels, a multiple of VECTOR."""
    return tl.multiple_of(tl.load(row + COLUMN).to(tl.int32), VECTOR)


@triton.jit
def real(row, COLUMN: tl.constexpr, TYPE: tl.constexpr):
    """A factor, stored as the bits of a double."""
    return tl.load(row + COLUMN).to(tl.float64, bitcast=True).to(TYPE)


@triton.jit
def is_last(ticket_ptr, count):
    """Whether this program is the last of ``count`` to draw: then it sees what the others have stored before."""
    # the ticket's release must follow what other threads of this program have stored
    tl.debug_barrier()
    return tl.atomic_add(ticket_ptr, 1, sem="acq_rel") == count - 1
