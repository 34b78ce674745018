"""Rules as text: "coat -> not sandal" -> a formula.

rule  = side [ ("->" | "<->") rule ]       side = all { "or" all }        all = one { "and" one }
one   = "not" one | "(" rule ")" | name [ "=" name ]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fathom.core.errors import ConfigError, did_you_mean
from fathom.core.types import Field

TOKEN = re.compile(
    r"""\s*(?:(?P<sign><->|<=>|↔|->|=>|→|[()=&|!~¬∧∨])|"(?P<double>[^"]*)"|'(?P<single>[^']*)'"""
    r"""|(?P<word>(?:(?!->|<->)[^\s()"'=<>&|!~¬∧∨→↔])+))"""
)
SIGNS = {"<=>": "<->", "↔": "<->", "=>": "->", "→": "->", "&": "and", "∧": "and", "|": "or", "∨": "or"}
SIGNS |= {"!": "not", "~": "not", "¬": "not"}
WORDS = ("not", "and", "or")
DEEPEST = 50  # parentheses and negations within one another


@dataclass(frozen=True)
class Atom:
    """A target has a class."""

    target: str
    code: int


@dataclass(frozen=True)
class Joined:
    """Formulas joined by "not" (one), "and", "or", "->" or "<->" (two)."""

    sign: str
    parts: tuple[Formula, ...]


Formula = Atom | Joined


def parse(text: str, targets: Sequence[Field]) -> Formula:
    """Return the formula that a rule stands for.

    Args:
        targets: of categories, whose classes it may name.

    Raises:
        ConfigError: it cannot be read, or names a class that there is not; the message tells where.
    """
    return _Reader(text, targets).read()


def atoms(formula: Formula) -> Iterator[Atom]:
    """Yield what a formula speaks of."""
    if isinstance(formula, Atom):
        yield formula
    else:
        for part in formula.parts:
            yield from atoms(part)


class _Reader:
    """Reads a rule from left to right."""

    def __init__(self, text: str, targets: Sequence[Field]) -> None:
        self.text, self.targets, self.position, self.depth = text, targets, 0, 0

    def read(self) -> Formula:
        found = self._rule()
        if self.text[self.position :].strip():
            raise self._unreadable("what follows is left over")
        return found

    def _rule(self) -> Formula:
        self._deeper()
        left = self._joined("or")
        for sign in ("->", "<->"):
            if self._take(sign):
                left = Joined(sign, (left, self._rule()))
        self.depth -= 1
        return left

    def _joined(self, sign: str) -> Formula:
        part = self._one if sign == "and" else lambda: self._joined("and")
        left = part()
        while self._take(sign):
            left = Joined(sign, (left, part()))
        return left

    def _one(self) -> Formula:
        if self._take("not"):
            self._deeper()
            found: Formula = Joined("not", (self._one(),))
            self.depth -= 1
            return found
        if self._take("("):
            found = self._rule()
            if not self._take(")"):
                raise self._unreadable("')' is expected")
            return found
        first = self._name()
        return self._atom(first, self._name() if self._take("=") else None)

    def _atom(self, first: str, second: str | None) -> Atom:
        if second is not None:
            target = next((each for each in self.targets if each.name == first), None)
            if target is None:
                raise self._unknown("target with classes", first, [each.name for each in self.targets])
            if second not in target.classes:
                raise self._unknown(f"class of '{first}'", second, target.classes)
            return Atom(first, target.classes.index(second))
        holders = [target for target in self.targets if first in target.classes]
        if not holders:
            raise self._unknown("class", first, [name for target in self.targets for name in target.classes])
        if len(holders) > 1:
            raise ConfigError(
                f"In the rule '{self.text}', '{first}' is a class of '{holders[0].name}' and of '{holders[1].name}'; "
                f"write {holders[0].name}={first}."
            )
        return Atom(holders[0].name, holders[0].classes.index(first))

    def _name(self) -> str:
        found = TOKEN.match(self.text, self.position)
        named = None if found is None else found["double"] or found["single"] or found["word"]
        if found is None or not named or (found["word"] and named.lower() in WORDS):
            raise self._unreadable("the name of a class is expected")
        self.position = found.end()
        return named

    def _take(self, sign: str) -> bool:
        found = TOKEN.match(self.text, self.position)
        given = None if found is None else found["sign"] or (found["word"] or "").lower()
        if found is None or SIGNS.get(given or "", given) != sign:
            return False
        self.position = found.end()
        return True

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self._unreadable(f"more than {DEEPEST} parts stand within one another")

    def _unreadable(self, why: str) -> ConfigError:
        rest = self.text[self.position :].strip()
        where = f"at '{rest[:20]}'" if rest else "at its end"
        return ConfigError(
            f"The rule '{self.text[:100]}' cannot be read {where}: {why}; a rule is written as in coat -> not sandal."
        )

    def _unknown(self, what: str, given: str, known: Sequence[str]) -> ConfigError:
        return ConfigError(
            f"The rule '{self.text}' names '{given}'; there is no such {what}.{did_you_mean(given, known)}"
        )
