"""How published weights are named, and which of ours they are: one table a family, read by whoever loads them.

    Match       a tensor or module of ours, and what it is called where the weights were published
    translate   their tensors -> ours, and what was left over

A family's file in `models/` that can take published weights holds, beside what the catalog asks for:

    PUBLISHED   tuple of the `model_type`s in transformers' `config.json` that it reads
    published   (settings) -> Config, from that file's contents
    matches     (Config) -> the lines of its table
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Match:
    """One line of a family's table.

    Attributes:
        ours: a tensor of ours ("places"), or a module ("blocks.0.norm"), of which it means weight, bias and running
            statistics.
        theirs: the same of theirs; several are laid one behind the other along the first dimension, as we hold queries,
            keys and values in one matrix.
        transposed: whether their matrices are [in, out] rather than [out, in].
        shape: what ours is reshaped to, where theirs has dimensions of size one that ours has not.
    """

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False
    shape: tuple[int, ...] = ()


def match(ours: str, *theirs: str, transposed: bool = False, shape: tuple[int, ...] = ()) -> Match:
    """Return a line of a table."""
    return Match(ours, theirs, transposed, shape)


@dataclass(frozen=True)
class Translated:
    """Attributes: tensors, by our names; left, the names of theirs that no line of the table speaks of."""

    tensors: dict[str, Tensor]
    left: tuple[str, ...]


def translate(tensors: Mapping[str, Tensor], table: Iterable[Match]) -> Translated:
    """Return their tensors under our names.

    Published names may stand below a prefix that differs between files ("bert.", "model."): the one under which most
    lines of the table find something is taken.
    """
    lines = list(table)
    prefix = _prefix(tensors, lines)
    found, used = list[tuple[str, list[str], Match]](), set[str]()
    for line in lines:
        for leaf in ("", *(f".{leaf}" for leaf in LEAVES)):
            names = [prefix + name + leaf for name in line.theirs]
            if not all(name in tensors for name in names):
                names = [name + leaf for name in line.theirs]  # heads stand beside what has the prefix
            if names and all(name in tensors for name in names):
                found.append((line.ours + leaf, names, line))
                used.update(names)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # reading may be work, where weights are quantised
        made = pool.map(lambda each: _joined([tensors[name] for name in each[1]], each[2]), found)
        translated = {ours: tensor for (ours, _, _), tensor in zip(found, made, strict=True)}
    return Translated(translated, tuple(name for name in tensors if name not in used))


def _joined(parts: list[Tensor], line: Match) -> Tensor:
    if line.transposed:
        parts = [part.t() if part.dim() == 2 else part for part in parts]
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    return whole.reshape(line.shape) if line.shape else whole


def _prefix(tensors: Mapping[str, Tensor], lines: list[Match]) -> str:
    """Return the prefix below which most of the table's names stand."""
    probes = {name for line in lines for name in line.theirs}
    probes |= {f"{name}.weight" for name in probes}
    counts: dict[str, int] = {}
    for name in tensors:
        parts = name.split(".")
        for cut in range(min(4, len(parts))):
            if ".".join(parts[cut:]) in probes:
                prefix = "".join(part + "." for part in parts[:cut])
                counts[prefix] = counts.get(prefix, 0) + 1
    return max(counts, key=lambda prefix: counts[prefix], default="")
