"""The manifest: which files belong to an artifact, how large they are, and their SHA-256.

    Manifest      the listed files
    write         list what stands in a folder
    read          the list, checked as a list
    verify        the list, checked against the files
    seal          take a file that was edited on purpose into the list
    locate        a listed name's path, proven to stay in the folder
    holds         whether a listed file stands in a folder as listed

A hash tells damage, not forgery: whoever can change a file can change the manifest too. That is why nothing in an
artifact is ever run, and why every other file is read as strictly as this one.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.artifact import strict_json
from fathom.core import files
from fathom.core.errors import ArtifactError, FathomError, did_you_mean

NAME = "manifest.json"
FORMAT, SCHEMA = "fathom", 1
REQUIRED = ("config.json", "metrics.json", "model.safetensors", "preprocess/preprocess.json", "spec.json")
KINDS = (".safetensors", ".json", ".jsonl", ".md", ".html", ".toml", ".txt", ".csv", ".parquet", ".svg", ".png")
OTHERS = ("checkpoints", ".git", ".gitattributes", ".gitignore", ".cache")  # may stand beside, and are not reported
MANIFEST_LIMIT, FILE_LIMIT = 4 << 20, 1 << 30  # bytes; weights are bounded by the model instead
COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names, to Windows
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Listed:
    """One file of an artifact: its size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of an artifact, by their names relative to it.

    Attributes:
        unlisted: what else stands in the folder; it is never read.
    """

    files: dict[str, Listed]
    unlisted: tuple[str, ...] = ()


def write(folder: Path) -> Manifest:
    """List every file of `folder` in its manifest.

    Raises:
        ArtifactError: a name or a kind of file that an artifact does not hold.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p != folder / NAME)
    for name in names:
        check_name(name, str(folder))
    manifest = Manifest({name: _measure(folder / name) for name in names})
    files.write_bytes(folder / NAME, _encode(manifest))
    return manifest


