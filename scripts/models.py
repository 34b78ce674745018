"""Count every model and write what is found: `python scripts/models.py`.

    src/fathom/models/facts.json    what `fathom models` shows: parameters, operations, what each model accepts
    docs/models.md                  the same as a page

Counted on the data of the paper where a model's file has it (`paper()`), else on its example, with the read-outs that
the data's targets need. Nothing is allocated: tensors have shapes only. Operations are those of one forward pass of one
sample, a multiplication and an addition counting as two.
"""

from __future__ import annotations

import json
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fathom.core import catalog
from fathom.core.roles import Adversarial, Autoencoder, Denoiser, LanguageModel, Translator
from fathom.core.types import UNKNOWN, Batch, DataSpec, Field, Kind
from fathom.objectives import supervised

ROOT = Path(__file__).parent.parent
FACTS = ROOT / "src" / "fathom" / "models" / "facts.json"
PAGE = ROOT / "docs" / "models.md"
KINDS: dict[str, Field] = {
    "numbers": Field(name="n", kind="number"),
    "categories": Field(name="c", kind="category", classes=(UNKNOWN, "a", "b")),
    "texts": Field(name="t", kind="text", shape=(64,), vocabulary=500),
    "images": Field(name="i", kind="image", shape=(3, 64, 64)),
    "graphs": Field(name="g", kind="graph", shape=(8, 16, 4)),
}
ROLES = {
    "tells the next token": LanguageModel,
    "writes a text": Translator,
    "takes out noise": Denoiser,
    "makes codes and back": Autoencoder,
    "makes images": Adversarial,
}
ALLOCATED = 150_000_000  # numbers of weights and data up to which they are made in memory to be counted
TARGET = Field(name="y", kind="category", classes=("a", "b"), counts=(1, 1))
INTRODUCTION = """# Models

Each is given as `--model NAME`; a family's options as `--set model.OPTION=VALUE` (see [options](options.md)). The first
line of a family is what its own name stands for, which suits small data; the others are the papers' sizes. Parameters
include the read-outs that the data's targets need (of what makes codes or images none); operations are of one forward
pass of one sample, a multiplication and an addition counting as two. This page is written by
`python scripts/models.py`, and a test compares it. Networks of other libraries are taken as `--model hf:NAME` and
`--model timm:NAME`, one of your own as `--model path.py:build` ([your own](your-own.md)).
"""


def facts() -> dict[str, dict[str, Any]]:
    """Return what was counted of every name in the catalog."""
    found = {}
    for name, file in sorted(catalog.names("models").items()):
        entry = catalog.find("models", name)
        spec = data_of(entry)
        with torch.device("meta"):
            network = entry.module.build(entry.config, spec)
            makes = isinstance(network, (Denoiser, Autoencoder, Adversarial))
            readout = supervised.accepts(spec) is None and not makes
            task = supervised.build(supervised.Config(class_weights="none"), spec, network) if readout else network
        found[name] = {
            "file": file,
            "parameters": sum(p.numel() for p in task.parameters()),
            "operations": operations(entry, spec, network),
            "data": words(spec),
            "accepts": accepted(entry),
            "also": [told for told, role in ROLES.items() if isinstance(network, role)],
        }
    return found


def data_of(entry: catalog.Entry) -> DataSpec:
    """Return the data that an entry is counted on; a file whose presets are of different data takes their names."""
    paper = getattr(entry.module, "paper", entry.module.example)
    return paper(entry.name) if signature(paper).parameters else paper()


def operations(entry: catalog.Entry, spec: DataSpec, network: nn.Module) -> int | None:
    """Return the operations of one forward pass of one sample; None where only a network too large to allocate could
    tell, for its work depends on the data."""
    if hasattr(entry.config, "cells"):  # what torch's own kernels of recurrent layers do is not counted
        entry = replace(entry, config=replace(entry.config, cells="readable"))
        network = entry.module.build(entry.config, spec)
    try:
        return count(network, one(spec, "meta"))
    except (RuntimeError, NotImplementedError, AssertionError):
        sizes = [p.numel() for p in network.parameters()] + [p.numel() for p in one(spec, "meta").values()]
        if sum(sizes) > ALLOCATED:
            return None
        torch.manual_seed(0)
        return count(entry.module.build(entry.config, spec), one(spec, "cpu"))


