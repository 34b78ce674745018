"""The bundled samples: real data that a user can name.

A sample is three files in `fathom/samples`: NAME.parquet, NAME.LICENCE.txt and NAME.toml (title, description, target,
rows, licence, source, and where they apply inputs and split). There is no list to keep: the folder is the list. Nothing
here needs polars.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from fathom.core.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parent.parent / "samples"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One bundled data set.

    Attributes:
        target: the columns that are predicted unless the user says otherwise.
        inputs: the columns to predict from, or () for all others.
        split: the column that says which rows are for training and which for testing, or None.
        licence, source: in a few words; the whole notice stands in the file `notice`.
    """

    name: str
    path: Path
    title: str
    target: tuple[str, ...]
    rows: int
    licence: str
    source: str
    inputs: tuple[str, ...] = ()
    split: str | None = None
    description: str = ""

    @property
    def notice(self) -> Path:
        return self.path.with_name(f"{self.name}.LICENCE.txt")


def names() -> tuple[str, ...]:
    """Names of the bundled samples, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def find(name: str) -> Sample:
    """Return the sample of that name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name not in names():
        raise ConfigError(f"There is no sample '{name}'.{did_you_mean(name, names())}")
    told = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return Sample(
        name=name,
        path=FOLDER / f"{name}.parquet",
        title=told["title"],
        target=tuple(told["target"]),
        rows=told["rows"],
        licence=told["licence"],
        source=told["source"],
        inputs=tuple(told.get("inputs", ())),
        split=told.get("split"),
        description=told.get("description", ""),
    )
