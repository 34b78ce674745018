"""Sharpness-aware minimisation: weights move by the gradient taken where the loss is worst nearby.

    w ← w − η · ∇L(w + ρ · g / ‖g‖),   g = ∇L(w)

Each step costs two gradients. Minima that it finds are flat, and often generalise better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fathom.core.config import option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.past import Past
from fathom.core.types import Batch, DataSpec, Loss, Phase
from fathom.core.wrapper import Wrapper

REFERENCE = (
    "Foret, Kleiner, Mobahi, Neyshabur, Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021"
)


@dataclass(frozen=True)
class Config:
    radius: float = option(0.05, "how far up the gradient the loss is looked at, ρ: a 2-norm over all weights")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why this wrapper cannot take such data: it takes any."""
    return None


def build(config: Config, spec: DataSpec, inner: Objective, past: Past | None = None) -> SAM:
    if not config.radius > 0:
        raise ConfigError(f"Option 'objective.sam.radius' was given {config.radius}; expected a number above 0.")
    return SAM(config, inner)


class SAM(Wrapper):
    """The same losses; the engine takes their gradient twice in each step."""

    def __init__(self, config: Config, inner: Objective) -> None:
        super().__init__(inner)
        self.radius = config.radius

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        return self.inner.losses(batch, phase)

    def phases(self) -> tuple[Phase, ...]:
        return tuple(replace(phase, climb=self.radius) for phase in self.inner.phases())