def count(network: nn.Module, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        network.eval()(batch)
    return int(counter.get_total_flops())


def one(spec: DataSpec, device: str) -> Batch:
    """Return one sample that looks as the spec says."""
    with torch.device(device):
        return _one(spec)


def _one(spec: DataSpec) -> Batch:
    batch: Batch = {}
    if spec.numbers:
        batch["number"] = torch.zeros(1, len(spec.numbers))
    if spec.categories:
        batch["category"] = torch.zeros(1, len(spec.categories), dtype=torch.int64)
    for field in spec.images:
        batch[field.key] = torch.zeros(1, *field.shape, dtype=torch.uint8)
    for field in spec.texts:
        batch[field.key] = torch.full((1, *field.shape), field.vocabulary - 1)
    for field in spec.of("graph"):
        nodes, edges, width = field.shape
        batch[field.key] = torch.zeros(1, nodes, width)
        batch[f"{field.key}:edges"] = torch.zeros(1, edges, 2, dtype=torch.int64)
        batch[f"{field.key}:size"] = torch.full((1,), nodes)
    return batch


def accepted(entry: catalog.Entry) -> list[str]:
    """Return the kinds of columns that a model takes, alone or beside others."""

    def takes(*fields: Field, target: Kind = "category") -> bool:
        text = Field(name="y", kind="text", shape=(64,), vocabulary=500)
        return entry.module.accepts(DataSpec(inputs=fields, targets=(text if target == "text" else TARGET,))) is None

    alone = [kind for kind, field in KINDS.items() if takes(field) or takes(field, target="text")]
    return alone + (["all of them together"] if takes(*KINDS.values()) else [])


def words(spec: DataSpec) -> str:
    """Return in words what data was counted on."""
    parts = [f"{len(spec.numbers)} numbers"] if spec.numbers else []
    parts += [f"{len(spec.categories)} categories"] if spec.categories else []
    parts += ["×".join(map(str, f.shape)) + " image" for f in spec.images]
    parts += [f"{f.shape[0]} tokens of {f.vocabulary:,}" for f in spec.texts]
    parts += [f"graph of {f.shape[0]:,} nodes" for f in spec.of("graph")]
    classes = [f"{len(t.classes):,} classes" for t in spec.targets if t.classes]
    return ", ".join(parts + classes)


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return docs/models.md."""
    parts = [INTRODUCTION]
    for file in catalog.files("models"):
        module = catalog.find("models", file).module
        names = sorted(
            (n for n, f in found.items() if f["file"] == file), key=lambda n: (n != file, found[n]["parameters"])
        )
        told = (module.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        first = found[file]
        parts.append(f"## {file}\n\n{told}\n")
        also = f" It also {', '.join(first['also'])}." if first["also"] else ""
        parts.append(f"- Takes: {', '.join(first['accepts'])}.{also}")
        parts.append(f"- Source: {module.REFERENCE}.")
        parts.append(f"- Proven against: {module.PROVEN}.\n")
        parts.append("| name | parameters | operations | counted on |\n| --- | ---: | ---: | --- |")
        for name in names:
            row = found[name]
            work = "–" if row["operations"] is None else short(row["operations"])
            parts.append(f"| `{name}` | {row['parameters']:,} | {work} | {row['data']} |")
        parts.append("")
    return "\n".join(parts)


def short(number: int) -> str:
    """Return 1234567 as "1.23 M"."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


if __name__ == "__main__":
    counted = facts()
    FACTS.write_text(json.dumps(counted, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(counted), encoding="utf-8")
