"""Damage and malice: whatever a folder holds, loading it gives one sentence or the model, and runs nothing."""

import json
import os
import resource
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fathom.artifact import load, manifest, strict_json, verify
from fathom.core.errors import ArtifactError

from .conftest import objective, write

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


def refused(folder: Path, words: str = "", **options) -> str:
    """Load, and return the one sentence that refuses."""
    with pytest.raises(ArtifactError) as caught:
        load(folder, **options)
    sentence = str(caught.value)
    assert words in sentence, sentence
    assert "\n" not in sentence and sentence.endswith((".", ")")), sentence
    assert len(sentence) < 1200
    return sentence


def forge(folder: Path, name: str, data: bytes | dict) -> None:
    """Change a file, and the manifest with it: hashes do not tell forgery."""
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    manifest.write(folder)


def document(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_bytes())


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


@pytest.mark.parametrize(
    "files",
    [
        None,
        [],
        {},
        {"config.json": None},
        {"config.json": {"size": 1}},
        {"config.json": {"size": "1", "sha256": "0" * 64}},
        {"config.json": {"size": True, "sha256": "0" * 64}},
        {"config.json": {"size": -1, "sha256": "0" * 64}},
        {"config.json": {"size": 1.0, "sha256": "0" * 64}},
        {"config.json": {"size": 1, "sha256": "0" * 63}},
        {"config.json": {"size": 1, "sha256": "A" * 64}},
        {"config.json": {"size": 1, "sha256": "0" * 64, "url": "http://example.org"}},
        {"config.json": {"size": 1, "sha256": "0" * 64}},
    ],
    ids=range(13),
)
def test_a_manifest_of_wrong_types_is_refused(folder, files):
    listed = {"format": "fathom", "schema": 1, "files": files}
    (folder / "manifest.json").write_bytes(strict_json.encode(listed))
    refused(folder, "manifest.json")


# Forgery: the manifest agrees, so everything else has to hold


@pytest.mark.parametrize("schema", [2, 10**9])
@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
def test_a_newer_layout_asks_for_an_upgrade(folder, name, schema):
    changed = {**document(folder, name), "schema": schema}
    if name == "manifest.json":
        (folder / name).write_bytes(strict_json.encode(changed))
    else:
        forge(folder, name, changed)
    refused(folder, "pip install --upgrade fathom-dl")


@pytest.mark.parametrize("schema", [0, -1, None, "1", True, 1.0])
def test_a_layout_that_is_no_version_is_refused(folder, schema):
    forge(folder, "config.json", {**document(folder, "config.json"), "schema": schema})
    refused(folder, "schema")


@pytest.mark.parametrize("room", ["model", "objective"])
@pytest.mark.parametrize(
    "name",
    ["os", "os.system", "../engine/loop", "_file", "__init__", "builtins:eval", "torch.nn.Linear", "mlpp", "", "a\0"],
)
def test_a_name_outside_the_catalog_is_refused(folder, room, name):
    config = document(folder, "config.json")
    config[room]["name"] = name
    forge(folder, "config.json", config)
    sentence = refused(folder)
    assert f"There is no {room}" in sentence or (room == "objective" and "cannot be read at" in sentence)


@pytest.mark.parametrize(
    "part",
    [
        None,
        "mlp",
        [],
        {},
        {"name": "mlp"},
        {"name": None},
        {"name": ["mlp"], "config": {}},
        {"name": "mlp", "config": []},
        {"name": "mlp", "config": None},
        {"name": "mlp", "config": {"widht": 8}},
        {"name": "mlp", "config": {"width": "8"}},
        {"name": "mlp", "config": {"width": -8}},
        {"name": "mlp", "config": {"width": 0}},
        {"name": "mlp", "config": {"width": 8.5}},
        {"name": "mlp", "config": {"depth": {"a": 1}}},
        {"name": "mlp", "config": {"embedding": "os.system"}},
        {"name": "mlp", "config": {"dropout": 1e300}},
        {"name": "mlp", "config": {"__class__": "x"}},
        {"name": "resnet", "config": {}},
    ],
    ids=range(19),
)
def test_a_model_that_cannot_be_is_refused(folder, part):
    forge(folder, "config.json", {**document(folder, "config.json"), "model": part})
    refused(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"width": 10**6},
        {"width": 2**40},
        {"width": 2**62},
        {"members": 10**9},
        {"depth": 10**9},
        {"depth": 10**6, "width": 4096},
        {"embedding_size": 10**12},
    ],
    ids=str,
)
def test_a_model_out_of_all_proportion_is_refused_before_it_is_built(folder, config):
    forged = document(folder, "config.json")
    forged["model"]["config"] |= config
    forge(folder, "config.json", forged)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, "config.json")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # kilobytes


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "tensor"},
        {"kind": "image"},
        {"kind": "image", "shape": [1, 28, -28]},
        {"kind": "image", "shape": [1, 2**62, 28]},
        {"kind": "text", "shape": [0], "vocabulary": 100},
        {"kind": "text", "shape": [16], "vocabulary": -1},
        {"kind": "text", "shape": [16], "vocabulary": 2**62},
        {"shape": [3]},
        {"stats": {"mean": [], "std": []}},
        {"stats": {"mean": [1.0], "std": []}},
        {"stats": {"mean": "0"}},
        {"stats": []},
        {"name": 3},
        {"name": "b"},
        {"classes": ["a", "a"]},
        {"classes": "ab"},
        {"counts": [1, 2]},
    ],
    ids=range(17),
)
def test_a_spec_that_describes_no_data_is_refused(folder, change):
    spec = document(folder, "spec.json")
    spec["inputs"][0] |= change
    forge(folder, "preprocess/preprocess.json", spec)
    forge(folder, "spec.json", spec)
    refused(folder)


