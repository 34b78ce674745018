"""Elastic weight consolidation: learn something new, and move least the weights that older knowledge depends on.

    L + λ / 2 · Σᵢ Fᵢ · (θᵢ − θᵢ*)²

θ* are the weights of an earlier model and F the diagonal of its Fisher information on its own rows: how much what it
predicts changes with each weight. Several earlier models add up: Σₖ Fₖ (θ − θₖ*)² is, but for a constant, one such
term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.past import Past, Trained
from fathom.core.types import Batch, DataSpec, Loss, Store
from fathom.core.wrapper import Wrapper, plus

REFERENCE = "Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017"


@dataclass(frozen=True)
class Config:
    earlier: tuple[str, ...] = option((), "folders of models whose knowledge is held; empty: the one of --from")
    data: tuple[str, ...] = option((), "their rows, one source each; empty: those that each was trained on")
    strength: float = option(1000.0, "λ, by which the pull towards earlier weights counts")
    rows: int = option(500, "of each source, from which Fisher's information is taken")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why this wrapper cannot take such data: it takes any."""
    return None


def build(config: Config, spec: DataSpec, inner: Objective, past: Past | None = None) -> EWC:
    """Return the wrapper, around an objective that begins where the last of the earlier models ended.

    Raises:
        ConfigError: there is no earlier model, or it shares no weight with the present one.
    """
    at_least(config, {"strength": 0, "rows": 1}, "objective.ewc")
    folders = config.earlier or ((past.begun,) if past and past.begun else ())
    if past is None or not folders:
        raise ConfigError(
            "Wrapper 'ewc' holds what an earlier model knows; name it with --from or objective.ewc.earlier."
        )
    if config.data and len(config.data) != len(folders):
        raise ConfigError(
            f"Option 'objective.ewc.data' was given {len(config.data)} sources for {len(folders)} earlier models; "
            "expected one for each, or none."
        )
    wrapper = EWC(config, inner)
    for folder, source in zip(folders, config.data or ("",) * len(folders), strict=True):
        earlier = past.model(folder, "objective.ewc.earlier")
        wrapper.hold(earlier, past.rows(folder, source, "objective.ewc.data"), spec)
    return wrapper


class EWC(Wrapper):
    """The wrapped objective's loss and the pull towards earlier weights."""

    def __init__(self, config: Config, inner: Objective) -> None:
        super().__init__(inner)
        self.config = config
        self.own = dict(inner.kept().named_parameters())
        for index, parameter in enumerate(self.own.values()):
            self.register_buffer(f"fisher_{index}", torch.zeros_like(parameter.detach()), persistent=False)
            self.register_buffer(f"anchor_{index}", parameter.detach().clone(), persistent=False)

    @torch.no_grad()
    def hold(self, earlier: Trained, rows: Store, spec: DataSpec) -> None:
        """Pull towards an earlier model's weights, as far as they are the same ones, and begin there.

        Raises:
            ConfigError: no weight has the same name and shape.
        """
        theirs = dict(earlier.objective.named_parameters())
        same = [(t.name, t.classes) for t in earlier.spec.targets] == [(t.name, t.classes) for t in spec.targets]
        shared = {
            name: theirs[name]
            for name, own in self.own.items()
            if name in theirs and theirs[name].shape == own.shape and (same or name.startswith("model."))
        }
        if not shared:
            raise ConfigError(
                f"The model of 'objective.ewc.earlier', '{earlier.folder}', shares no weight with the one to be "
                "trained: learn on with --from, or name a model of the same kind."
            )
        found = fisher(earlier.objective, rows, self.config.rows, shared)
        for index, (name, own) in enumerate(self.own.items()):
            if name not in shared:
                continue
            importance, anchor = getattr(self, f"fisher_{index}"), getattr(self, f"anchor_{index}")
            total = importance + found[name]
            share = torch.where(total > 0, found[name] / total, torch.ones_like(total))
            anchor.lerp_(shared[name].to(anchor), share)
            importance.copy_(total)
            own.copy_(shared[name])

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        return plus(self.inner.losses(batch, phase), {"pull": (1.0, self.pull())}, batch)

    def pull(self) -> Tensor:
        """Return λ / 2 · Σ F · (θ − θ*)²."""
        parts = [
            (getattr(self, f"fisher_{index}") * (own - getattr(self, f"anchor_{index}")).square()).sum()
            for index, own in enumerate(self.own.values())
        ]
        return self.config.strength / 2 * torch.stack(parts).sum()


def fisher(objective: Objective, rows: Store, most: int, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the diagonal of Fisher's information: the mean square of the gradient of a row's loss, by parameter.

    A category's truth is drawn from what the model itself predicts, as the definition has it; other targets' are the
    row's own.

    Args:
        most: rows, evenly spread through the store.
        wanted: parameters of the objective, by name.
    """
    count = min(most, len(rows))
    index = torch.arange(count) * len(rows) // count
    sums = {name: torch.zeros_like(p) for name, p in wanted.items()}
    training = objective.training
    objective.eval()
    learned = {name: p.requires_grad for name, p in wanted.items()}
    for p in wanted.values():
        p.requires_grad_(True)
    with torch.enable_grad():
        for batch in (rows.gather(row) for row in index.split(1)):
            drawn = _drawn(objective, batch)
            total = objective.losses(drawn, objective.phases()[0].name).total
            grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
            for name, grad in zip(wanted, grads, strict=True):
                if grad is not None:
                    sums[name].add_(grad.square())
    for name, p in wanted.items():
        p.requires_grad_(learned[name])
    objective.train(training)
    return {name: total / count for name, total in sums.items()}


@torch.no_grad()
def _drawn(objective: Objective, batch: Batch) -> Batch:
    """Return a batch whose category targets are drawn from the model's predictions."""
    found = {}
    for name, values in objective.predict(batch).items():
        key = f"target:{name}"
        if key in batch and values.ndim == 2 and not batch[key].is_floating_point():
            found[key] = torch.multinomial(values.float(), 1).squeeze(1)
    return batch | found
