"""Objectives by name, alone and together.

    supervised                     one objective
    supervised+0.5*contrast        a weighted sum
    mixup(supervised)              a wrapper around one: how it is learned changes, what it is does not
    sam(mixup(supervised)+0.1*contrast)

A wrapper alone, `mixup`, stands around `supervised`. Options of a part stand under its name,
`objective.mixup.alpha=0.4`, in TOML `[objective.mixup]`; where only one name is written they may also stand without it,
`objective.alpha=0.4`. What a name stands for is an entry of the catalog, whose `config` is a dataclass with a field for
each part, and whose `module` has what a file of `objectives/` has.

find       a name -> its entry
chosen     a name with options -> its entry, with those options in its config
build      an entry -> the objective to train, or, without what came before, the one that is kept
settings   what a recipe proposes, put where this entry has it
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from fathom.core import catalog, config
from fathom.core.errors import ConfigError, did_you_mean
from fathom.core.types import DataSpec

if TYPE_CHECKING:
    from torch import nn

    from fathom.core.objective import Objective
    from fathom.core.past import Past

DEFAULT = "supervised"  # what is trained for where nothing is said, and what a wrapper alone stands around
LONGEST = 500  # characters of a name
TOKEN = re.compile(r"\s*(?:(?P<number>\d*\.?\d+(?:[eE][+-]?\d+)?|\d+\.)|(?P<name>[A-Za-z_]\w*)|(?P<sign>[-+*()]))")
HOW = "a combination is written as in supervised+0.5*contrast or mixup(supervised)"


@dataclass(frozen=True)
class Leaf:
    """An objective of the catalog."""

    name: str

    @property
    def label(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Wrapped:
    """A wrapper around what it holds."""

    name: str
    inner: Node

    @property
    def label(self) -> str:
        return self.inner.label

    def __str__(self) -> str:
        return f"{self.name}({self.inner})"


@dataclass(frozen=True)
class Summed:
    """Parts that are added, each with its weight."""

    parts: tuple[tuple[float, Leaf | Wrapped], ...]

    @property
    def label(self) -> str:
        return "+".join(part.label for _, part in self.parts)

    def __str__(self) -> str:
        return "+".join(f"{part}" if weight == 1 else f"{weight:.12g}*{part}" for weight, part in self.parts)


Node = Leaf | Wrapped | Summed


def find(name: str) -> catalog.Entry:
    """Return the entry that a name, or a combination of names, stands for.

    Raises:
        ConfigError: it cannot be read, or names what there is not; the message tells where, and the nearest name.
    """
    tree = parse(name)
    if isinstance(tree, Leaf):
        return catalog.find("objectives", tree.name)
    parts = {each.name: catalog.find(_room(each), each.name) for each in _named(tree)}
    fields = [(each, type(entry.config), entry.config) for each, entry in parts.items()]
    options = dataclasses.make_dataclass("Config", fields, frozen=True)
    return catalog.Entry("objectives", str(tree), cast(Any, Combination(tree, parts)), options())


def chosen(options: Mapping[str, Any]) -> catalog.Entry:
    """Return the entry that `options["name"]` stands for, with the other options in its config.

    Raises:
        ConfigError: also for an option that no part has, or that stands beside the parts' names.
    """
    written, rest = str(options["name"]), {key: value for key, value in options.items() if key != "name"}
    entry = find(written)
    known, alone = config.as_dict(entry.config), written.strip()
    if not isinstance(entry.module, Combination):
        rest = _without_name(rest, alone, known)
        return replace(entry, config=config.build(type(entry.config), {**known, **rest}, "objective"))
    # Of an option that is called as its part is, what is no group of options is the option.
    own = {
        key
        for key, value in rest.items()
        if key == alone and key in known.get(key, {}) and not isinstance(value, Mapping)
    }
    plain = {key: value for key, value in rest.items() if key not in known or key in own}
    nested = {key: value for key, value in rest.items() if key in known and key not in own}
    if plain and alone not in known:
        raise ConfigError(_misplaced(next(iter(plain)), entry))
    if plain:  # one name is written, and these are its options
        nested[alone] = {**plain, **_group(nested.get(alone, {}), alone)}
    values = {key: {**known[key], **_group(nested.get(key, {}), key)} for key in known}
    return replace(entry, config=config.build(type(entry.config), values, "objective"))


def build(entry: catalog.Entry, spec: DataSpec, model: nn.Module, past: Past | None = None) -> Objective:
    """Return the objective that an entry stands for, around a model.

    Args:
        past: what was trained before, for wrappers that need it. Without it wrappers are left out: what remains is
            what is kept of a trained objective, `Objective.kept`.
    """
    if isinstance(entry.module, Combination):
        return entry.module.build(entry.config, spec, model, past)
    return entry.module.build(entry.config, spec, model)


def settings(proposed: Mapping[str, Any], entry: catalog.Entry) -> dict[str, Any]:
    """Return the options of `objective` that a model's recipe proposes, as far as the entry has them, where it does."""
    known = config.as_dict(entry.config)
    if not isinstance(entry.module, Combination):
        return {key: value for key, value in proposed.items() if key in known}
    fits = {part: {k: v for k, v in proposed.items() if k in options} for part, options in known.items()}
    return {part: options for part, options in fits.items() if options}


