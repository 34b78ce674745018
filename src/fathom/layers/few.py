"""What all share that learn from few rows with a target, and many images without: how often, and by what views."""

from __future__ import annotations

from typing import Protocol

from fathom.core.config import at_least, below_one
from fathom.core.errors import ConfigError
from fathom.layers.views import Views


class Few(Protocol):
    """Options: rows without a target for each with one in a batch, and how strongly views are changed."""

    @property
    def unlabelled(self) -> float: ...
    @property
    def crop(self) -> float: ...
    @property
    def jitter(self) -> float: ...
    @property
    def turn(self) -> float: ...
    @property
    def shear(self) -> float: ...
    @property
    def erase(self) -> float: ...


def repeats(config: Few, labelled: int, rows: int) -> int:
    """Return how often a row with a target stands in an epoch."""
    return max(1, round((rows - labelled) / (config.unlabelled * labelled))) if labelled else 1


def refuse(config: Few, where: str) -> None:
    """Refuse options out of range.

    Raises:
        ConfigError: naming the option under `where`, what was given and what it may be.
    """
    floors = {"unlabelled": 0.01, "crop": 0.01, "jitter": 0, "erase": 0, "turn": 0, "shear": 0}
    at_least(config, floors, where)
    below_one(config, "erase", where=where)
    if config.crop > 1:
        raise ConfigError(f"Option '{where}.crop' was given {config.crop}; expected a share up to 1.")


def strong(config: Few) -> Views:
    """Return strongly changed views."""
    return Views(
        (config.crop, 1.0),
        flip=0.0,
        turn=config.turn,
        shear=config.shear,
        jitter=config.jitter,
        grey=0.0,
        erase=config.erase,
    )
