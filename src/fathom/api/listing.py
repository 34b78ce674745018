"""What there is to choose from: models, objectives, samples."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from fathom.core import catalog


def list_models() -> list[dict[str, Any]]:
    """Return the architectures: name, the file that holds it, one line about it, its source and year, what it accepts
    and what else it can do, parameters and operations with the data they were counted on, and what it was proven
    against."""
    facts = json.loads((catalog.PACKAGE / "models" / "facts.json").read_text(encoding="utf-8"))
    rows = []
    for row in _entries("models"):
        years = re.findall(r"\b(?:19|20)\d\d\b", row["reference"])
        rows.append({**row, "year": int(years[0]) if years else None, **facts.get(row["name"], {})})
    return rows


def list_objectives() -> list[dict[str, Any]]:
    """Return what a model can be trained to do, and the wrappers that change how (`wraps`): name, file, one line about
    it, its source."""
    wrappers = [{**row, "about": f"around another: {row['about']}", "wraps": True} for row in _entries("wrappers")]
    return [{**row, "wraps": False} for row in _entries("objectives")] + wrappers


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
        proven = {"proven": _constant(tree, "PROVEN")} if room == "models" else {}
        rows.append({"name": name, "file": file, "about": about, "reference": _constant(tree, "REFERENCE"), **proven})
    return sorted(rows, key=lambda row: (row["file"], row["name"] != row["file"], row["name"]))


def _constant(tree: ast.Module, name: str) -> str:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return str(ast.literal_eval(node.value))
    return ""
