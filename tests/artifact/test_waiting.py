"""Before a save: is there room? After one that was cut short: all of it is moved, or nothing."""

import os
from pathlib import Path

import pytest

from fathom.artifact import check_room, load, manifest, strict_json
from fathom.core.errors import ArtifactError

from .conftest import write
from .test_hostile import document, refused


@pytest.fixture
def waiting(folder, tmp_path) -> Path:
    """The folder, with another artifact waiting to be moved to its place."""
    files = {"evil/settings.json": "{}", "evil/deep/settings.json": "{}"}
    write(tmp_path / "other", module_seed=1, files=files).rename(folder / ".saved")
    return folder


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder of somebody's, which nothing may touch."""
    place = tmp_path / "outside"
    (place / "deep").mkdir(parents=True)
    for name in ("settings.json", "deep/settings.json"):
        (place / name).write_text("mine")
    return place


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def link(place: Path, target: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(target)


def lose(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def replace_by_link(path: Path, target: Path) -> None:
    path.rename(path.with_name("kept"))
    path.symlink_to(target)


def list_beyond(folder: Path, target: Path) -> None:
    """Let the old manifest, whose further files are deleted, name one in a linked folder."""
    link(folder / "gone", target)
    listed = document(folder, "manifest.json")
    listed["files"]["gone/settings.json"] = {"size": 4, "sha256": manifest.files.sha256(target / "settings.json")}
    (folder / "manifest.json").write_bytes(strict_json.encode(listed))


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda f, out: link(f / "evil", out), "link"),
        (lambda f, out: link(f / "evil" / "deep", out / "deep"), "link"),
        (lambda f, out: replace_by_link(f / "preprocess", out), "link"),
        (lambda f, out: replace_by_link(f / ".saved" / "evil", out), "damaged"),
        (lambda f, out: replace_by_link(f / ".saved" / "evil" / "settings.json", out / "settings.json"), "damaged"),
        (lambda f, out: (f / "evil" / "settings.json").mkdir(parents=True), "a folder where a file belongs"),
        (lambda f, out: change(f / ".saved" / "model.safetensors"), "damaged"),
        (lambda f, out: lose(f / ".saved" / "model.safetensors"), "missing"),
        (list_beyond, "link"),
    ],
    ids=range(9),
)
def test_a_waiting_save_moves_nothing_unless_all_of_it_is_sound(waiting, outside, prepare, words):
    prepare(waiting, outside)
    before, kept = everything(waiting), everything(outside)
    refused(waiting, words)
    with pytest.raises(ArtifactError):
        write(waiting)
    assert everything(outside) == kept
    assert everything(waiting) == before


def test_a_sound_waiting_save_is_finished(waiting):
    assert "evil/deep/settings.json" in load(waiting).files
    assert not (waiting / ".saved").exists()


def test_room_is_asked_for_before_there_is_anything_to_save(folder, tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for free in (tmp_path / "new", tmp_path / "new" / "deep", tmp_path / "run", folder):
        check_room(free)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"name": "a page of somebody\'s"}')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for name, words in (
        ("file", "is a file"),
        ("file/below", "is a file"),
        ("nowhere", "broken link"),
        ("site", "not Fathom's"),
        ("mine", "not empty"),
    ):
        with pytest.raises(ArtifactError, match=words):
            check_room(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match="read-only"):
        check_room(tmp_path / "new")
