"""Column names made fit for use: stripped, never empty, all different, no patterns; every change is told."""

from __future__ import annotations

from collections.abc import Sequence


def tidy(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names as they are used from here on, and what there is to say about them."""
    result: list[str] = []
    notes: list[str] = []
    given = {" ".join(name.split()) for name in names}
    for place, name in enumerate(names, 1):
        fit = " ".join(name.split())
        if fit == "*" or (fit.startswith("^") and fit.endswith("$")):  # polars takes such names for patterns
            fit = fit.strip("^$*")
        if not fit:
            fit = _free(f"column_{place}", given.union(result))
            notes.append(f"Column {place} has no name; it is called '{fit}'.")
        elif fit in result:
            fit = _free(f"{fit}_2", given.union(result))
            notes.append(f"Column {place} has the name of another, '{name.strip()}'; it is called '{fit}'.")
        elif fit != name:
            notes.append(f"Column {place}, {name!r}, is called '{fit}'.")
        result.append(fit)
    return result, notes


def _free(name: str, taken: set[str]) -> str:
    """Return `name`, or with the next number at its end that is not taken."""
    stem, _, number = name.rpartition("_")
    count = int(number)
    while f"{stem}_{count}" in taken:
        count += 1
    return f"{stem}_{count}"
