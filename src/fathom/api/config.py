"""The configuration of a run: what `fit(...)`, `--config` and `--set` say, laid over one another.

From weakest to strongest: the defaults of each room, a bundled sample's own settings, the model's recipe, the
`--config` file, the arguments, `--set`. The complete result is written beside the model as `config.toml`; a run
started from that file repeats this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fathom.core import catalog
from fathom.core.config import as_dict, build, option, override
from fathom.core.errors import ConfigError, did_you_mean

GROUPS = ("data", "split", "prepare", "augment", "transfer", "model", "objective", "engine", "evaluate")


@dataclass(frozen=True)
class DataConfig:
    """What of the source is learned from."""

    source: str = option("", "path of a table or folder, or the name of a bundled sample")
    test: str = option("", "path of a table or folder to test on; otherwise rows of the source are kept back")
    target: tuple[str, ...] = option((), "columns to predict")
    inputs: tuple[str, ...] = option((), "columns to predict from; all others where empty")
    drop: tuple[str, ...] = option((), "columns to leave out")
    kinds: dict[str, str] = field(default_factory=dict, metadata={"help": "kinds of columns, where inference errs"})


@dataclass(frozen=True)
class EvaluateConfig:
    """What is measured after training."""

    baselines: bool = option(True, "train simple methods on the same rows, to compare with")
    baseline_seconds: float = option(60.0, "about how long they may take, all together")


@dataclass(frozen=True)
class Settings:
    """Options in named groups, as a TOML file holds them."""

    groups: dict[str, dict[str, Any]]

    def over(self, weaker: Mapping[str, Mapping[str, Any]]) -> Settings:
        """Return these settings, completed by `weaker` ones wherever these say nothing."""
        names = [name for name in GROUPS if name in self.groups or name in weaker]
        return Settings({name: _completed(self.groups.get(name, {}), weaker.get(name, {})) for name in names})

    def of(self, group: str) -> dict[str, Any]:
        return self.groups.get(group, {})


def gather(file: Mapping[str, Any], arguments: Mapping[str, Mapping[str, Any]], sets: Iterable[str]) -> Settings:
    """Return what the user asked for: a config file's values, under arguments (None: not given), under `--set`.

    Raises:
        ConfigError: a group of options that does not exist, or a value where a group is expected.
    """
    given = {group: {k: v for k, v in options.items() if v is not None} for group, options in arguments.items()}
    return Settings(_checked(override(Settings(given).over(_checked(file)).groups, sets)))


def chosen(room: str, options: Mapping[str, Any]) -> tuple[catalog.Entry, Any]:
    """Return the catalog's entry that `options["name"]` names, and its configuration with the other options."""
    rest = {key: value for key, value in options.items() if key != "name"}
    entry = catalog.find(room, str(options["name"]))
    return entry, build(type(entry.config), {**as_dict(entry.config), **rest}, catalog.SINGULAR[room])


def _completed(strong: Mapping[str, Any], weak: Mapping[str, Any]) -> dict[str, Any]:
    """Return `strong` with what only `weak` says, in groups within them too."""
    both = {key for key in strong if isinstance(strong[key], Mapping) and isinstance(weak.get(key), Mapping)}
    return {**weak, **strong, **{key: _completed(strong[key], weak[key]) for key in both}}


def _checked(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    for group, options in values.items():
        if group not in GROUPS:
            raise ConfigError(f"There is no group of options '{group}'.{did_you_mean(group, GROUPS)}")
        if not isinstance(options, Mapping):
            raise ConfigError(f"'{group}' is a group of options: set one of them, as in {group}.name=value.")
    groups = {group: dict(options) for group, options in values.items()}
    for name in ("target", "inputs", "drop"):  # one column may be given as plain text
        if isinstance(groups.get("data", {}).get(name), str):
            groups["data"][name] = [groups["data"][name]]
    return groups