class Combination:
    """What a file of `objectives/` has, of several of them together."""

    def __init__(self, tree: Node, parts: Mapping[str, catalog.Entry]) -> None:
        self.tree, self.parts = tree, parts
        self.REFERENCE = "; ".join(entry.module.REFERENCE for entry in parts.values())
        self.presets: dict[str, Any] = {}

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        return tuple(each.name for each in _named(self.tree) if isinstance(each, Leaf))

    @property
    def TARGET(self) -> str:  # noqa: N802
        """Whether targets are learned from: as much as the part that needs them most."""
        uses = {_use(self.parts[leaf]) for leaf in self.leaves}
        return next(use for use in ("needed", "optional", "unused") if use in uses)

    @property
    def PREPARE(self) -> dict[str, Any]:  # noqa: N802
        """Options of preparing that suit the parts; where they differ, the first."""
        found: dict[str, Any] = {}
        for leaf in self.leaves:
            found = {**getattr(self.parts[leaf].module, "PREPARE", {}), **found}
        return found

    def accepts(self, spec: DataSpec) -> str | None:
        """Return why some part cannot learn from such data, or None."""
        for name, entry in self.parts.items():
            problem = entry.module.accepts(_seen(spec, entry))
            if problem:
                return f"of '{name}', {problem}"
        return self._gaps(spec)

    def _gaps(self, spec: DataSpec) -> str | None:
        """Return which part cannot learn beside one that learns from rows without a target, or None."""
        counts = [sum(target.counts) for target in spec.targets if target.kind == "category" and target.counts]
        if self.repeats is None or not counts or max(counts) >= spec.rows:
            return None
        for each in _named(self.tree, lambda name: self._asked(name) is None):
            entry = self.parts[each.name]
            if isinstance(each, Leaf) and _use(entry) != "unused" and self._asked(each.name) is None:
                missing = f"{spec.rows - max(counts):,} of {spec.rows:,} rows have no '{spec.targets[0].name}'"
                return f"of '{each.name}', it learns from every row's target, and {missing}: leave it out of the sum"
        return None

    def _asked(self, name: str) -> Any:
        """Return how a part has it how often rows with a target stand: it learns from those without; None of others."""
        return getattr(self.parts[name].module, "repeats", None)

    def needs(self, model: nn.Module) -> str | None:
        """Return why some part cannot train this model, or None."""
        for leaf in self.leaves:
            problem = getattr(self.parts[leaf].module, "needs", lambda model: None)(model)
            if problem:
                return f"of '{leaf}', {problem}"
        return None

    def suggests(self, spec: DataSpec) -> str | None:
        """Return the model that the first part with a wish wishes for."""
        wishes = (getattr(self.parts[leaf].module, "suggests", lambda spec: None)(spec) for leaf in self.leaves)
        return next(filter(None, wishes), None)

    def recipe(self, options: Any, spec: DataSpec) -> dict[str, Any]:
        """Return what the parts propose; where they differ, what the first of them does."""
        found: dict[str, dict[str, Any]] = {}
        for name, entry in self.parts.items():
            ask = getattr(entry.module, "recipe", None)
            proposed: dict[str, Any] = ask(getattr(options, name), spec) if ask else {}
            for group, values in proposed.items():
                under = {name: values} if group == "objective" else values
                found[group] = {**under, **found.get(group, {})}
        return found

    @property
    def repeats(self) -> Any:
        """How often a row with a target stands in an epoch, as the first part has it that learns without; or None."""
        for name in self.parts:
            if asked := self._asked(name):
                return lambda options, *rows: asked(getattr(options, name), *rows)
        return None

    def build(self, options: Any, spec: DataSpec, model: nn.Module, past: Past | None = None) -> Objective:
        """Return the objective, without its wrappers where there is no `past`."""
        return self._built(self.tree, options, spec, model, past)

    def _built(self, node: Node, options: Any, spec: DataSpec, model: nn.Module, past: Past | None) -> Objective:
        if isinstance(node, Leaf):
            entry = self.parts[node.name]
            return entry.module.build(getattr(options, node.name), _seen(spec, entry), model)
        if isinstance(node, Wrapped):
            inner = self._built(node.inner, options, spec, model, past)
            return inner if past is None else self._around(inner, node, options, spec, past)
        parts = [(each.label, weight, self._built(each, options, spec, model, past)) for weight, each in node.parts]
        return import_module("fathom.objectives._sum").Sum(model, spec, parts)

    def _around(self, inner: Objective, node: Wrapped, options: Any, spec: DataSpec, past: Past) -> Objective:
        module = self.parts[node.name].module
        problem = getattr(module, "needs", lambda inner: None)(inner)
        if problem:
            raise ConfigError(f"Wrapper '{node.name}' cannot stand around '{node.inner}': {problem}.")
        return module.build(getattr(options, node.name), spec, inner, past)


