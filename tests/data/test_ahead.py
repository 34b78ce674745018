"""Rows that lie in files are fetched before they are read."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fathom.core.ahead import announced
from fathom.data._ahead import apart
from fathom.data._store import Picked, TensorStore
from fathom.data._tensors import allocate

ROWS, WIDTH = 64, 64 * mmap.PAGESIZE


@pytest.fixture
def column(tmp_path: Path) -> Tensor:
    """A mapped tensor none of whose pages lie in memory."""
    path = tmp_path / "rows"
    path.write_bytes(os.urandom(ROWS * WIDTH))
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("pages cannot be dropped here")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    found = torch.from_file(str(path), shared=True, size=ROWS * WIDTH, dtype=torch.uint8).view(ROWS, WIDTH)
    if held(found).any():
        pytest.skip("this file system keeps all pages in memory")
    return found


def held(column: Tensor) -> Tensor:
    """Return the share of each row's pages that lie in memory: [N]."""
    pages = column.nbytes // mmap.PAGESIZE
    seen = (ctypes.c_ubyte * pages)()
    found = ctypes.CDLL(None).mincore(ctypes.c_void_p(column.data_ptr()), ctypes.c_size_t(column.nbytes), seen)
    assert found == 0
    return torch.tensor(list(seen)).bitwise_and(1).view(len(column), -1).float().mean(1)


def test_rows_are_in_memory_soon_and_others_are_not(column: Tensor) -> None:
    store = Picked(TensorStore({"x": column}), torch.arange(ROWS).flip(0))
    store.soon(torch.tensor([3, 40]))
    wanted = [ROWS - 1 - 3, ROWS - 1 - 40]
    while held(column)[wanted].min() < 1:  # the disk takes its time
        pass
    assert held(column).gt(0).sum() < ROWS // 2  # the system may read on a little


def test_what_lies_in_memory_is_left_alone() -> None:
    store = TensorStore({"x": torch.zeros(4, 2), "y": allocate({"y": ((4,), torch.float32)})["y"]})
    assert not store._in_files
    store.soon(torch.tensor([1]))


def test_what_fathom_maps_can_be_fetched() -> None:
    column = allocate({"x": ((8, 1000), torch.float32)}, gigabytes=1e-6)["x"]
    assert apart(column)
    TensorStore({"x": column}).soon(torch.tensor([7, 0]))


def test_rows_are_told_of_one_batch_ahead():
    told: list[list[int]] = []

    class Rows:
        def soon(self, index: torch.Tensor) -> None:
            told.append(index.tolist())

    seen = []
    for index in announced(Rows(), torch.arange(6).split(2), lambda index: index[:1]):  # type: ignore[arg-type]
        seen.append((index.tolist(), list(told)))
    assert seen == [([0, 1], [[0], [2]]), ([2, 3], [[0], [2], [4]]), ([4, 5], [[0], [2], [4]])]
    assert not list(announced(Rows(), ()))  # type: ignore[arg-type]
