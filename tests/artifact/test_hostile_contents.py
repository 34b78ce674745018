"""Damage and malice, of what stands in files: loading it runs nothing and gives one sentence or the model."""

import json
import resource
import struct

import pytest
import torch
from safetensors.torch import save_file

from fathom.artifact import load, manifest, strict_json

from .conftest import objective
from .hostile import document, forge, refused


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