def test_a_target_without_classes_is_refused(folder):
    spec = document(folder, "spec.json")
    spec["targets"][0] |= {"classes": [], "counts": []}
    forge(folder, "preprocess/preprocess.json", spec)
    forge(folder, "spec.json", spec)
    refused(folder, "no classes")


def test_a_spec_of_another_model_is_refused(folder):
    spec = document(folder, "spec.json")
    spec["rows"] += 1
    forge(folder, "spec.json", spec)
    refused(folder, "not of the same model")


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"[" * 500_000, b'{"inputs": 3}'])
def test_preprocessing_that_makes_no_sense_is_refused(folder, data):
    forge(folder, "preprocess/preprocess.json", data)
    refused(folder, "preprocess")


# Weights


def header(entries: dict, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 99 << 20) + b"{}",
        struct.pack("<Q", 17 << 20) + b" " * (17 << 20),
        struct.pack("<Q", 10) + b"{}",
        header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"\0" * 4),
        header({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}, b"\0" * 4),
        header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
        header({"x": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 8),
        header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8),
        header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}, b"\0" * 4),
        header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "xy"}, b"\0" * 4),
        header({"x": 3}),
        b"\x80\x02]q\x00.",
        b"PK\x03\x04" + b"\0" * 100,
    ],
    ids=range(17),
)
def test_weights_that_are_no_safetensors_are_refused(folder, data):
    forge(folder, "model.safetensors", data)
    refused(folder, "model.safetensors")


def state() -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in objective(width=8, members=2)[2].state_dict().items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("heads.0.linear.bias"), "'heads.0.linear.bias' is missing"),
        (lambda s: s.update(stranger=torch.ones(2)), "'stranger' is not the model's"),
        (lambda s: s.update({"heads.0.linear.bias": torch.ones(2, 4)}), "is [2, 4], the model's is [2, 3]"),
        (lambda s: s.update({"heads.0.linear.bias": torch.ones(3, 2)}), "is [3, 2], the model's is [2, 3]"),
        (lambda s: s.update({"heads.0.linear.bias": torch.ones(2, 3, dtype=torch.float16)}), "is F16, the model's"),
        (lambda s: s.update({"heads.0.linear.bias": torch.ones(2, 3, dtype=torch.int32)}), "is I32, the model's"),
        (lambda s: s.clear(), "more"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(folder, change, words):
    tensors = state()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    manifest.write(folder)
    refused(folder, words)


@pytest.mark.parametrize("tied", [3, [], {"a": 1}, None])
def test_ties_of_wrong_types_are_refused(folder, tied):
    forge(folder, "config.json", {**document(folder, "config.json"), "tied": tied})
    refused(folder, "tied")


@pytest.mark.parametrize("tied", [{"heads.0.linear.bias": "nowhere"}, {"heads.0.linear.bias": "heads.0.linear.bias"}])
def test_ties_to_nothing_leave_a_tensor_missing(folder, tied):
    tensors = state()
    del tensors["heads.0.linear.bias"]
    save_file(tensors, folder / "model.safetensors")
    forge(folder, "config.json", {**document(folder, "config.json"), "tied": tied})
    refused(folder, "'heads.0.linear.bias' is missing")


def test_loading_imports_no_unpickler(folder, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr("pickle.load", forbidden)
    monkeypatch.setattr("pickle.loads", forbidden)
    monkeypatch.setattr("pickle.Unpickler", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    assert load(folder)
