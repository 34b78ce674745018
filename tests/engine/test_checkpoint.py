from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.core import files
from fathom.core.errors import TrainingError
from fathom.engine import checkpoint
from fathom.engine.checkpoint import Checkpoints, Snapshot
from fathom.engine.loop import train
from fathom.engine.plan import Plan
from fathom.engine.records import Finished, Saved, Warned
from tests.engine import toys


def _snapshot(number: int, best: float | None = None) -> Snapshot:
    weights = {"best": torch.full((3,), best)} if best is not None else {}
    return Snapshot({"a": torch.full((4, 2), float(number))}, {"number": number, "nan": float("nan")}, weights)


def _load(folder: Path) -> tuple[int | None, list[str]]:
    found, warnings = Checkpoints(folder).load()
    return (found.values["number"] if found else None), warnings


def test_what_is_loaded_equals_what_was_saved(tmp_path: Path) -> None:
    shared = torch.randn(5, 6)
    tensors = {
        "float": torch.randn(3, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(7).bfloat16(),
        "mask": torch.tensor([True, False]),
        "whole": torch.tensor([2**60, -1]),
        "empty": torch.zeros(0, 3),
        "slice": shared[1:3],
        "turned": shared.T,
        "same": shared,
        "image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    Checkpoints(tmp_path).save(Snapshot(tensors, {"x": [1, None, "ü"]}, {"w": shared}), True)
    found, warnings = Checkpoints(tmp_path).load()
    assert found is not None and not warnings
    assert found.values == {"x": [1, None, "ü"]}
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype
    assert torch.equal(found.best["w"], shared)


def test_the_last_two_stay_and_best_is_written_when_it_changes(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for number, best, changed in ((1, None, False), (2, 0.5, True), (3, 0.5, False), (4, 0.5, False)):
        kept.save(_snapshot(number, best), changed)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best-000002.safetensors",
        "checkpoint-000003.safetensors",
        "checkpoint-000004.safetensors",
    ]
    found, _ = Checkpoints(tmp_path).load()
    assert found is not None and found.best["best"][0] == 0.5


def test_a_resumed_run_keeps_best_weights_that_it_did_not_write(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(_snapshot(1, 0.5), True)
    again = Checkpoints(tmp_path)
    again.load()
    for number in (2, 3, 4):
        again.save(_snapshot(number, 0.5), False)
    found, _ = Checkpoints(tmp_path).load()
    assert found is not None and found.best["best"][0] == 0.5


def _cut(data: bytes, at: float) -> bytes:
    return data[: int(len(data) * at)]


def _flip(data: bytes, at: float) -> bytes:
    place = min(int(len(data) * at), len(data) - 1)
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(how=st.sampled_from([_cut, _flip]), at=st.floats(0, 0.9999), which=st.sampled_from(["checkpoint", "best"]))
def test_a_damaged_file_is_noticed_and_the_one_before_is_used(tmp_path: Path, how, at: float, which: str) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / f"{how.__name__}-{at}-{which}"
    kept = Checkpoints(folder)
    kept.save(_snapshot(1, 0.5), True)
    kept.save(_snapshot(2, 0.7), True)
    newest = sorted(folder.glob(f"{which}-*"))[-1]
    newest.write_bytes(how(newest.read_bytes(), at))
    number, warnings = _load(folder)
    assert number == 1
    assert len(warnings) == 1 and "checkpoint-000002.safetensors' is damaged" in warnings[0]


def test_missing_best_weights_make_a_checkpoint_useless(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(_snapshot(1, 0.5), True)
    kept.save(_snapshot(2, 0.7), True)
    (tmp_path / "best-000002.safetensors").unlink()
    assert _load(tmp_path)[0] == 1


def test_a_name_that_leaves_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    Checkpoints(tmp_path).save(_snapshot(1), False)
    hostile = {"best": "../checkpoint-000001.safetensors", "run": {}}
    checkpoint._write(tmp_path / "run" / "checkpoint-000001.safetensors", {}, hostile)
    number, warnings = _load(tmp_path / "run")
    assert number is None and "damaged" in warnings[0]


def test_nothing_whole_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-000001.safetensors").write_bytes(b"")
    (tmp_path / "checkpoint-000002.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "notes.txt").write_text("mine")
    number, warnings = _load(tmp_path)
    assert number is None and len(warnings) == 2
    Checkpoints(tmp_path).save(_snapshot(3), False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-000003.safetensors", "notes.txt"]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".checkpoint-000007.safetensors.4242.tmp"
    leftover.write_bytes(b"half")
    Checkpoints(tmp_path).save(_snapshot(1), False)
    assert not leftover.exists()


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(_snapshot(1, 0.5), True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files.os, moment, full)
    with pytest.raises(TrainingError, match="No space left on device"):
        kept.save(_snapshot(2, 0.5), False)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert _load(tmp_path) == (1, [])


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    records = train(toys.Regression(), toys.data(), Plan(epochs=1, threads=1), tmp_path / "file" / "run")
    with pytest.raises(TrainingError, match="cannot be written"):
        for record in records:
            assert not isinstance(record, (Saved, Finished))


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    plan = Plan(epochs=3, batch_size=32, threads=1, checkpoint_seconds=0)
    whole, resumed = toys.Regression(), toys.Regression()
    list(train(whole, toys.data(), plan))
    list(train(toys.Regression(), toys.data(), plan, tmp_path))
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    records = list(train(resumed, toys.data(), plan, tmp_path, resume=True))
    assert isinstance(records[0], Warned) and "damaged" in records[0].message
    assert isinstance(records[-1], Finished) and records[1].step < records[-1].steps  # type: ignore[attr-defined]
    assert toys.same(whole, resumed)
