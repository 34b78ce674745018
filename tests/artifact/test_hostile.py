"""Damage and malice: whatever a folder holds, loading it runs nothing and gives one sentence or the model."""

import os
import resource

import pytest

from fathom.artifact import load, manifest, strict_json, verify
from fathom.core.errors import ArtifactError

from .conftest import write
from .hostile import document, forge, refused

FILES = (
    "README.md",
    "config.json",
    "config.toml",
    "evidence.json",
    "manifest.json",
    "metrics.json",
    "model.safetensors",
    "preprocess/preprocess.json",
    "report.html",
    "spec.json",
)


# Damage


@pytest.mark.parametrize("region", range(8))
@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found(whole, name, region):
    path = whole / name
    data = path.read_bytes()
    places = {min(len(data) - 1, (2 * region + half) * len(data) // 16) for half in (0, 1)} | {len(data) - 1}
    try:
        for place in places:
            for change in (0x01, 0x20, 0x80, 0xFF):
                path.write_bytes(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])
                refused(whole)
    finally:
        path.write_bytes(data)
    assert load(whole)


def test_every_part_of_the_manifest_counts(whole):
    path = whole / "manifest.json"
    data = path.read_bytes()
    try:
        for place in range(0, len(data), 3):
            path.write_bytes(data[:place] + bytes([data[place] ^ 0x03]) + data[place + 1 :])
            with pytest.raises(ArtifactError):
                verify(whole)
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["empty", "half", "longer", "missing"])
def test_a_file_cut_short_lengthened_or_lost_is_found(folder, name, change):
    path = folder / name
    data = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "longer": data + b"\0"}[change])
    refused(folder, name.split("/")[-1])


def test_swapped_files_are_found(folder, tmp_path):
    other = write(tmp_path / "other", module_seed=1)
    for name in ("model.safetensors", "README.md"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes((other / name).read_bytes())
        if data != (other / name).read_bytes():
            refused(folder, name)
        (folder / name).write_bytes(data)
    (folder / "config.json").rename(folder / "a")
    (folder / "metrics.json").rename(folder / "config.json")
    (folder / "a").rename(folder / "metrics.json")
    refused(folder)


def test_what_the_manifest_does_not_list_is_reported_and_not_read(folder):
    (folder / "model.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "preprocess" / ".DS_Store").write_text("{")
    found = load(folder)
    assert found.unlisted == ("model.pkl", "modeling.py", "preprocess/.DS_Store")
    assert set(found.files) == set(FILES) - {"manifest.json"}


@pytest.mark.parametrize("name", ["tokenizer-0.json", "tokenizer-1.json", "more.txt"])
def test_preprocessing_that_the_manifest_does_not_list_is_refused(folder, tmp_path, name):
    (tmp_path / "outside").write_text("{}")
    (folder / "preprocess" / name).symlink_to(tmp_path / "outside")
    refused(folder, f"{name}' is not in the manifest")


def test_a_manifest_without_preprocessing_is_refused(folder, tmp_path):
    listed = document(folder, "manifest.json")
    del listed["files"]["preprocess/preprocess.json"]
    (folder / "manifest.json").write_bytes(strict_json.encode(listed))
    refused(folder, "does not list preprocess/preprocess.json")


@pytest.mark.parametrize("name", ["nowhere", "empty", "file", "nul\0"])
def test_no_artifact_at_all(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError):
        load(tmp_path / name)


# Paths


@pytest.mark.parametrize(
    "name",
    [
        "../outside.json",
        "preprocess/../../outside.json",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a//b.json",
        "./a.json",
        "a/./b.json",
        "a/",
        "C:\\x.json",
        "C:x.json",
        "a\\..\\b.json",
        "\\\\server\\x.json",
        "a\0.json",
        "a\n.json",
        "\u202ea.json",
        "..\u2215a.json",
        "~/x.json",
        "con.json",
        "NUL",
        "a./b.json",
        "a .json",
        "x" * 300 + ".json",
        "a/" * 30 + "b.json",
        "model.pkl",
        "model.py",
        "weights.bin",
        "model.h5",
        "checkpoints/1.json",
        "manifest.json",
        ".saved/x.json",
        ".git/config.json",
    ],
)
def test_a_name_that_is_no_plain_relative_path_is_refused(folder, tmp_path, name):
    (tmp_path / "outside.json").write_text("{}")
    listed = document(folder, "manifest.json")
    listed["files"][name] = {"size": 2, "sha256": manifest.files.sha256(tmp_path / "outside.json")}
    (folder / "manifest.json").write_bytes(strict_json.encode(listed))
    refused(folder, "manifest.json")


def test_names_that_differ_in_capitals_only_are_refused(folder):
    listed = document(folder, "manifest.json")
    listed["files"]["Report.html"] = listed["files"]["report.html"]
    (folder / "manifest.json").write_bytes(strict_json.encode(listed))
    refused(folder, "capitals")


@pytest.mark.parametrize("name", FILES)
def test_a_symbolic_link_is_refused(folder, tmp_path, name):
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    refused(folder, "link")


def test_a_link_to_a_folder_is_refused(folder, tmp_path):
    (folder / "preprocess").rename(tmp_path / "outside")
    (folder / "preprocess").symlink_to(tmp_path / "outside")
    refused(folder, "link")


def test_a_hard_link_to_a_file_elsewhere_is_refused(folder, tmp_path):
    os.link(folder / "evidence.json", tmp_path / "outside.json")
    refused(folder, "hard link")


def test_a_hard_link_within_the_folder_is_none_of_our_business(folder):
    (folder / "again.json").hardlink_to(folder / "evidence.json")
    manifest.write(folder)
    assert load(folder)


def test_a_pipe_does_not_hang_the_reader(folder):
    (folder / "report.html").unlink()
    os.mkfifo(folder / "report.html")
    refused(folder, "no plain file")


def test_a_folder_in_a_files_place_is_refused(folder):
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    refused(folder, "no plain file")


# JSON that two readers may read differently, or none


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "spec.json", "metrics.json"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"a": "\xc3\x28"}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"format": "fathom", "format": "fathom"}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 9223372036854775808}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"9" * 100_000 + b"}",
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b"[" * 900_000,
        b'{"a":' * 150_000,
        b"{} {}",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 01}',
        b"\0" * 1000,
        b"{}",
    ],
    ids=range(28),
)
def test_json_that_is_not_strict_is_refused(folder, name, data):
    if name == "metrics.json" and data == b"{}":
        return  # nothing was measured: that is allowed
    if name == "manifest.json":
        (folder / name).write_bytes(data)
    else:
        forge(folder, name, data)
    refused(folder, name)


def test_a_file_too_large_to_be_one_is_not_read(folder):
    with open(folder / "config.json", "wb") as file:
        file.truncate(1 << 31)  # holes: no disk is used
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, "config.json")
    listed = document(folder, "manifest.json")
    listed["files"]["config.json"]["size"] = 1 << 31
    (folder / "manifest.json").write_bytes(strict_json.encode(listed))
    refused(folder, "larger than")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_a_manifest_too_large_to_be_one_is_not_read(folder):
    (folder / "manifest.json").write_bytes(b" " * (5 << 20))
    refused(folder, "larger than")
