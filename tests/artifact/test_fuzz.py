"""Arbitrary documents in place of the artifact's: an ArtifactError or the model, and nothing else."""

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.artifact import load, manifest, strict_json
from fathom.core.errors import ArtifactError

FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["mlp", "supervised", "../x", "number", "category", "image", "text", "0" * 64])
)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4))


@st.composite
def changed(draw, document):
    """The document with one to three of its places changed or removed."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            if isinstance(place, dict) and draw(st.integers(0, 4)) == 0:
                del place[key]
            else:
                place[key] = draw(VALUES)
            break
    return document


def attempt(folder) -> None:
    with contextlib.suppress(ArtifactError):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "spec.json", "metrics.json"])
def test_a_changed_document_gives_an_artifact_error_or_the_model(folder, name):
    original = json.loads((folder / name).read_bytes())

    @FEW
    @given(changed(original))
    def check(document):
        data = json.dumps(document).encode()
        (folder / name).write_bytes(data)
        if name == "spec.json":
            (folder / "preprocess" / "preprocess.json").write_bytes(data)
        manifest.write(folder)
        attempt(folder)

    check()


def test_a_changed_manifest_gives_an_artifact_error_or_the_model(folder):
    original = json.loads((folder / "manifest.json").read_bytes())

    @FEW
    @given(changed(original))
    def check(document):
        (folder / "manifest.json").write_bytes(strict_json.encode(document))
        attempt(folder)

    check()


@pytest.mark.parametrize("name", ["config.json", "spec.json", "metrics.json", "manifest.json", "model.safetensors"])
def test_arbitrary_bytes_give_an_artifact_error(folder, name):
    original = (folder / name).read_bytes()

    @FEW
    @given(
        st.binary(max_size=200) | st.builds(lambda cut, tail: original[:cut] + tail, st.integers(0, 400), st.binary())
    )
    def check(data):
        (folder / name).write_bytes(data)
        if name != "manifest.json":
            manifest.write(folder)
        attempt(folder)

    check()


@FEW
@given(st.text(max_size=60))
def test_a_name_is_refused_or_stays_inside(name):
    try:
        manifest.check_name(name, "manifest.json")
    except ArtifactError:
        return
    assert ".." not in name.split("/") and not name.startswith("/") and "\\" not in name and "\0" not in name


@FEW
@given(VALUES)
def test_what_is_written_is_read_again(value):
    document = {"value": value}
    assert strict_json.parse(strict_json.encode(document), "x") == document


@FEW
@given(st.binary(max_size=80))
def test_the_reader_of_json_knows_one_error(data):
    with contextlib.suppress(ArtifactError):
        strict_json.parse(data, "x")
