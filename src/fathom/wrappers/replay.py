"""Replay: rows of earlier training are learned again among the new ones, so that they are not forgotten.

Of each earlier source some rows are remembered, evenly spread through it; each step draws from them at random. They are
prepared as the new rows are, and their targets must have the same classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.past import Past
from fathom.core.types import Batch, DataSpec, Loss, Store
from fathom.core.wrapper import Wrapper

REFERENCE = (
    "Ratcliff, Connectionist Models of Recognition Memory: Constraints Imposed by Learning and Forgetting Functions, "
    "1990; Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019"
)


@dataclass(frozen=True)
class Config:
    earlier: tuple[str, ...] = option((), "folders of models whose rows are replayed; empty: the one of --from")
    data: tuple[str, ...] = option((), "sources of rows to replay, in place of those that models were trained on")
    rows: int = option(500, "remembered of each source")
    share: float = option(0.5, "of the rows of a step that are replayed")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why this wrapper cannot take such data: it takes any."""
    return None


def build(config: Config, spec: DataSpec, inner: Objective, past: Past | None = None) -> Replay:
    """Return the wrapper.

    Raises:
        ConfigError: nothing names what is to be replayed, or an option is out of range.
    """
    at_least(config, {"rows": 1}, "objective.replay")
    if not 0 < config.share < 1:
        raise ConfigError(f"Option 'objective.replay.share' was given {config.share}; expected between 0 and 1.")
    folders = config.earlier or ((past.begun,) if past and past.begun and not config.data else ())
    if past is None or not (folders or config.data):
        raise ConfigError(
            "Wrapper 'replay' learns earlier rows again; name them with objective.replay.data, or the models that were "
            "trained on them with --from or objective.replay.earlier."
        )
    stores = [past.rows(folder, "", "objective.replay.earlier", own=False) for folder in folders]
    stores += [past.rows("", source, "objective.replay.data", own=False) for source in config.data]
    return Replay(config, inner, stores)


class Replay(Wrapper):
    """The loss of the wrapped objective on new rows and remembered ones together."""

    soft_targets = False  # type: ignore[assignment]  # remembered targets are classes: mixtures are made within

    def __init__(self, config: Config, inner: Objective, stores: list[Store]) -> None:
        super().__init__(inner)
        self.share = config.share
        kept = [store.gather(torch.arange(n := min(config.rows, len(store))) * len(store) // n) for store in stores]
        self.memory: Batch = {key: torch.cat([rows[key] for rows in kept]) for key in kept[0]}  # had again on resuming

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        size = len(next(iter(batch.values())))
        count = max(1, round(size * self.share / (1 - self.share)))
        chosen = torch.randint(len(next(iter(self.memory.values()))), (count,))
        old = {key: value[chosen].to(batch[key]) for key, value in self.memory.items() if key in batch}
        return self.inner.losses(
            {key: torch.cat([value, old[key]]) for key, value in batch.items() if key in old}, phase
        )
