"""From names and options to the objects that the engine trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from fathom.api.config import GROUPS, EvaluateConfig, Settings, chosen
from fathom.api.past import Past
from fathom.api.transfer import Origin
from fathom.core import catalog, compose
from fathom.core.config import as_dict, build
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.types import Augment, DataSpec
from fathom.data.augment import AugmentConfig
from fathom.data.augment import build as build_augment
from fathom.engine.plan import Plan
from fathom.engine.shard import ABLE

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
    past: Past | None = None,
) -> Assembled:
    """Return model, objective and plan for such data; the model's recipe fills in what the user left open.

    Args:
        data: the complete options by which the data was prepared, to be recorded with the others.
        begun: the trained network to learn on from.
        past: finds what else was trained before, for wrappers that need it.

    Raises:
        ConfigError: an unknown name or option, or a model or objective that cannot take this data.
    """
    entries: dict[str, catalog.Entry | None] = {"model": None, "objective": aim(settings, objective)}
    task_entry = entries["objective"]
    if task_entry is not None:
        _require(task_entry, spec)
        settings = settings.over(_recipe(task_entry, spec, settings))
    name, why = _name(spec, settings, model, task_entry)
    if begun is not None and begun.tensors:
        why = "as its weights ask"
    if name:
        entry, config = chosen("models", {**settings.of("model"), "name": name})
        _require(entry, spec)
        config = getattr(entry.module, "complete", lambda config, spec: config)(config, spec)
        entries["model"] = entry = replace(entry, config=config)
        if begun is not None:
            settings = settings.over(_for(task_entry, fitting(begun.recipe(config, spec), settings)))
        settings = settings.over(_for(task_entry, _recipe(entry, spec, settings)))
    plan = build(Plan, settings.of("engine"), "engine")
    plan = replace(plan, batch_size=min(plan.batch_size, spec.rows)) if spec.rows else plan
    augment_config = build(AugmentConfig, settings.of("augment"), "augment")
    with torch.random.fork_rng():  # the caller's random numbers are the caller's
        torch.manual_seed(plan.seed)
        network = _network(entries["model"], spec, model)
        notes = _fill(entries["model"], network) if begun is None or not begun.tensors else ()
        if begun is not None:
            notes += tuple(begun.into(network))
        if callable(objective):
            task = objective(spec, network)
        else:
            entries["objective"] = task_entry = aim(settings, objective)  # with what the model's recipe says of it
            assert task_entry is not None
            _fits(task_entry, network, name)
            task = compose.build(task_entry, spec, network, past or Past())
    if begun is not None:
        begun.hasten(task, network)
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


def aim(settings: Settings, objective: ObjectiveChoice) -> catalog.Entry | None:
    """Return the catalog's entry of the objective, with its options; None for the user's own."""
    if callable(objective):
        return None
    return compose.chosen({"name": compose.DEFAULT, **settings.of("objective")})


def use_of_targets(settings: Settings, objective: ObjectiveChoice) -> str:
    """Return whether the objective learns from target columns: "needed", "optional" or "unused"."""
    entry = aim(settings, objective)
    return str(getattr(objective if entry is None else entry.module, "TARGET", "needed"))


def preparing(settings: Settings, objective: ObjectiveChoice) -> dict[str, Any]:
    """Return options of preparing that suit the objective, where the user says nothing."""
    entry = aim(settings, objective)
    return dict(getattr(objective if entry is None else entry.module, "PREPARE", {}))


def columns_needed(settings: Settings, objective: ObjectiveChoice) -> str:
    """Return a sentence's beginning that tells what columns the objective needs, "" where any will do."""
    entry = aim(settings, objective)
    needed = getattr(objective if entry is None else entry.module, "COLUMNS", "")
    return f"Objective '{entry.name if entry else objective}' needs {needed}" if needed else ""


def repeats(settings: Settings, objective: ObjectiveChoice) -> Callable[[int, int], int] | None:
    """Return how often a row with a target stands in an epoch, of an objective that also learns from rows without one;
    None of others."""
    entry = aim(settings, objective)
    asked = getattr(objective if entry is None else entry.module, "repeats", None)
    return None if asked is None else partial(asked, entry.config if entry else None)


def _recipe(entry: catalog.Entry, spec: DataSpec, settings: Settings) -> dict[str, Any]:
    """Return the settings that an entry proposes, as far as they fit those given."""
    recipe: Mapping[str, Any] = getattr(entry.module, "recipe", lambda config, spec: {})(entry.config, spec)
    return fitting(recipe, settings)


def _for(task: catalog.Entry | None, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a model's recipe, which speaks of supervised learning, as far as another objective has such options."""
    if task is None:
        return recipe
    return {**recipe, "objective": compose.settings(recipe.get("objective", {}), task)}


def _fits(entry: catalog.Entry, network: nn.Module, name: str) -> None:
    problem = getattr(entry.module, "needs", lambda model: None)(network)
    if problem:
        called = f"'{name}'" if name else type(network).__name__
        raise ConfigError(f"Objective '{entry.name}' cannot train the model {called}: {problem}.")


def _name(spec: DataSpec, settings: Settings, model: ModelChoice, task: catalog.Entry | None) -> tuple[str, str]:
    """Return the name of the model in the catalog ("" for the user's own object), and why it."""
    if model is not None and not isinstance(model, str):
        return "", "given as an object"
    name = settings.of("model").get("name", "auto")
    if name != "auto":
        return str(name), "asked for"
    suggested = getattr(task.module, "suggests", lambda spec: None)(spec) if task else None
    if task and suggested:
        return str(suggested), f"usual for objective '{task.name}'"
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
    """Return the recipe without an optimiser, and the numbers tuned for it, that is not the one asked for or that
    cannot be spread over processes where that is asked for."""
    engine, asked = dict(recipe.get("engine", {})), settings.of("engine")
    proposed = engine.get("optimizer", "adamw")
    if asked.get("optimizer", proposed) != proposed or (asked.get("shard") and proposed not in ABLE):
        engine = {name: value for name, value in engine.items() if name not in OF_THE_OPTIMIZER}
    return {**recipe, "engine": engine}


def _complete(groups: dict[str, dict[str, Any]], entries: Mapping[str, catalog.Entry | None]) -> Settings:
    named = {
        group: {"name": entry.name, **as_dict(entry.config)} for group, entry in entries.items() if entry is not None
    }
    return Settings({group: (groups | named)[group] for group in GROUPS if group in groups | named})
