"""Masked images: most patches of an image are hidden, and the few that are seen have to tell what the others were.

    image  ->  N patches, of which a quarter is kept  ->  the model reads these alone  [B, k + K, D]
           ->  narrowed, a mask token at each hidden place, positions added  ->  a light decoder  [B, k + N, d]
           ->  the pixels of each patch  [B, N, C·p²]

The loss is the squared error of hidden patches only, whose pixels are brought to mean zero and variance one, each patch
by itself: what has to be told is structure, not brightness. Since the model never sees a mask, and reads a quarter of
each image, training is cheap, and what was learned passes into any other task: the decoder is left behind.

Source: He, Chen, Xie, Li, Dollár, Girshick, Masked Autoencoders Are Scalable Vision Learners, 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, option
from fathom.core.conventions import batch_size
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.roles import Patches
from fathom.core.types import Batch, DataSpec, Field, Loss, Stats
from fathom.layers.attention import EncoderBlock, sinusoids
from fathom.layers.image import cut, joined
from fathom.layers.precision import wide
from fathom.layers.similar import one_vector
from fathom.layers.views import Views

REFERENCE = "He, Chen, Xie, Li, Dollár, Girshick, Masked Autoencoders Are Scalable Vision Learners, 2022"
TARGET = "unused"
SHOWN = 8  # images whose reconstruction is shown
EPSILON = 1e-6  # added to the variance of a patch
GREY = 0.5  # of hidden patches, where they are shown


@dataclass(frozen=True)
class Config:
    mask: float = option(0.75, "share of the patches that are hidden")
    width: int = option(0, "length of a token's vector in the decoder; 0: half of the model's")
    depth: int = option(2, "blocks of the decoder")
    num_heads: int = option(4, "heads of each attention of the decoder; they divide its width")
    normalised: bool = option(True, "the pixels of each patch are asked for at mean zero and variance one")
    crop: float = option(0.3, "smallest area of the part of an image that is learned from; 1: always all of it")
    flip: bool = option(True, "images may be mirrored")


presets: dict[str, Config] = {"mae": Config()}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    return spec.unless_one("image")


def needs(model: nn.Module) -> str | None:
    """Return why this model cannot serve, or None."""
    if isinstance(model, Patches):
        return None
    return f"it needs a model that reads images patch by patch, such as vit; {type(model).__name__} does not"


def suggests(spec: DataSpec) -> str | None:
    """Return the model that is usual for it."""
    return "vit"


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: many passes, each cheap. It varies images by itself."""
    engine = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "beta2": 0.95, "warmup": 0.1}
    batch = batch_size(spec.rows, most=256, steps=20)
    epochs = max(20, min(200, round(800_000 / max(spec.rows, 1))))
    return {
        "engine": {**engine, "schedule": "cosine", "batch_size": batch, "epochs": epochs},
        "augment": {"shift": 0.0, "flip": "no"},
    }


