import errno
import json
import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch

from fathom.artifact import load, manifest, seal, swap, verify, weights
from fathom.core.errors import ArtifactError

from .conftest import FILES, SPEC, Scaling, objective, write


def stored(folder: Path) -> torch.Tensor:
    return load(folder).module.state_dict()["heads.0.linear.weight"]


def test_everything_is_there_and_listed(folder):
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == set(verify(folder).files) | {"manifest.json"}
    assert {"model.safetensors", "config.json", "spec.json", "metrics.json", "README.md", "report.html"} <= names
    found = load(folder)
    assert found.spec == SPEC
    assert found.metrics["test"]["kind"]["metrics"]["auroc"]["value"] is None  # not a number became null
    assert found.config["model"] == {"name": "mlp", "config": found.config["model"]["config"]}
    assert found.config["model"]["config"]["width"] == 8
    assert not found.module.training
    assert found.unlisted == ()


def test_every_tensor_returns_to_the_bit(folder):
    module = objective(width=8, members=2)[2]
    loaded = load(folder).module.state_dict()
    assert list(loaded) == list(module.state_dict())
    assert all(torch.equal(value, loaded[name]) for name, value in module.state_dict().items())


def test_saving_twice_writes_the_same_bytes(tmp_path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()


def test_an_artifact_is_replaced_whole(tmp_path):
    folder = write(tmp_path / "model", files={**FILES, "old/notes.txt": "x"})
    before = stored(folder)
    write(folder, module_seed=1, files={"new.txt": "y"})
    assert not torch.equal(stored(folder), before)
    assert not (folder / "old").exists() and not (folder / "report.html").exists()
    assert (folder / "new.txt").read_text() == "y"
    assert load(folder).unlisted == ()


def test_a_moved_or_copied_folder_loads(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    folder.rename(tmp_path / "moved")
    assert torch.equal(stored(tmp_path / "copy"), stored(tmp_path / "moved"))


def test_checkpoints_and_notes_are_left_alone(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-1.safetensors").write_bytes(b"x")
    write(folder)
    (folder / "notes.doc").write_text("mine")
    write(folder, module_seed=1)
    assert (folder / "checkpoints" / "step-1.safetensors").read_bytes() == b"x"
    assert (folder / "notes.doc").read_text() == "mine"
    assert load(folder).unlisted == ("notes.doc",)
    assert not any("checkpoints" in name for name in verify(folder).files)


def test_a_folder_in_use_for_something_else_is_refused(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    with pytest.raises(ArtifactError, match=r"not empty and holds no Fathom model \('README.md'\)"):
        write(folder)
    assert [p.name for p in folder.iterdir()] == ["README.md"]
    assert (folder / "README.md").read_text() == "mine"


def test_a_foreign_file_in_the_way_is_not_overwritten(folder):
    (folder / "extra.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="would be overwritten"):
        write(folder, files={"extra.txt": "ours"})
    assert (folder / "extra.txt").read_text() == "mine"
    assert load(folder)


def test_a_link_in_the_way_is_not_followed(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "more").symlink_to(outside)
    with pytest.raises(ArtifactError, match="link"):
        write(folder, files={"more/x.txt": "ours"})
    assert not list(outside.iterdir())


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model").write_text("x")
    with pytest.raises(ArtifactError, match="is a file"):
        write(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"is a file|cannot be written"):
        write(tmp_path / "model" / "inner")


@pytest.mark.parametrize(
    "name",
    ["../x.txt", "/x.txt", "a\\b.txt", "x.py", "x.pkl", "model.safetensors", "preprocess/a.json", "manifest.json"],
)
def test_a_further_file_without_a_place_is_refused(tmp_path, name):
    with pytest.raises(ArtifactError):
        write(tmp_path / "model", files={name: "x"})
    assert not (tmp_path / "model").exists()


def test_what_json_cannot_hold_is_refused_before_anything_changes(folder):
    before = stored(folder)
    with pytest.raises(ArtifactError, match=r"metrics\.json"):
        write(folder, metrics={"when": object()})
    with pytest.raises(ArtifactError, match=r"metrics\.json"):
        write(folder, metrics={"text": "\ud800"})
    assert torch.equal(stored(folder), before)


def test_a_spec_that_is_not_the_preprocessings_is_refused(tmp_path):
    other = SPEC.only(SPEC.inputs[:1])
    with pytest.raises(ArtifactError, match="spec"):
        write(tmp_path / "m", preprocess=Scaling(other))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_cannot_be_written_leaves_the_old_one(folder, monkeypatch, code):
    before = stored(folder)

    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(weights, "write", full)
    with pytest.raises(ArtifactError, match="cannot be written"):
        write(folder, module_seed=1)
    assert torch.equal(stored(folder), before)
    assert not (folder / swap.SAVING).exists()


@pytest.mark.parametrize("size", [0, 300, 3000])
def test_a_limit_on_files_leaves_the_old_one(folder, size):
    before = stored(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(ArtifactError, match="cannot be written"):
            write(folder, module_seed=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(stored(folder), before)


def test_a_reader_beside_a_writer_sees_a_whole_model(tmp_path):
    folder = write(tmp_path / "model")
    models = [stored(folder), stored(write(folder, module_seed=1))]
    child = os.fork()
    if child == 0:
        try:
            for _ in range(100):
                swap.finish(folder)
        finally:
            os._exit(0)
    for turn in range(6):
        write(folder, module_seed=turn % 2)
        assert torch.equal(stored(folder), models[turn % 2])
    os.waitpid(child, 0)


def test_a_failed_first_save_leaves_no_folder(tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Scaling, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.fixture
def _quick(monkeypatch):
    """Flushing takes its time and is of no use to a process that is only said to lose its power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Power:
    """Lets so many operations on files pass, then ends the process as a power cut would: nothing more is run."""

    NAMES = ("os.replace", "os.fsync", "os.unlink", "os.rmdir", "os.rename", "os.mkdir")

    def __init__(self, left: int) -> None:
        self.left = left

    def cut(self) -> None:
        for name in self.NAMES:
            real = getattr(os, name[3:])

            def counted(*args, _real=real, _name=name, **options):
                if self.left == 0:
                    os._exit(9)
                self.left -= 1
                return None if _name == "os.fsync" else _real(*args, **options)

            setattr(os, name[3:], counted)


def swapped(folder: Path, files: dict[str, bytes], left: int) -> bool:
    """Replace the folder's files in a process of its own that dies after `left` operations; whether it came through."""
    child = os.fork()
    if child == 0:
        try:
            Power(left).cut()
            with swap.replacing_folder(folder) as stage:
                for name, data in files.items():
                    (stage / name).parent.mkdir(exist_ok=True)
                    (stage / name).write_bytes(data)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    return status == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in verify(folder).files}


@pytest.mark.usefixtures("_quick")
def test_a_process_killed_at_any_step_leaves_the_old_or_the_new(tmp_path):
    names = manifest.REQUIRED
    old = {**dict.fromkeys(names, b"old"), "preprocess/a.json": b"old", "gone/b.json": b"old"}
    new = {**dict.fromkeys(names, b"new"), "preprocess/a.json": b"new", "preprocess/c.json": b"new"}
    assert swapped(tmp_path / "old", old, 10_000)
    seen = []
    for left in range(1000):
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(left))
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "1").write_bytes(b"kept")
        done = swapped(folder, new, left)
        swap.finish(folder)
        found = contents(folder)
        assert found in (old, new), left
        seen.append(found == new)
        assert (folder / "checkpoints" / "1").read_bytes() == b"kept"
        with swap.replacing_folder(folder) as stage:  # and it can be saved to again
            shutil.copytree(tmp_path / "old", stage, dirs_exist_ok=True)
            (stage / "manifest.json").unlink()
        assert contents(folder) == old
        assert {p.name for p in folder.iterdir()} == {p.split("/")[0] for p in old} | {"manifest.json", "checkpoints"}
        if done:
            break
    assert seen == sorted(seen) and not seen[0] and seen[-1]  # at one instant, and for good
    assert len(seen) > 30


@pytest.mark.usefixtures("_quick")
def test_finishing_can_itself_be_cut_short(tmp_path):
    names = manifest.REQUIRED
    old, new = (dict.fromkeys(names, data) for data in (b"old", b"new"))
    folder = tmp_path / "m"
    assert swapped(folder, old, 10_000)
    steps = next(n for n in range(1000) if not swapped(folder, new, n) and (folder / swap.SAVED).exists())
    assert steps > 0
    for _ in range(100):  # each attempt gets one operation further
        child = os.fork()
        if child == 0:
            Power(5).cut()
            swap.finish(folder)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
    else:
        raise AssertionError("no attempt came to an end")
    assert contents(folder) == new


def test_loading_finishes_a_save_that_was_cut_short(folder, monkeypatch):
    before = stored(folder)
    monkeypatch.setattr(swap, "finish", lambda folder: None)  # dies right after the commit
    write(folder, module_seed=1)
    monkeypatch.undo()
    monkeypatch.setattr("fathom.artifact.rebuild.import_module", lambda name: type("Room", (), {"Preprocess": Scaling}))
    assert (folder / swap.SAVED).is_dir()
    assert not torch.equal(stored(folder), before)
    assert not (folder / swap.SAVED).exists()


def test_a_waiting_folder_that_is_a_link_is_refused(folder, tmp_path):
    other = write(tmp_path / "other", module_seed=1)
    (folder / swap.SAVED).symlink_to(other)
    with pytest.raises(ArtifactError, match="link"):
        load(folder)
    assert verify(other)


def test_an_edit_is_found_and_can_be_sealed(folder):
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nOwn words.\n")
    with pytest.raises(ArtifactError, match=r"README\.md.*seal"):
        load(folder)
    seal(folder)
    assert load(folder)
    with pytest.raises(ArtifactError, match=r"Did you mean 'README\.md'"):
        seal(folder, "readme.md")


def test_a_users_own_model_is_asked_for(tmp_path, frame):
    class Net(torch.nn.Module):
        width = 4

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 4)

        def forward(self, batch):
            from fathom.core.types import Features

            return Features(self.layer(batch["number"]))

    _, goal, _ = objective()
    torch.manual_seed(3)
    module = goal.module.build(goal.config, SPEC, Net())
    folder = write(tmp_path / "m", model=None, objective=goal, module=module)
    document = json.loads((folder / "config.json").read_bytes())
    assert document["model"]["custom"] is True and document["model"]["class"].endswith("Net")
    with pytest.raises(ArtifactError, match=r"Net.*load\(folder, model=…\)"):
        load(folder)
    found = load(folder, model=Net())
    again = write(tmp_path / "again", model=found.config["model"], objective=found.config["objective"], module=module)
    assert (again / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(found.module.parameters(), module.parameters(), strict=True))
    assert found.predict(frame).height == 37
    with pytest.raises(ArtifactError, match="does not fit its model"):
        wider = Net()
        wider.extra = torch.nn.Linear(1, 1)
        load(folder, model=wider)


def test_a_users_own_objective_is_asked_for(tmp_path, frame):
    part, _, module = objective(seed=1)
    folder = write(tmp_path / "m", model=part, objective=None, module=module)
    with pytest.raises(ArtifactError, match="objective=…"):
        load(folder)
    assert load(folder, objective=objective(seed=2)[2]).predict(frame).height == 37


def test_an_own_model_where_none_is_needed_is_refused(folder):
    with pytest.raises(ArtifactError, match="load it without model="):
        load(folder, model=torch.nn.Linear(1, 1))


def test_entries_may_be_given_as_mappings(tmp_path):
    part, goal, module = objective(width=8)
    folder = write(
        tmp_path / "m",
        model={"name": part.name, "config": part.config},
        objective={"name": goal.name, "config": goal.config},
        module=module,
    )
    assert load(folder).config["model"]["name"] == "mlp"


def test_loading_leaves_the_random_state(folder):
    state = torch.get_rng_state()
    load(folder)
    assert torch.equal(state, torch.get_rng_state())


def test_an_older_layout_is_migrated(folder, monkeypatch):
    def renamed(config, spec):
        return {**config, "about": {"moved": True}, "schema": 2}, spec

    monkeypatch.setattr(manifest, "SCHEMA", 2)
    monkeypatch.setattr(sys.modules["fathom.artifact.load"], "MIGRATIONS", {1: renamed})
    assert load(folder).config["about"] == {"moved": True}
