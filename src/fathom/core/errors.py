"""Every error a user can meet, as one tree.

    FathomError
    ├── ConfigError     an option, name or value that cannot be used
    ├── DataError       a source, row, column or cell that cannot be read or learned from
    ├── TrainingError   a run that cannot go on (not-a-number, out of memory, disk full)
    └── ArtifactError   a model folder that is damaged, hostile or of another version

A message is one sentence: what was given, what was expected, how to mend it. An invariant of our own
code is an `assert`, never one of these.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class FathomError(Exception):
    """The root. The command line prints it as one line and exits with 2."""


class ConfigError(FathomError):
    """An option, name or value that cannot be used."""


class DataError(FathomError):
    """A source, row, column or cell that cannot be read or learned from."""


class TrainingError(FathomError):
    """A run that cannot go on."""


class ArtifactError(FathomError):
    """A model folder that is damaged, hostile or of another version."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, else the names themselves (at most twelve)."""
    names = list(known)
    lowered = {name.lower(): name for name in names}
    close = get_close_matches(given.lower(), lowered, n=1, cutoff=0.5)
    if close:
        return f" Did you mean '{lowered[close[0]]}'?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f" Known: {shown}."