def parse(text: str) -> Node:
    """Return what a combination of names means.

    Raises:
        ConfigError: it cannot be read; the message tells where.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"The objective's name has {len(text):,} characters; a combination has at most {LONGEST}.")
    return _Reader(text).read()


class _Reader:
    """Reads a combination from left to right.

    sum  = part { "+" part }        part = [ number "*" ] ( name | name "(" sum ")" )
    """

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self.seen: set[str] = set()

    def read(self) -> Node:
        found = self._sum()
        if self._ahead():
            raise self._unreadable("what follows is left over")
        return found

    def _sum(self) -> Node:
        parts = [self._part()]
        while self._take("+"):
            parts.append(self._part())
        return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else Summed(tuple(parts))

    def _part(self) -> tuple[float, Leaf | Wrapped]:
        weight, found = 1.0, self._match()
        if found is not None and found["number"]:
            weight = float(found["number"])
            if not (0 < weight < math.inf):
                raise self._unreadable("a weight is a number above 0")
            self.position = found.end()
            if not self._take("*"):
                raise self._unreadable("'*' is expected between a weight and its part")
            found = self._match()
        if found is None or not found["name"]:
            raise self._unreadable("the name of an objective or wrapper is expected")
        name = found["name"]
        self._check(name, self.text[found.end() :].lstrip().startswith("("))
        self.position = found.end()
        if not self._take("("):
            if name in catalog.names("objectives"):
                return weight, Leaf(name)
            self._check(DEFAULT, False)
            return weight, Wrapped(name, Leaf(DEFAULT))
        inner = self._sum()
        if not self._take(")"):
            raise self._unreadable("')' is expected")
        return weight, Wrapped(name, inner)

    def _check(self, name: str, holds: bool) -> None:
        """Refuse a name that does not exist, that stands where it cannot, or that was given before."""
        objectives, wrappers = catalog.names("objectives"), catalog.names("wrappers")
        if name not in (wrappers if holds else {**objectives, **wrappers}):
            if holds and name in objectives:
                raise ConfigError(
                    f"'{name}' is an objective and holds no other, as in '{self.text}'; what does is a wrapper: "
                    f"{', '.join(wrappers)}."
                )
            kind, known = ("wrapper", wrappers) if holds else ("objective", {**objectives, **wrappers})
            raise ConfigError(f"There is no {kind} '{name}'.{did_you_mean(name, known)}")
        if name in self.seen:
            raise ConfigError(f"'{self.text}' names '{name}' twice, and its options could not be told apart.")
        self.seen.add(name)

    def _match(self) -> re.Match[str] | None:
        return TOKEN.match(self.text, self.position)

    def _ahead(self) -> str:
        return self.text[self.position :].strip()

    def _take(self, sign: str) -> bool:
        found = self._match()
        if found is None or found["sign"] != sign:
            return False
        self.position = found.end()
        return True

    def _unreadable(self, why: str) -> ConfigError:
        rest = self._ahead()
        where = f"at '{rest[:20]}'" if rest else "at its end"
        return ConfigError(f"The objective '{self.text}' cannot be read {where}: {why}; {HOW}.")


def _named(node: Node, within: Callable[[str], bool] = lambda name: True) -> Iterator[Leaf | Wrapped]:
    """Yield every part that has a name, from the outside in and from left to right; of wrappers `within` names."""
    if isinstance(node, Summed):
        for _, part in node.parts:
            yield from _named(part, within)
        return
    yield node
    if isinstance(node, Wrapped) and within(node.name):
        yield from _named(node.inner, within)


def _room(node: Leaf | Wrapped) -> str:
    return "objectives" if isinstance(node, Leaf) else "wrappers"


def _use(entry: catalog.Entry) -> str:
    return str(getattr(entry.module, "TARGET", "needed"))


def _seen(spec: DataSpec, entry: catalog.Entry) -> DataSpec:
    """Return the data as a part sees it: without targets where it does not learn from any."""
    unused = entry.room == "objectives" and _use(entry) == "unused"
    return replace(spec, targets=()) if unused else spec


def _group(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"'objective.{name}' is a group of options: set one of them, as in objective.{name}.NAME=…")
    return value


def _without_name(options: dict[str, Any], name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an objective that stands alone, of which some may be given under its name."""
    if name in known or not isinstance(options.get(name), Mapping):
        return options
    return {**{key: value for key, value in options.items() if key != name}, **options[name]}


def _misplaced(option: str, entry: catalog.Entry) -> str:
    parts = {f.name: f.default for f in dataclasses.fields(entry.config)}
    holders = [name for name, options in parts.items() if option in config.as_dict(options)]
    if holders:
        return f"Of '{entry.name}', options stand under the part that has them: objective.{holders[0]}.{option}."
    return f"'{entry.name}' has no part '{option}', of which an option could be set.{did_you_mean(option, parts)}"
