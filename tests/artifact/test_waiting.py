"""A save that was cut short, as somebody else may have laid it there: all of it is moved, or nothing."""

from pathlib import Path

import pytest

from fathom.artifact import load, manifest, strict_json
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