def example() -> DataSpec:
    """Return small grey images."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,))),), rows=16
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> MaskedImage:
    """Return the objective.

    Raises:
        ConfigError: the data or model does not fit, or an option is out of range.
    """
    why = accepts(spec) or needs(model)
    if why:
        raise ConfigError(f"Objective 'masked_image' cannot be used: {why}.")
    at_least(config, {"width": 0, "depth": 1, "num_heads": 1}, "objective")
    for name, given in (("mask", config.mask), ("crop", config.crop)):
        if not 0 < given <= 1 or (name == "mask" and given == 1):
            raise ConfigError(f"Option 'objective.{name}' was given {given}; expected a share above 0 and below 1.")
    return MaskedImage(config, spec.inputs[0], model)


class MaskedImage(Objective):
    """The model, which becomes good at seeing, and a decoder, which is left behind."""

    predicts = ()
    positions: Tensor

    def __init__(self, config: Config, field: Field, model: nn.Module) -> None:
        super().__init__()
        self.config, self.key, self.model = config, field.key, model
        self.patch, grid = self._reader.patch, self._reader.grid
        self.count = math.prod(grid)
        self.seen = max(1, round(self.count * (1 - config.mask)))
        if self.seen >= self.count:
            raise ConfigError(
                f"Objective 'masked_image' hides {config.mask:.0%} of {self.count} patches, which is none: set a "
                "smaller model.patch, or a larger objective.mask."
            )
        self.views = Views((config.crop, 1.0), flip=0.5 * config.flip, jitter=0.0, grey=0.0)
        width = config.width or _fitting(int(model.width) // 2, config.num_heads)  # type: ignore[arg-type]
        if width % config.num_heads:
            raise ConfigError(
                f"Option 'objective.num_heads' was given {config.num_heads}, which does not divide the decoder's width "
                f"of {width}; set objective.width={_fitting(width, config.num_heads)}."
            )
        self.narrow = nn.Linear(int(model.width), width)  # type: ignore[arg-type]
        self.hidden = nn.Parameter(torch.empty(width))  # what stands where nothing was seen
        self.register_buffer("positions", _waves(grid, width), persistent=False)  # [N, d]
        self.blocks = nn.ModuleList(EncoderBlock(width, config.num_heads, 4 * width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, field.shape[0] * self.patch**2)
        nn.init.normal_(self.hidden, std=0.02)

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        image = batch[self.key]
        if self.training and (self.config.crop < 1 or self.config.flip):
            image = self.views(image)
        each = self._cost({self.key: image})
        return Loss(each.mean(), weight=float(len(each)))

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, the mean squared error of each image's hidden patches."""
        return {"loss": self._cost(batch)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return `embedding`, the model's features of the whole image [B, D]."""
        return {"embedding": one_vector(self.model(batch).pooled)}

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Return images, what is seen of them, and what is made of that."""
        pictures = self.put_back({self.key: batch[self.key][:SHOWN]})
        title = "images, the patches that are seen of them, and what is made of these"
        return {title: pictures.transpose(0, 1).flatten(0, 1)}

    def put_back(self, batch: Batch) -> Tensor:
        """Return of each image three pictures: itself, what is seen of it, and that with what is told of what is not,
        [B, 3, C, H, W] in 0 … 1."""
        image = batch[self.key].float() / 255
        order = self._drawn(len(image), image.device)
        given, hidden = cut(image, self.patch), self._hidden(order)[:, :, None]
        told = self._told(batch, order)
        if self.config.normalised:
            mean, variance = _moments(given)
            told = told * (variance + EPSILON).sqrt() + mean
        rows = [given, given.where(~hidden, torch.full_like(given, GREY)), given.where(~hidden, told.to(given.dtype))]
        pictures = [joined(row, self.patch, image.shape[2], image.shape[3]) for row in rows]
        return torch.stack(pictures, dim=1).clamp(0, 1)

    def _cost(self, batch: Batch) -> Tensor:
        """Return the mean squared error of each image's hidden patches [B]."""
        image = batch[self.key]
        order = self._drawn(len(image), image.device)
        told = self._told(batch, order)
        wanted = cut(image.to(told.dtype) / 255, self.patch)  # [B, N, C·p²]
        if self.config.normalised:
            mean, variance = _moments(wanted)
            wanted = (wanted - mean) / (variance + EPSILON).sqrt()
        each = (told - wanted).square().mean(2)  # [B, N]
        return (each * self._hidden(order)).sum(1) / (self.count - self.seen)

    def _drawn(self, size: int, device: torch.device) -> Tensor:
        """Return the patches of each image in an order drawn by chance, [B, N]; the first are seen."""
        return torch.rand(size, self.count, device=device).argsort(1)

    def _hidden(self, order: Tensor) -> Tensor:
        """Return which patches of such an order are hidden, [B, N]."""
        return order.argsort(1) >= self.seen

    def _told(self, batch: Batch, order: Tensor) -> Tensor:
        """Return the pixels of all patches as the decoder tells them, [B, N, C·p²], at least in float32."""
        read = self.narrow(self._reader.read(batch, order[:, : self.seen]))  # [B, k + K, d]
        leading, seen = read[:, : -self.seen], read[:, -self.seen :]
        hidden = self.hidden.to(read.dtype).expand(len(read), self.count - self.seen, -1)
        places = order.argsort(1)[:, :, None].expand(-1, -1, read.shape[2])
        patches = torch.cat([seen, hidden], dim=1).gather(1, places) + self.positions  # [B, N, d]
        x = torch.cat([leading, patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return wide(self.pixels(self.norm(x[:, -self.count :])))

    @property
    def _reader(self) -> Patches:
        return cast(Patches, self.model)


def _moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (by count − 1, as in the paper's own code) of each patch, [B, N, 1] each."""
    return patches.mean(2, keepdim=True), patches.var(2, keepdim=True)


def _waves(grid: tuple[int, int], width: int) -> Tensor:
    """Return what tells patches where they stand: one half of a vector for the row, one for the column, [N, d]."""
    half = -(-width // 4) * 2
    rows, columns = sinusoids(grid[0], half), sinusoids(grid[1], half)
    rows, columns = rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)[:, :width]


def _fitting(width: int, heads: int) -> int:
    """Return the least width from there on that the heads divide."""
    return -(-max(1, width) // heads) * heads
