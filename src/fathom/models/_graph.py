"""What the graph networks have in common: the data that they take, and what their options may be."""

from __future__ import annotations

from typing import Any

from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field


def why_not(spec: DataSpec) -> str | None:
    """Return why a graph network cannot take such data, or None."""
    return spec.unless_one("graph")


def graphs(nodes: int, edges: int, features: int, classes: int, rows: int = 16) -> DataSpec:
    """Return graphs of up to N nodes of F numbers each and up to E edges, and classes to tell apart."""
    names = ("no", "yes") if classes == 2 else tuple(f"class {i}" for i in range(classes))
    return DataSpec(
        inputs=(Field(name="graph", kind="graph", shape=(nodes, edges, features)),),
        targets=(Field(name="label", kind="category", classes=names, counts=(max(1, rows // classes),) * classes),),
        rows=rows,
    )


def column(model: str, config: Any, spec: DataSpec) -> Field:
    """Return the graph column, the configuration checked.

    Raises:
        ConfigError: the data is of another kind, or an option is out of range.
    """
    why = why_not(spec)
    if why:
        raise ConfigError(f"Model '{model}' cannot be used: {why}.")
    for name in ("width", "depth", "num_heads"):
        if getattr(config, name, 1) < 1:
            raise ConfigError(f"Option 'model.{name}' was given {getattr(config, name)}; expected 1 or more.")
    for name in ("dropout", "input_dropout", "attention_dropout"):
        given = getattr(config, name, 0.0)
        if not 0 <= given < 1:
            raise ConfigError(f"Option 'model.{name}' was given {given}; expected at least 0 and below 1.")
    field = spec.inputs[0]
    if len(field.shape) != 3 or min(field.shape) < 0 or field.shape[0] < 1 or field.shape[2] < 1:
        raise ConfigError(
            f"Column '{field.name}' is said to have the shape {field.shape}; graphs need (nodes, edges, numbers of "
            "each node), of which the first and the last are 1 or more. Nodes of which nothing is known get a one, or "
            "their degree, as their number."
        )
    return field
