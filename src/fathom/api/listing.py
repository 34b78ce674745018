"""What there is to choose from: models, objectives, samples."""

from __future__ import annotations

import ast
from typing import Any

from fathom.core import catalog


def list_models() -> list[dict[str, Any]]:
    """Return the architectures: name, the file that holds it, one line about it, its source."""
    return _entries("models")


def list_objectives() -> list[dict[str, Any]]:
    """Return what a model can be trained to do: name, file, one line about it, its source."""
    return _entries("objectives")


def list_samples() -> list[dict[str, Any]]:
    """Return the bundled data sets: name, one line about each, rows, target, licence."""
    from fathom.data import _samples

    found = [_samples.find(name) for name in _samples.names()]
    return [
        {
            "name": sample.name,
            "about": f"{sample.title} ({sample.rows:,} rows, target {', '.join(sample.target)}; {sample.licence})",
            "rows": sample.rows,
            "target": list(sample.target),
            "licence": sample.licence,
        }
        for sample in found
    ]


def _entries(room: str) -> list[dict[str, Any]]:
    """Read the files' texts rather than import them: a list should not wait for a framework."""
    rows = []
    for name, file in catalog.names(room).items():
        tree = ast.parse((catalog.PACKAGE / room / f"{file}.py").read_text(encoding="utf-8"))
        told = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
        about = told if name == file else f"a preset of {file}"
        rows.append({"name": name, "file": file, "about": about, "reference": _reference(tree)})
    return sorted(rows, key=lambda row: (row["file"], row["name"] != row["file"], row["name"]))


def _reference(tree: ast.Module) -> str:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "REFERENCE":
            return str(ast.literal_eval(node.value))
    return ""
