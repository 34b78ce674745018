"""Adversarial training: learn from inputs that were changed, within limits, to be as hard as possible.

    min over weights of the mean of max over δ, |δ| ≤ ε, of L(x + δ, y)

The inner maximum is sought by steps along the sign of the gradient: one of them is the fast gradient sign method
(FGSM), several are projected gradient descent (PGD). The attack sees the network as it predicts (no dropout, running
statistics); what it found is then learned from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.modes import modes_kept
from fathom.core.objective import Objective
from fathom.core.past import Past
from fathom.core.types import Batch, DataSpec, Loss, Stats
from fathom.core.wrapper import Wrapper, scaled

REFERENCE = (
    "Goodfellow, Shlens, Szegedy, Explaining and Harnessing Adversarial Examples, 2015; Madry, Makelov, Schmidt, "
    "Tsipras, Vladu, Towards Deep Learning Models Resistant to Adversarial Attacks, 2018; Wong, Rice, Kolter, Fast Is "
    "Better than Free: Revisiting Adversarial Training, 2020"
)


@dataclass(frozen=True)
class Config:
    epsilon: float = option(8 / 255, "the most that a pixel may change, as a share of its whole range")
    epsilon_number: float = option(0.1, "the most that a number may change, in standard deviations")
    steps: int = option(7, "of the attack; 1: the fast gradient sign method")
    step_size: float = option(0.0, "of a step, as a share of ε; 0: 1.25 for one step, else 2.5 over their number")
    random_start: bool = option(True, "begin each attack anywhere within the limits")
    share: float = option(1.0, "of changed rows in the loss; what remains is the loss of the rows as they are")


presets: dict[str, Config] = {
    "pgd": Config(),
    "fgsm": Config(steps=1),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why rows of such data cannot be attacked, or None."""
    if spec.images or spec.numbers:
        return None
    return "it changes images and numbers; there are none"


def build(config: Config, spec: DataSpec, inner: Objective, past: Past | None = None) -> AdversarialTraining:
    """Return the wrapper.

    Raises:
        ConfigError: an option is out of range.
    """
    at_least(config, {"epsilon": 0, "epsilon_number": 0, "steps": 1, "step_size": 0}, "objective.adversarial_training")
    if not 0 < config.share <= 1:
        raise ConfigError(
            f"Option 'objective.adversarial_training.share' was given {config.share}; expected above 0, at most 1."
        )
    return AdversarialTraining(config, spec, inner)


class AdversarialTraining(Wrapper):
    """The loss of the wrapped objective on attacked rows. Its metrics also say what the attack does."""

    spread: Tensor

    def __init__(self, config: Config, spec: DataSpec, inner: Objective) -> None:
        super().__init__(inner)
        self.config = config
        self.keys = [field.key for field in spec.images] + (["number"] if spec.numbers else [])
        spread = [(field.stats or Stats()).std[0] or 1.0 for field in spec.numbers]
        self.register_buffer("spread", torch.tensor(spread), persistent=False)  # [F]

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        hard = self.inner.losses(self.attack(batch, phase), phase)
        share = self.config.share
        if share == 1:
            return hard
        plain = self.inner.losses(batch, phase)
        both = scaled(hard, share), scaled(plain, 1 - share)
        terms = (*both[0].terms, *both[1].terms)
        return Loss(both[0].total + both[1].total, {"plain": plain.total, "attacked": hard.total}, hard.weight, terms)

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return the wrapped objective's metrics, the first of them as it is learned; and each of attacked rows."""
        plain = self.inner.metrics(batch)
        hard = self.inner.metrics(self.attack(batch, self.phases()[0].name))
        name, first = next(iter(plain.items()))
        found = {name: torch.lerp(first, hard[name], self.config.share)}
        return (
            found
            | {f"plain_{n}" if n == name else n: v for n, v in plain.items()}
            | {f"attacked_{n}": v for n, v in hard.items()}
        )

    def attack(self, batch: Batch, phase: str = "main") -> Batch:
        """Return the batch with its images and numbers changed so that it costs the wrapped objective more."""
        start = {key: batch[key].float() if not batch[key].is_floating_point() else batch[key] for key in self.keys}
        limits = {key: self._limit(key, value) for key, value in start.items()}
        size = self.config.step_size or (1.25 if self.config.steps == 1 else 2.5 / self.config.steps)
        found = dict(start)
        if self.config.random_start:
            found = {
                key: self._bounded(key, x + limits[key] * (2 * torch.rand_like(x) - 1), x) for key, x in start.items()
            }
        with _as_it_predicts(self.inner), torch.enable_grad(), _enough_bits(next(iter(start.values()))):
            for _ in range(self.config.steps):
                asked = {key: value.detach().requires_grad_() for key, value in found.items()}
                total = self.inner.losses(batch | asked, phase).total
                slopes = torch.autograd.grad(total, list(asked.values()), allow_unused=True)
                for (key, value), slope in zip(asked.items(), slopes, strict=True):
                    if slope is not None:
                        moved = value.detach() + size * limits[key] * slope.sign()
                        found[key] = self._bounded(key, moved, start[key])
        return batch | {key: value.detach() for key, value in found.items()}

    def _limit(self, key: str, value: Tensor) -> Tensor:
        """Return how far each value of a column may be moved, in its own unit."""
        if key == "number":
            return self.spread.to(value) * self.config.epsilon_number
        return torch.as_tensor(self.config.epsilon * 255).to(value)

    def _bounded(self, key: str, value: Tensor, start: Tensor) -> Tensor:
        """Return values that are within the limits of where they started, and of a picture between black and white."""
        limit = self._limit(key, start)
        value = torch.minimum(torch.maximum(value, start - limit), start + limit)
        return value if key == "number" else value.clamp(0, 255)


@contextmanager
def _as_it_predicts(module: nn.Module) -> Iterator[None]:
    """While active, the modules are in evaluation mode; afterwards each is in its own again."""
    with modes_kept(module):
        module.eval()
        yield


@contextmanager
def _enough_bits(like: Tensor) -> Iterator[None]:
    """Half precision would round small slopes to zero, which the engine's scale of the loss does not see here."""
    kind = like.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        with torch.autocast(kind, enabled=False):
            yield
    else:
        yield
