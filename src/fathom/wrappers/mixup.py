"""Mixup and CutMix: learn from mixtures of rows, and of their targets in the same proportion.

    mixup    x = λ · x_a + (1 − λ) · x_b,    y = λ · y_a + (1 − λ) · y_b
    CutMix   a rectangle of image a is covered by that of image b; λ is the share of a that remains

Each row is mixed with another of its batch, by its own λ. Where there are texts, categories or graphs, which cannot be
mixed, the model's features are (manifold mixup at the last layer).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.past import Past
from fathom.core.types import Batch, DataSpec, Features, Field, Loss
from fathom.core.wrapper import Wrapper

REFERENCE = (
    "Zhang, Cisse, Dauphin, Lopez-Paz, mixup: Beyond Empirical Risk Minimization, 2018; Yun, Han, Oh, Chun, Choe, Yoo, "
    "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019; Verma et al., "
    "Manifold Mixup: Better Representations by Interpolating Hidden States, 2019"
)


@dataclass(frozen=True)
class Config:
    alpha: float = option(0.2, "λ is drawn from Beta(α, α): near 0 rows are hardly mixed, at 1 in any proportion")
    cutmix: float = option(0.0, "share of rows whose images are mixed by a rectangle rather than by mixup")
    cutmix_alpha: float = option(1.0, "of those: λ, the share that remains, is drawn from Beta(α, α)")
    where: Literal["auto", "inputs", "features"] = option(
        "auto", "what is mixed; auto: inputs, if all are images and numbers, else the model's features"
    )


presets: dict[str, Config] = {
    "cutmix": Config(cutmix=1.0),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why rows of such data cannot be mixed, or None."""
    for target in spec.targets:
        if target.kind not in ("number", "category"):
            return f"target '{target.name}' is {target.kind}; it mixes numbers and categories"
    return None if spec.targets else "it needs at least one target column"


def needs(inner: Objective) -> str | None:
    """Return why this objective cannot learn from mixtures, or None."""
    return None if inner.soft_targets else "it does not learn from mixed targets; 'supervised' does"


def build(config: Config, spec: DataSpec, inner: Objective, past: Past | None = None) -> Mixup:
    """Return the wrapper.

    Raises:
        ConfigError: an option is out of range, or asks to mix what cannot be mixed.
    """
    for name in ("alpha", "cutmix_alpha"):
        if not getattr(config, name) > 0:
            raise ConfigError(f"Option 'objective.mixup.{name}' was given {getattr(config, name)}; expected above 0.")
    if not 0 <= config.cutmix <= 1:
        raise ConfigError(f"Option 'objective.mixup.cutmix' was given {config.cutmix}; expected a share from 0 to 1.")
    others = [field for field in spec.inputs if field.kind not in ("image", "number")]
    if config.where == "inputs" and others:
        raise ConfigError(
            f"Option 'objective.mixup.where' was given inputs, but column '{others[0].name}' is {others[0].kind}, "
            "which cannot be mixed; give features."
        )
    features = config.where == "features" or bool(others)
    if config.cutmix and (features or not spec.images):
        raise ConfigError("CutMix puts a rectangle of one image into another; it needs images, mixed as inputs.")
    return Mixup(config, spec, inner, features)


class Mixup(Wrapper):
    """The loss of the wrapped objective on mixtures; predictions and metrics are of rows as they are."""

    def __init__(self, config: Config, spec: DataSpec, inner: Objective, features: bool) -> None:
        super().__init__(inner)
        self.config, self.spec, self.features = config, spec, features

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        size = len(next(iter(batch.values())))
        device = next(iter(batch.values())).device
        other = torch.randperm(size, device=device)
        share = _beta(self.config.alpha, size, device)  # [B]
        mixed, share = (batch, share) if self.features else self._mixed(batch, other, share)
        mixed = mixed | {t.target_key: _blend(_soft(t, batch[t.target_key]), other, share) for t in self.spec.targets}
        if not self.features:
            return self.inner.losses(mixed, phase)
        hook = self.model.register_forward_hook(_mixing(other, share))
        try:
            return self.inner.losses(mixed, phase)
        finally:
            hook.remove()

    def _mixed(self, batch: Batch, other: Tensor, share: Tensor) -> tuple[Batch, Tensor]:
        """Return the batch with its inputs mixed, and the share [B] that each row has of its own mixture."""
        found, cut = dict(batch), None
        if self.config.cutmix:
            kept = _beta(self.config.cutmix_alpha, len(share), share.device)
            chosen = torch.rand(len(share), device=share.device) < self.config.cutmix
            cut = (chosen, *_rectangles(kept))
            share = torch.where(chosen, 1 - _area(*cut[1:], self.spec.images[0]), share)
        for field in self.spec.images:
            images = batch[field.key].float()
            blended = _blend(images, other, share)
            if cut is not None:
                chosen, first, last = cut
                inside = _inside(first, last, field)[:, None]  # [B, 1, H, W]
                pasted = torch.where(inside, images[other], images)
                blended = torch.where(chosen[:, None, None, None], pasted, blended)
            found[field.key] = blended
        if self.spec.numbers:
            found["number"] = _blend(batch["number"], other, share)
        return found, share


def _beta(alpha: float, size: int, device: torch.device) -> Tensor:
    """Return draws [size] from Beta(α, α)."""
    return torch.distributions.Beta(alpha, alpha).sample((size,)).to(device)


def _blend(values: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return share · values + (1 − share) · values of the other rows."""
    weight = share.to(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
    return torch.lerp(values[other], values, weight)


def _soft(target: Field, truth: Tensor) -> Tensor:
    """Return a target as what can be mixed: of a category probabilities [B, C]."""
    if target.kind == "category" and truth.ndim == 1:
        return F.one_hot(truth, len(target.classes)).float()
    return truth


def _mixing(other: Tensor, share: Tensor) -> Callable[[nn.Module, Any, Features], Features]:
    def mixed(module: nn.Module, given: Any, features: Features) -> Features:
        return replace(features, pooled=_blend(features.pooled, other, share))

    return mixed


def _rectangles(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return where rectangles of area 1 − kept [B] begin and end, [B, 2] as shares of height and width; they are
    centred anywhere, and what lies outside of the image is cut off."""
    half = (1 - kept).sqrt()[:, None] / 2
    centre = torch.rand(len(kept), 2, device=kept.device)
    return (centre - half).clamp(0, 1), (centre + half).clamp(0, 1)


def _edges(first: Tensor, last: Tensor, field: Field) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rectangles' first rows and columns, those after their last, both [B, 2], and the sides [2]."""
    sides = torch.tensor(field.shape[1:], device=first.device)
    return (first * sides).round(), (last * sides).round(), sides


def _area(first: Tensor, last: Tensor, field: Field) -> Tensor:
    """Return the share [B] of an image's pixels that the rectangles cover."""
    begin, end, sides = _edges(first, last, field)
    return (end - begin).prod(1) / sides.prod()


def _inside(first: Tensor, last: Tensor, field: Field) -> Tensor:
    """Return the pixels within the rectangles, [B, H, W]."""
    begin, end, _ = _edges(first, last, field)
    found = []
    for axis, side in enumerate(field.shape[1:]):
        place = torch.arange(side, device=first.device)
        found.append((place >= begin[:, axis, None]) & (place < end[:, axis, None]))
    return found[0][:, :, None] & found[1][:, None]
