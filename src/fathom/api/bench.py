"""What the engine's tuner finds on this machine, for a model on real data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fathom.api.assemble import assemble
from fathom.api.config import gather
from fathom.api.past import Past
from fathom.api.prepare import prepare
from fathom.core import catalog
from fathom.core.config import as_dict, build
from fathom.core.errors import ConfigError
from fathom.core.types import TrainingData
from fathom.engine.bench import Measured, measure
from fathom.engine.plan import Plan

SAMPLES = ("fashion", "diamonds", "verses")  # images, a table, texts
MINUTES = 10.0  # of the run whose tuning is shown: the longer, the sooner compiling pays back


def bench(model: str | None = None, source: str | None = None, sets: Iterable[str] = ()) -> dict[str, Any]:
    """Return what a step of a model takes with PyTorch's defaults and as the tuner runs it, and how near that is to
    the machine's limit.

    Args:
        model: a name from `fathom.list_models()`; without it that which suits the data.
        source: data as `fit` takes them; without it the first bundled sample that the model accepts.
        sets: options, such as "engine.batch_size=64".

    Raises:
        ConfigError: the model accepts no bundled sample, or there is none of that name.
    """
    if model is not None:
        catalog.find("models", model)  # names the nearest where there is none
    refused: ConfigError | None = None
    for name in (source,) if source else SAMPLES:
        try:
            found, chosen = _measured(name, model, tuple(sets))
        except ConfigError as error:
            if source or model is None:
                raise
            refused = error
            continue
        return _told(name, chosen, found)
    raise ConfigError(f"Model '{model}' takes none of the bundled samples; name data with --source. {refused}")


def _measured(source: str, model: str | None, sets: tuple[str, ...]) -> tuple[Measured, str]:
    settings = gather({}, {"model": {"name": model}, "engine": {"minutes": MINUTES}}, sets)
    material = prepare(source, None, settings, build(Plan, settings.of("engine"), "engine").seed)
    assembled = assemble(material.preprocess.spec, settings, model, None, material.settings, None, Past(material, None))
    entry = assembled.entries["model"]
    data = TrainingData(train=material.learned, augment=assembled.augment)
    return measure(assembled.objective, data, assembled.plan), entry.name if entry else str(model)


def _told(source: str, model: str, found: Measured) -> dict[str, Any]:
    return {
        "model": model,
        "source": source,
        "batch_size": found.batch_size,
        "plain_ms": found.plain_ms,
        "tuned_ms": found.tuned_ms,
        "gain": found.plain_ms / found.tuned_ms,
        "samples_per_second": found.samples_per_second,
        "settings": as_dict(found.knobs),
        "why": {choice.what: f"{choice.value}: {choice.why}" for choice in found.chosen},
        "gigaflops": found.gigaflops,
        "limit_gigaflops": found.limit,
        "share_of_limit": found.gigaflops / found.limit,
    }


def sentence(row: dict[str, Any]) -> str:
    """Return what `bench` found as lines to read."""
    knobs = row["settings"]
    layout = ", channels last" if knobs["channels_last"] else ""
    threads = f"{knobs['threads']} thread{'s' if knobs['threads'] != 1 else ''}"
    lines = [
        f"{row['model']} on {row['source']}, batches of {row['batch_size']}: {row['samples_per_second']:,.0f} a second",
        f"{row['gain']:.1f}× over PyTorch's defaults ({row['plain_ms']:.3g} ms a step, now {row['tuned_ms']:.3g}): "
        f"{threads}, {knobs['precision']}{layout}, {knobs['form']} steps",
        *(f"  {what}: {why}" for what, why in row["why"].items()),
    ]
    if row["gigaflops"]:
        lines.append(
            f"{row['gigaflops']:,.0f} GFLOP/s, {row['share_of_limit']:.0%} of the {row['limit_gigaflops']:,.0f} that "
            "large matrix products reach here"
        )
    return "\n".join(lines)
