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
        ArtifactError: the files waiting are not a whole artifact, or their places lie elsewhere; nothing was moved.
        OSError: the folder cannot be written.
    """
    saved = folder / SAVED
    if not os.path.lexists(saved):
        return
    new = _waiting(folder)
    if new is not None:
        old = _previous(folder)
        for name in new.files:
            if os.path.lexists(saved / name):
                _move(saved / name, folder, name)
        for name in sorted(set(old) - set(new.files)):
            _remove(folder, name)
        for place in _places(folder, new):
            sync_folder(place)
        _move(saved / manifest.NAME, folder, manifest.NAME)
        sync_folder(folder)
    _clear(saved)


def check_room(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that no artifact can be saved to: somebody else's (not empty, and no artifact), or not writable.

    Nothing is changed, so that this can be asked before the work whose result shall be saved.

    Raises:
        ArtifactError: naming what stands there.
    """
    folder = Path(folder)
    try:
        _check_writable(folder)
        if not os.path.lexists(folder):
            return
        if _waiting(folder) or _previous(folder):
            return
        foreign = sorted(e.name for e in os.scandir(folder) if e.name not in (*manifest.OTHERS, SAVING, SAVED))
    except OSError as error:
        raise ArtifactError(f"'{folder}' cannot be used: {error.strerror or error}.") from None
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ArtifactError(
            f"'{folder}' is not empty and holds no Fathom model ({foreign[0]!r}{more}); give an empty or a new folder."
        )


def _check_writable(folder: Path) -> None:
    """Refuse a folder that is a file, lies below one, or cannot be written or made."""
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ArtifactError(f"'{place}' is a file or a broken link; give a folder, or a name that is free.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ArtifactError(f"'{folder}' cannot be written: '{place}' is read-only; give another folder.")


def _waiting(folder: Path) -> manifest.Manifest | None:
    """Return the list of a save that was cut short before its last move, or None; every move was found possible.

    A folder from elsewhere may hold anything under that name, and moving a file follows links of folders.
    """
    saved = folder / SAVED
    if saved.is_symlink() or saved.is_file():
        raise ArtifactError(f"'{saved}' is a link or no folder; remove it.")
    if not os.path.lexists(saved / manifest.NAME):
        return None
    try:
        new = manifest.read(saved)
    except ArtifactError:
        if os.path.lexists(saved / manifest.NAME):
            raise
        return None  # another process finished this save meanwhile
    for name, listed in new.files.items():
        _check_place(folder, name)
        if manifest.holds(saved, name, listed):
            continue
        if os.path.lexists(saved / name) or not manifest.holds(folder, name, listed):  # it may have been moved already
            raise ArtifactError(f"'{saved / name}' is missing or damaged; remove '{saved}', and save the model again.")
    for name in _previous(folder):
        _check_place(folder, name)
    return new


def _previous(folder: Path) -> tuple[str, ...]:
    """Names that the artifact being replaced may lose: those of its manifest, read as strictly as ever."""
    return tuple(manifest.read(folder).files) if os.path.lexists(folder / manifest.NAME) else ()


def _check_collisions(folder: Path, new: manifest.Manifest) -> None:
    """Refuse to overwrite what is not the old artifact's."""
    own = {*_previous(folder), manifest.NAME}
    for name in new.files:
        if name not in own and os.path.lexists(folder / name):
            raise ArtifactError(f"'{folder / name}' is not the model's and would be overwritten; give another folder.")
        _check_place(folder, name)


def _check_place(folder: Path, name: str) -> None:
    """Refuse a place for a file that is a folder, or that a link leads to."""
    for parent in list(Path(name).parents)[:-1]:
        place = folder / parent
        if place.is_symlink() or (os.path.lexists(place) and not place.is_dir()):
            raise ArtifactError(f"'{place}' is a link or no folder; remove it, or give another folder.")
    if (folder / name).is_dir() and not (folder / name).is_symlink():
        raise ArtifactError(f"'{folder / name}' is a folder where a file belongs; remove it, or give another folder.")


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
