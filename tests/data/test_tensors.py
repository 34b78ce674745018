"""Tensors in memory and in files; the store that hands them out."""

from pathlib import Path

import torch

from fathom.data import TensorStore
from fathom.data._tensors import allocate, free_memory

SHAPES = {"small": ((10, 2), torch.float32), "large": ((1000, 3), torch.uint8), "none": ((0, 4), torch.int32)}


def files():
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "fathom-" in line]


def test_the_largest_go_to_files_first_and_the_files_have_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    tensors = allocate(SHAPES, gigabytes=1e-6)
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == SHAPES
    assert len(files()) == 1 and list(tmp_path.iterdir()) == []
    tensors["large"][999] = 7
    assert tensors["large"].numpy()[999].tolist() == [7, 7, 7] and tensors["large"].sum() == 21
    del tensors
    assert files() == []


def test_what_fits_stays_in_memory():
    allocate(SHAPES)
    assert files() == [] and free_memory() > 1e6


def test_a_batch_is_in_the_order_asked_for_and_has_wide_codes():
    store = TensorStore({"category": torch.arange(8, dtype=torch.int32).view(4, 2), "image:a": torch.arange(4).byte()})
    batch = store.gather(torch.tensor([2, 0, 2]))
    assert batch["category"].tolist() == [[4, 5], [0, 1], [4, 5]] and batch["category"].dtype == torch.int64
    assert batch["image:a"].tolist() == [2, 0, 2] and batch["image:a"].dtype == torch.uint8
    assert len(store) == 4
