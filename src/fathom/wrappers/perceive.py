"""Perceptual losses: what an image to image network gives is compared as another, trained network sees it.

    features   how far the maps of that network are apart, of what was made and of what was wanted
    style      how far the maps' correlations are from those of one image, whose look is taken over

It stands around `translate_image`. For sharper images of more detail: `perceive(translate_image)` with a classifier of
such images; for a style: the same with objective.translate_image.what=keep and objective.perceive.style=PICTURE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError, DataError
from fathom.core.objective import Objective
from fathom.core.past import Past
from fathom.core.types import Batch, DataSpec, Field, Loss
from fathom.core.wrapper import Wrapper

REFERENCE = (
    "Johnson, Alahi, Fei-Fei, Perceptual Losses for Real-Time Style Transfer and Super-Resolution, 2016; "
    "Gatys, Ecker, Bethge, Image Style Transfer Using Convolutional Neural Networks, 2016"
)
FLAT = 1e-6  # added to what is divided by: maps without any signal


@dataclass(frozen=True)
class Config:
    features: str = option("", "folder of a trained model of such images, with whose maps is compared")
    weight: float = option(0.1, "of the distance between maps")
    style: str = option("", "path of a picture whose look is taken over")
    style_weight: float = option(1.0, "of the distance from its look")


presets: dict[str, Config] = {}


def accepts(spec: DataSpec) -> str | None:
    """Return why this wrapper cannot take such data, or None."""
    return spec.unless_one("image")


def needs(objective: Objective) -> str | None:
    """Return why it cannot stand around this objective, or None."""
    if hasattr(objective, "pair") and hasattr(objective, "cost"):
        return None
    return f"it stands around translate_image alone; {type(objective).__name__} makes no image of an image"


def build(config: Config, spec: DataSpec, inner: Objective, past: Past | None = None) -> Perceive:
    """Return the wrapper.

    Raises:
        ConfigError: no trained model is named, it has no maps, or the objective makes no images of images.
        DataError: the picture cannot be read.
    """
    why = accepts(spec) or needs(inner)
    if why:
        raise ConfigError(f"Wrapper 'perceive' cannot be used: {why}.")
    at_least(config, {"weight": 0, "style_weight": 0}, "objective.perceive")
    if not config.features or past is None:
        raise ConfigError(
            "Wrapper 'perceive' compares with the maps of a trained network; name its folder with "
            "--set objective.perceive.features=DIR."
        )
    field = spec.inputs[0]
    trained = past.model(config.features, "objective.perceive.features")
    seen = trained.spec.images
    if len(trained.spec.inputs) != 1 or not seen or seen[0].shape[0] != field.shape[0]:
        raise ConfigError(
            f"Option 'objective.perceive.features' was given '{config.features}', a model of other columns; expected "
            f"one of images with {field.shape[0]} channel(s) alone."
        )
    picture = _picture(config.style, field) if config.style else None
    return Perceive(config, inner, trained.objective.network, seen[0].key, picture)


class Perceive(Wrapper):
    """The inner objective's loss, and what a trained network sees.

    Args:
        network: gives maps; it stays as it is and in evaluation mode.
        key: of the images in its batches.
        picture: [1, C, H, W] in 0 … 255, whose look is taken over.
    """

    def __init__(self, config: Config, inner: Objective, network: nn.Module, key: str, picture: Tensor | None) -> None:
        super().__init__(inner)
        self.config, self.key = config, key
        # Not a submodule: it does not learn, and is had again from its folder.
        self._network = (network.eval().requires_grad_(False),)
        with torch.no_grad():
            found = self._maps(torch.zeros(1, *_shape(inner)))
            if not found:
                raise ConfigError(
                    f"Option 'objective.perceive.features' names a {type(network).__name__}, which gives no maps; "
                    "expected a model of convolutions, such as resnet."
                )
            self.look = [gram(m) for m in self._maps(picture / 127.5 - 1)] if picture is not None else []

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        inner: Any = self.inner
        if phase != "main":
            return inner.losses(batch, phase)
        made, wanted = inner.pair(batch)
        loss: Loss = inner.cost(made, wanted)
        parts: dict[str, Tensor] = dict(loss.parts) or {"pixels": loss.total}
        total = loss.total
        maps = self._maps(made)
        if self.config.weight:
            with torch.no_grad():
                goals = self._maps(wanted)
            parts["features"] = _mean([distance(m, goal) for m, goal in zip(maps, goals, strict=True)])
            total = total + self.config.weight * parts["features"]
        if self.look:
            looks = [look.to(made.device) for look in self.look]
            parts["style"] = _mean([_apart(gram(m), look) for m, look in zip(maps, looks, strict=True)])
            total = total + self.config.style_weight * parts["style"]
        return Loss(total, parts, weight=loss.weight)

    def _maps(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return what the trained network makes of images [B, C, H, W] from −1 to 1: maps, finest first."""
        network = self._network[0].to(image.device)
        return tuple(network({self.key: (image + 1) * 127.5}).maps)


def distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared distance of maps [B, C, H, W], as a share of the wanted ones' mean square: a scalar."""
    return (made.float() - wanted.float()).square().mean() / (wanted.float().square().mean() + FLAT)


def gram(maps: Tensor) -> Tensor:
    """Return how channels go together, [B, C, C]: the mean over places of each product of two (Gatys, equation 3)."""
    flat = maps.float().flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def _apart(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared distance of Gram matrices [B, C, C] from one [1, C, C], as a share of its square."""
    return (made - wanted).square().sum((1, 2)).mean() / (wanted.square().sum() + FLAT)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def _shape(inner: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = inner.field.shape
    return shape


def _picture(path: str, field: Field) -> Tensor:
    """Return a picture as images of that column are: [1, C, H, W] in 0 … 255."""
    import numpy as np
    from PIL import Image

    channels, height, width = field.shape
    try:
        with Image.open(path) as file:
            image = file.convert("L" if channels == 1 else "RGB").resize((width, height))
    except (OSError, ValueError) as error:
        raise DataError(f"'{path}', given as objective.perceive.style, cannot be read as a picture: {error}.") from None
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).view(1, height, width, -1)
    return pixels.permute(0, 3, 1, 2).contiguous()
