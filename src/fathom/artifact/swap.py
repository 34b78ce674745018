"""A folder's files replaced all at once, or not at all.

    DIR/.saving/   the new artifact while it is being written; the old one stands untouched
    DIR/.saved/    the same folder, renamed once everything in it is on disk: from this instant the new one counts
    DIR/           its files are then moved to their places one by one, the manifest last

Whoever finds `.saved` after a crash finishes the moves. The folder itself is never renamed, so the checkpoints that a
run keeps in it, a mount point or somebody's working directory stay where they are. Files that no manifest lists are
neither deleted nor overwritten.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fathom.artifact import manifest
from fathom.core.errors import ArtifactError
from fathom.core.files import sync_folder

SAVING, SAVED = ".saving", ".saved"


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; on leaving without an error its files become those of `folder`.

    On an error, or if the process dies, `folder` holds what it held before.

    Raises:
        ArtifactError: `folder` holds files that are no artifact's, or cannot be written.
    """
    existed = folder.exists()
    stage = folder / SAVING
    try:
        check_room(folder)
        folder.mkdir(parents=True, exist_ok=True)
        finish(folder)
        _clear(stage)
        stage.mkdir()
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        yield stage
        new = manifest.write(stage)
        _check_collisions(folder, new)
        _flush(stage)
        stage.rename(folder / SAVED)
        sync_folder(folder)
        finish(folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        _clear(stage)
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def finish(folder: Path) -> None:
    """Complete a save that was cut short after its files were on disk. Where there is none, nothing is done.

    Raises:
        ArtifactError: the files waiting are not a whole artifact.
        OSError: the folder cannot be written.
    """
    saved = folder / SAVED
    if not os.path.lexists(saved):
        return
    if saved.is_symlink() or not saved.is_dir():
        raise ArtifactError(f"'{saved}' is a link or no folder; remove it.")
    if not (saved / manifest.NAME).exists():  # cut short after the last move
        _clear(saved)
        return
    new = manifest.read(saved)
    old = _previous(folder)
    for name in new.files:
        if os.path.lexists(saved / name):
            _move(manifest.locate(saved, name), folder, name)
    for name in sorted(set(old) - set(new.files)):
        _remove(folder, name)
    for place in _places(folder, new):
        sync_folder(place)
    _move(saved / manifest.NAME, folder, manifest.NAME)
    sync_folder(folder)
    _clear(saved)


def check_room(folder: Path) -> None:
    """Refuse a folder that is somebody else's: not empty, and no artifact.

    Raises:
        ArtifactError: naming what stands there.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ArtifactError(f"'{folder}' is a file; give a folder, or a name that is free.")
    if (folder / manifest.NAME).exists() or (folder / SAVED).exists():
        return
    foreign = sorted(e.name for e in os.scandir(folder) if e.name not in (*manifest.OTHERS, SAVING))
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ArtifactError(
            f"'{folder}' is not empty and holds no Fathom model ({foreign[0]!r}{more}); give an empty or a new folder."
        )


def _previous(folder: Path) -> tuple[str, ...]:
    """Names that the artifact being replaced may lose: those of its manifest, read as strictly as ever."""
    return tuple(manifest.read(folder).files) if os.path.lexists(folder / manifest.NAME) else ()


def _check_collisions(folder: Path, new: manifest.Manifest) -> None:
    """Refuse to overwrite what is not the old artifact's."""
    own = {*_previous(folder), manifest.NAME}
    for name in new.files:
        if name not in own and os.path.lexists(folder / name):
            raise ArtifactError(f"'{folder / name}' is not the model's and would be overwritten; give another folder.")
        for parent in list(Path(name).parents)[:-1]:
            place = folder / parent
            if place.is_symlink() or (os.path.lexists(place) and not place.is_dir()):
                raise ArtifactError(f"'{place}' is a link or no folder; remove it, or give another folder.")


def _move(source: Path, folder: Path, name: str) -> None:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except FileNotFoundError:  # another process finished this save meanwhile
        if not target.exists():
            raise


def _remove(folder: Path, name: str) -> None:
    """Delete a file of the old artifact, and the folders that it leaves empty."""
    if not os.path.lexists(folder / name):
        return
    manifest.locate(folder, name).unlink()
    for parent in list(Path(name).parents)[:-1]:
        if any((folder / parent).iterdir()):
            return
        (folder / parent).rmdir()


def _places(folder: Path, new: manifest.Manifest) -> list[Path]:
    return sorted({(folder / name).parent for name in new.files})


def _flush(stage: Path) -> None:
    """Put every file and folder of `stage` on disk, so that the rename after it promises what is there."""
    for path in sorted(stage.rglob("*"), reverse=True):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(stage)


def _clear(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"'{folder}' cannot be written: {error.strerror or error}; what stood there is unchanged.")
