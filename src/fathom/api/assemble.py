"""From names and options to the objects that the engine trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import nn

from fathom.api.config import GROUPS, EvaluateConfig, Settings, chosen
from fathom.api.transfer import Origin
from fathom.core import catalog
from fathom.core.config import as_dict, build
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.types import Augment, DataSpec
from fathom.data.augment import AugmentConfig
from fathom.data.augment import build as build_augment
from fathom.engine.plan import Plan

ModelChoice = str | nn.Module | Callable[[DataSpec], nn.Module] | None
ObjectiveChoice = str | Callable[[DataSpec, nn.Module], Objective] | None
OF_THE_OPTIMIZER = ("optimizer", "learning_rate", "weight_decay", "momentum")


@dataclass(frozen=True)
class Assembled:
    """What one run trains, and how.

    Attributes:
        entries: model and objective as the artifact records them; None for an object of the user's own.
        settings: the complete options, which repeat the run.
        why: why this model.
        notes: what became of the weights that it begins with, where those were published.
    """

    objective: Objective
    plan: Plan
    augment: Augment | None
    entries: dict[str, catalog.Entry | None]
    settings: Settings
    why: str
    notes: tuple[str, ...] = ()


def assemble(
    spec: DataSpec,
    settings: Settings,
    model: ModelChoice,
    objective: ObjectiveChoice,
    data: Mapping[str, Mapping[str, Any]] | None = None,
    begun: Origin | None = None,
) -> Assembled:
    """Return model, objective and plan for such data; the model's recipe fills in what the user left open.

    Args:
        data: the complete options by which the data was prepared, to be recorded with the others.
        begun: the trained network to learn on from.

    Raises:
        ConfigError: an unknown name or option, or a model or objective that cannot take this data.
    """
    name, why = _name(spec, settings, model)
    entries: dict[str, catalog.Entry | None] = {"model": None, "objective": None}
    if name:
        entry, config = chosen("models", {**settings.of("model"), "name": name})
        _require(entry, spec)
        config = getattr(entry.module, "complete", lambda config, spec: config)(config, spec)
        entries["model"] = replace(entry, config=config)
        recipe: Mapping[str, Any] = getattr(entry.module, "recipe", lambda config, spec: {})(config, spec)
        settings = settings.over(fitting(recipe, settings))
    plan = build(Plan, settings.of("engine"), "engine")
    augment_config = build(AugmentConfig, settings.of("augment"), "augment")
    with torch.random.fork_rng():  # the caller's random numbers are the caller's
        torch.manual_seed(plan.seed)
        network = _network(entries["model"], spec, model)
        notes = _fill(entries["model"], network)
        if begun is not None:
            notes += tuple(begun.into(network))
        if objective is None or isinstance(objective, str):
            options = {"name": "supervised", **settings.of("objective")}
            entry, config = chosen("objectives", options)
            _require(entry, spec)
            entries["objective"] = replace(entry, config=config)
            task = entry.module.build(config, spec, network)
        else:
            task = objective(spec, network)
    groups = {group: dict(options) for group, options in (data or {}).items()}
    groups |= {"engine": as_dict(plan), "augment": as_dict(augment_config)}
    if begun is not None:
        groups["transfer"] = as_dict(begun.config)
    groups |= {"evaluate": as_dict(build(EvaluateConfig, settings.of("evaluate"), "evaluate"))}
    return Assembled(
        objective=task,
        plan=plan,
        augment=build_augment(spec, augment_config) if spec.images else None,
        entries=entries,
        settings=_complete(groups, entries),
        why=why,
        notes=notes,
    )


def _name(spec: DataSpec, settings: Settings, model: ModelChoice) -> tuple[str, str]:
    """Return the name of the model in the catalog ("" for the user's own object), and why it."""
    if model is not None and not isinstance(model, str):
        return "", "given as an object"
    name = settings.of("model").get("name", "auto")
    if name != "auto":
        return str(name), "asked for"
    return import_module("fathom.models._auto").choose(spec)


def _network(entry: catalog.Entry | None, spec: DataSpec, model: ModelChoice) -> nn.Module:
    if entry is not None:
        return entry.module.build(entry.config, spec)
    network = model if isinstance(model, nn.Module) else model(spec)  # type: ignore[operator, misc]
    if not isinstance(getattr(network, "width", None), int):
        raise ConfigError(
            f"The model {type(network).__name__} has no whole number `width`; set it to the length D of the "
            "features [B, D] that its forward returns as Features(pooled=…)."
        )
    return network


def _fill(entry: catalog.Entry | None, network: nn.Module) -> tuple[str, ...]:
    """Put the weights into a model of another library that it has there, and return what was said of them."""
    fill = getattr(entry.module, "fill", None) if entry else None
    return tuple(fill(network, entry.config)) if fill and entry else ()


def _require(entry: catalog.Entry, spec: DataSpec) -> None:
    problem = entry.module.accepts(spec)
    if problem:
        raise ConfigError(
            f"{catalog.SINGULAR[entry.room].capitalize()} '{entry.name}' cannot take this data: {problem}."
        )


def fitting(recipe: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the recipe without the numbers that were tuned for an optimiser other than the one asked for."""
    engine = dict(recipe.get("engine", {}))
    if settings.of("engine").get("optimizer", engine.get("optimizer", "adamw")) != engine.get("optimizer", "adamw"):
        engine = {name: value for name, value in engine.items() if name not in OF_THE_OPTIMIZER}
    return {**recipe, "engine": engine}


def _complete(groups: dict[str, dict[str, Any]], entries: Mapping[str, catalog.Entry | None]) -> Settings:
    named = {
        group: {"name": entry.name, **as_dict(entry.config)} for group, entry in entries.items() if entry is not None
    }
    return Settings({group: (groups | named)[group] for group in GROUPS if group in groups | named})
