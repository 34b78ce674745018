"""Room for tensors: in memory while there is enough of it, in a file mapped into memory beyond."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
SMALL = 16_000_000  # bytes, for which nobody needs to ask what is free


def allocate(shapes: Shapes, gigabytes: float = 0.0) -> dict[str, Tensor]:
    """Return uninitialised tensors, by name; where all together exceed the allowance, the largest lie in files.

    The files have no name and vanish with the last tensor that uses them. They lie in $TMPDIR, else in /var/tmp,
    which unlike /tmp is never held in memory.
    """
    sizes = {name: _bytes(shape, dtype) for name, (shape, dtype) in shapes.items()}
    total, mapped = sum(sizes.values()), set()
    allowance = gigabytes * 1e9 or (SMALL if total <= SMALL else free_memory() / 2)
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if total > allowance and sizes[name]:
            mapped.add(name)
            total -= sizes[name]
    return {
        name: _mapped(shape, dtype) if name in mapped else torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in shapes.items()
    }


def free_memory() -> float:
    """Return the bytes of memory that this process can still have, by the system's and the container's limits."""
    limits = [float(os.sysconf("SC_AVPHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            limits = [float(line.split()[1]) * 1024]
    maximum, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if maximum and used and maximum[0].isdigit():
        limits.append(float(maximum[0]) - float(used[0]))
    return max(min(limits), 0.0)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    folder = None if "TMPDIR" in os.environ or not Path("/var/tmp").is_dir() else "/var/tmp"
    with tempfile.NamedTemporaryFile(prefix="fathom-", dir=folder) as file:
        size = _bytes(shape, dtype)
        os.truncate(file.fileno(), size)
        return torch.from_file(file.name, shared=True, size=size // dtype.itemsize, dtype=dtype).view(shape)
