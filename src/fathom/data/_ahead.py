"""Rows of tensors that lie in files, fetched from the disk while something else is computed.

A row that is not in memory makes whoever reads it wait, one row after the other; and the system reads on beyond it, up
to megabytes, which among shuffled rows is for nothing and drives out of memory what was fetched before. Told before
which rows will be read, it fetches those alone, many at once and without anyone waiting.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import cache

from torch import Tensor

RANDOM, SOON = (getattr(mmap, name, -1) for name in ("MADV_RANDOM", "MADV_WILLNEED"))  # not on Windows


def apart(column: Tensor) -> bool:
    """Have the system read no more than what is asked for, of a tensor that is a file mapped into memory.

    Returns:
        whether it is one, whose rows can be fetched.
    """
    advise = _madvise()
    if advise is None or column.untyped_storage().filename is None or not column.is_contiguous():
        return False
    _tell(advise, column.data_ptr(), column.nbytes, RANDOM)
    return True


def fetch(column: Tensor, index: Tensor) -> None:
    """Have the system read the rows at `index` [B] of a mapped tensor [N, …] into memory, and do not wait for it."""
    advise = _madvise()
    assert advise is not None
    first, size = column.data_ptr(), column[0].nbytes
    for row in index.tolist():
        _tell(advise, first + row * size, size, SOON)


def _tell(advise: Callable[[int, int, int], int], first: int, size: int, what: int) -> None:
    """Advise on the whole pages in which so many bytes lie."""
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    advise(start, first + size - start, what)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    found = None if SOON < 0 else getattr(ctypes.CDLL(None), "madvise", None)
    if found is not None:
        found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return found
