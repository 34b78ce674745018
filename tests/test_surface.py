"""The public surface is pinned, and asking for it is quick because nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys

import fathom

HEAVY = ("torch", "polars", "sklearn", "matplotlib", "tokenizers", "PIL")


def test_the_public_names() -> None:
    assert sorted(fathom.__all__) == [
        "FathomError", "Model", "fit", "inspect", "list_models", "list_objectives", "list_samples", "load",
        "published",
    ]  # fmt: skip
    for name in fathom.__all__:
        assert getattr(fathom, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    try:
        fathom.nonsense  # noqa: B018
    except AttributeError as error:
        assert "nonsense" in str(error)
    else:
        raise AssertionError


def test_import_and_help_load_no_framework() -> None:
    code = f"import sys, fathom, fathom.cli; print([m for m in {HEAVY} if m in sys.modules])"
    assert _run("-c", code).stdout.strip() == "[]"


def test_lists_of_names_load_no_framework() -> None:
    code = (
        "import sys, fathom; fathom.list_models(); fathom.list_objectives(); print([m for m in {} if m in sys.modules])"
    )
    assert _run("-c", code.format(HEAVY)).stdout.strip() == "[]"


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
