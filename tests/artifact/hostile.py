"""How the tests of hostile artifacts forge a folder, and have it refused in one sentence."""

import json
from pathlib import Path

import pytest

from fathom.artifact import load, manifest
from fathom.core.errors import ArtifactError


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