def read(folder: Path) -> Manifest:
    """Return the manifest of `folder`, checked by itself; the files are not looked at.

    Raises:
        ArtifactError: there is none, or it is not as Fathom writes it.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise ArtifactError(f"There is no folder '{folder}'.")
    if not os.path.lexists(path):
        raise ArtifactError(f"'{folder}' holds no Fathom model: it has no {NAME}.")
    _check_file(path, NAME)
    document = strict_json.read(path, MANIFEST_LIMIT)
    check_schema(document, str(path))
    manifest = Manifest(_entries(document.get("files"), str(path)))
    if set(document) != {"format", "schema", "files"} or strict_json.encode(document) != path.read_bytes():
        raise ArtifactError(f"'{path}' is damaged: it is not as Fathom wrote it; copy the folder again.")
    missing = [name for name in REQUIRED if name not in manifest.files]
    if missing:
        raise ArtifactError(f"'{path}' does not list {missing[0]}, which every model has; copy the folder again.")
    return manifest


def verify(folder: str | os.PathLike[str]) -> Manifest:
    """Return the manifest after comparing each listed file with it: present, inside, of that size, with that hash.

    Raises:
        ArtifactError: naming the first file that differs.
    """
    folder = Path(folder)
    manifest = read(folder)
    paths = {name: locate(folder, name) for name in manifest.files}
    _check_hard_links(paths)
    for name, listed in manifest.files.items():
        size = paths[name].stat().st_size
        if size != listed.size:
            raise ArtifactError(f"'{paths[name]}' has {size:,} bytes; the manifest says {listed.size:,}.{_mend(name)}")
        if size > FILE_LIMIT and not name.endswith(".safetensors"):
            raise ArtifactError(f"'{paths[name]}' is larger than {FILE_LIMIT:,} bytes, the most such a file may have.")
    for name, listed in manifest.files.items():
        try:
            digest = files.sha256(paths[name])
        except OSError as error:
            raise ArtifactError(f"'{paths[name]}' cannot be read: {error.strerror or error}.") from None
        if digest != listed.sha256:
            raise ArtifactError(f"'{paths[name]}' was changed: its SHA-256 is not the manifest's.{_mend(name)}")
    return Manifest(manifest.files, _unlisted(folder, manifest))


def seal(folder: str | os.PathLike[str], name: str = "README.md") -> Manifest:
    """Take a listed file that was edited on purpose, such as the model card, into the manifest as it stands now.

    Raises:
        ArtifactError: the file is not listed, or cannot be written.
    """
    folder = Path(folder)
    manifest = read(folder)
    if name not in manifest.files:
        raise ArtifactError(f"'{name}' is not a file of '{folder}'.{did_you_mean(name, manifest.files)}")
    try:
        changed = {**manifest.files, name: _measure(locate(folder, name))}
        files.write_bytes(folder / NAME, _encode(Manifest(changed)))
    except OSError as error:
        raise ArtifactError(f"'{folder / NAME}' cannot be written: {error.strerror or error}.") from None
    return verify(folder)


def locate(folder: Path, name: str) -> Path:
    """Return the path of the file that the manifest calls `name`: a real file, reached through real folders.

    Raises:
        ArtifactError: it is missing, no plain file, or reached through a link.
    """
    check_name(name, str(folder / NAME))
    path = folder
    *parents, last = name.split("/")
    for parent in parents:
        path = path / parent
        _check_folder(path, name)
    _check_file(path / last, name)
    return path / last


def holds(folder: Path, name: str, listed: Listed) -> bool:
    """Whether `folder` holds the file, plain, reached through real folders, of that size and with that hash."""
    try:
        path = locate(folder, name)
        return path.stat().st_size == listed.size and files.sha256(path) == listed.sha256
    except (ArtifactError, FileNotFoundError):
        return False


def check_name(name: str, origin: str) -> None:
    """Refuse a name that could lead out of the folder, mean two things on two systems, or hold a program.

    Raises:
        ArtifactError: saying which of these.
    """
    parts = name.split("/")
    if not all(COMPONENT.fullmatch(part) and not part.endswith(".") and not DEVICES.fullmatch(part) for part in parts):
        raise ArtifactError(
            f"'{origin}' lists {name[:200]!r}; a file's name is relative and of letters, digits, '.', '_' and '-'."
        )
    if len(parts) > 8 or parts[0] in OTHERS or name == NAME:
        raise ArtifactError(f"'{origin}' lists {name[:200]!r}, which is not a place for a file of a model.")
    if not name.endswith(KINDS):
        raise ArtifactError(f"'{origin}' lists {name!r}; a model holds only files of the kinds {', '.join(KINDS)}.")


def check_schema(document: dict[str, Any], origin: str) -> int:
    """Return the version of a document's layout.

    Raises:
        ArtifactError: not Fathom's, or written by a newer Fathom.
    """
    if document.get("format") != FORMAT:
        raise ArtifactError(f"'{origin}' is not Fathom's: its format is {str(document.get('format'))[:40]!r}.")
    schema = document.get("schema")
    if type(schema) is not int or schema < 1:
        raise ArtifactError(f"'{origin}' has the schema {str(schema)[:40]!r}; expected a whole number from 1.")
    if schema > SCHEMA:
        raise ArtifactError(
            f"'{origin}' was written by a newer Fathom (schema {schema}, known up to {SCHEMA}): "
            "upgrade with pip install --upgrade fathom-dl."
        )
    return schema


def _entries(values: Any, origin: str) -> dict[str, Listed]:
    if not isinstance(values, dict) or not values:
        raise ArtifactError(f"'{origin}' lists no files.")
    folded = Counter(name.casefold() for name in values)
    found = {}
    for name, entry in values.items():
        check_name(name, origin)
        if folded[name.casefold()] > 1:
            raise ArtifactError(f"'{origin}' lists {name!r} twice, in capitals and not.")
        if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
            raise ArtifactError(f"'{origin}' must give a size and a sha256, and no more, of {name!r}.")
        size, digest = entry["size"], entry["sha256"]
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise ArtifactError(f"'{origin}' gives {name!r} a size or a sha256 that is none.")
        found[name] = Listed(size, digest)
    return found


def _encode(manifest: Manifest) -> bytes:
    entries = {name: {"size": f.size, "sha256": f.sha256} for name, f in sorted(manifest.files.items())}
    return strict_json.encode({"format": FORMAT, "schema": SCHEMA, "files": entries})


def _measure(path: Path) -> Listed:
    return Listed(path.stat().st_size, files.sha256(path))


def _status(path: Path, name: str) -> os.stat_result:
    try:
        return os.lstat(path)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise ArtifactError(f"'{path}' {reason}; the manifest lists {name!r}: copy the folder again.") from None


def _check_folder(path: Path, name: str) -> None:
    if not stat.S_ISDIR(_status(path, name).st_mode):
        raise ArtifactError(f"'{path}' is a link or no folder; a model's files stand in real folders.")


def _check_file(path: Path, name: str) -> None:
    if not stat.S_ISREG(_status(path, name).st_mode):
        raise ArtifactError(
            f"'{path}' is a link or no plain file; a model holds plain files only: copy what it points at in its place."
        )


def _check_hard_links(paths: dict[str, Path]) -> None:
    """A second name of a file is fine inside the folder; one elsewhere could be anybody's file."""
    status = {name: path.stat() for name, path in paths.items()}
    inside = Counter((s.st_dev, s.st_ino) for s in status.values())
    for name, s in status.items():
        if s.st_nlink > inside[s.st_dev, s.st_ino]:
            raise ArtifactError(
                f"'{paths[name]}' is a hard link to a file elsewhere; copy the folder, so that its files are its own."
            )


def _unlisted(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Names of what is not in the manifest: files, and folders that hold no listed file."""
    known = {NAME, *manifest.files} | {str(p) for name in manifest.files for p in Path(name).parents}
    found = []
    for place in sorted({".", *(str(Path(name).parent) for name in manifest.files)}):
        for entry in os.scandir(folder / place):
            name = entry.name if place == "." else f"{Path(place).as_posix()}/{entry.name}"
            if name not in known and name not in OTHERS:
                found.append(name)
    return tuple(sorted(found))


def _mend(name: str) -> str:
    if name.endswith((".md", ".html", ".toml")):
        return f" Copy the folder again; if the edit was meant, take it in with fathom.artifact.seal(folder, {name!r})."
    return " Copy the folder again."


def unreadable(path: Path, error: BaseException) -> FathomError:
    """What to raise where a file's contents make no sense: one sentence, whatever the reader underneath said."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ArtifactError(f"'{path}' cannot be used: {reason.rstrip('.')}.")
