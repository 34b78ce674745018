"""From image to image: the network is shown images that were spoiled, and learns to give back what they were.

    upscale    of half the side (or another factor)        denoise   without noise
    colourise  of grey                                     inpaint   with a square cut out
    keep       not spoiled: for a wrapper that asks for another look (style)

What is learned is what has to be added to what came in. The loss is the absolute (or squared) error of pixels; with a
weight for `adversarial`, a judge of patches learns meanwhile to tell mended images from real ones, and mended ones are
to deceive it: they get sharper, and their error larger (Isola et al.; Ledig et al.).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.roles import Denoiser
from fathom.core.types import Batch, DataSpec, Field, Loss, Phase, Stats
from fathom.layers.deceive import deceived, judged
from fathom.layers.image import Normalize
from fathom.layers.likeness import psnr, ssim
from fathom.layers.precision import wide
from fathom.layers.probe import probe
from fathom.layers.spoil import spoiled

REFERENCE = (
    "Isola, Zhu, Zhou, Efros, Image-to-Image Translation with Conditional Adversarial Networks, 2017; "
    "Ledig et al., Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network, 2017"
)
TARGET = "unused"
JUDGE, MAIN = "judge", "main"  # the phases


@dataclass(frozen=True)
class Config:
    what: Literal["upscale", "denoise", "colourise", "inpaint", "keep"] = option("upscale", "how images are spoiled")
    factor: int = option(2, "upscale: by which images are shrunk")
    noise: float = option(0.1, "denoise: the noise's standard deviation, as a share of the range of pixels")
    hole: float = option(0.4, "inpaint: side of the square, as a share of the image's sides")
    pixels: Literal["absolute", "squared"] = option("absolute", "what the error of a pixel costs")
    pixel_weight: float = option(1.0, "of that")
    adversarial: float = option(0.0, "weight of what the judge says; 0: there is none")
    judge_width: int = option(32, "channels of the judge's first layer, which the next ones double")


presets: dict[str, Config] = {
    "upscale": Config(),
    "denoise": Config(what="denoise"),
    "colourise": Config(what="colourise"),
    "inpaint": Config(what="inpaint"),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    return spec.unless_one("image")


def suggests(spec: DataSpec) -> str:
    """Return the model to train where the user names none."""
    return "unet"


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: what is added for a judge's sake is in no mean of errors, so the last is kept."""
    return {"engine": {"keep": "last"}} if config.adversarial else {}


def example() -> DataSpec:
    """Return tiny colour images."""
    field = Field(name="image", kind="image", shape=(3, 8, 8), stats=Stats(mean=(100.0,) * 3, std=(50.0,) * 3))
    return DataSpec(inputs=(field,), rows=16)


def build(config: Config, spec: DataSpec, model: nn.Module) -> TranslateImage:
    """Return the objective.

    Raises:
        ConfigError: the data or the model is of another kind, or an option is out of range.
    """
    why = accepts(spec)
    if why:
        raise ConfigError(f"Objective 'translate_image' cannot be used: {why}.")
    at_least(config, {"factor": 2, "noise": 0, "pixel_weight": 0, "adversarial": 0, "judge_width": 1}, "objective")
    if not 0 < config.hole <= 1:
        raise ConfigError(f"Option 'objective.hole' was given {config.hole}; expected above 0 and up to 1.")
    field = spec.inputs[0]
    if config.what == "colourise" and field.shape[0] != 3:
        raise ConfigError(
            f"Option 'objective.what' was given colourise, but images of column '{field.name}' have {field.shape[0]} "
            "channel(s); expected colour images (prepare.image_colour=rgb)."
        )
    return TranslateImage(config, spec, model)


class TranslateImage(Objective):
    """A network that mends images, and perhaps a judge of what it gives."""

    predicts = ()

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model, self.field = config, model, spec.inputs[0]
        self.normalize = Normalize(replace(self.field, stats=None))  # to −1 … 1
        channels = self.field.shape[0]
        self.head: nn.Module | None = None
        if not isinstance(model, Denoiser):
            self.head = nn.Conv2d(_width(model, self.field), channels, 3, padding=1)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.judge = PatchJudge(channels, config.judge_width) if config.adversarial else None

    def phases(self) -> tuple[Phase, ...]:
        if self.judge is None:
            return super().phases()
        judge = tuple(self.judge.parameters())
        mine = {id(p) for p in judge}
        rest = tuple(p for p in self.parameters() if p.requires_grad and id(p) not in mine)
        return (Phase(JUDGE, judge), Phase(MAIN, rest))

    def losses(self, batch: Batch, phase: str = MAIN) -> Loss:
        if phase == JUDGE:
            with torch.no_grad():
                made, wanted = self.pair(batch)
            assert self.judge is not None
            real, false = wide(self.judge(wanted)), wide(self.judge(made))
            parts = {"real": real.mean(), "made": false.mean()}
            return Loss(judged(real, false, "hinge").mean(), parts, weight=float(len(made)))
        return self.cost(*self.pair(batch))

    def pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return images that were spoiled and mended, and what they had been: [B, C, H, W] each, from −1 to 1."""
        wanted = self.normalize(batch[self.field.key])
        return self._mended(self._spoiled(wanted)), wanted

    def cost(self, made: Tensor, wanted: Tensor) -> Loss:
        """Return what mended images cost, as they are and to the judge."""
        error = made - wanted
        each = error.abs() if self.config.pixels == "absolute" else error.square()
        parts = {"pixels": each.mean()}
        total = self.config.pixel_weight * parts["pixels"]
        if self.judge is not None:
            parts["judged"] = deceived(wide(self.judge(made)), "hinge").mean()
            total = total + self.config.adversarial * parts["judged"]
        return Loss(total, parts if len(parts) > 1 else {}, weight=float(len(made)))

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return, of each row, the mean absolute `error` as a share of the range, decibels (`psnr`) and similarity
        (`ssim`) of the mended image, and the same two of the spoiled one."""
        wanted = self.normalize(batch[self.field.key])
        seen = self._spoiled(wanted)
        made, seen, wanted = (_light(x) for x in (self._mended(seen), seen, wanted))
        return {
            "error": (made - wanted).abs().mean((1, 2, 3)),
            "psnr": psnr(made, wanted),
            "ssim": ssim(made, wanted),
            "psnr_before": psnr(seen, wanted),
            "ssim_before": ssim(seen, wanted),
        }

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return nothing: what it makes are images (`translated`), and rows have nothing to be told of them."""
        return {}

    def translated(self, batch: Batch) -> Tensor:
        """Return what becomes of images as they are, without spoiling them first: [B, C, H, W] in 0 … 1."""
        return _light(self._mended(self.normalize(batch[self.field.key])))

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Return images as they were spoiled, above what was made of them and what they had been."""
        wanted = self.normalize(batch[self.field.key][:8])
        seen = self._spoiled(wanted)
        rows = [_light(x) for x in (seen, self._mended(seen), wanted)]
        return {"given, made of it, and as it was": torch.cat(rows, dim=2)}

    def _spoiled(self, image: Tensor) -> Tensor:
        c = self.config
        return spoiled(image, c.what, c.factor, c.noise, c.hole)

    def _mended(self, image: Tensor) -> Tensor:
        """Return images [B, C, H, W] from −1 to 1, and beyond where the network errs, of spoiled ones."""
        if self.head is None:
            time = image.new_zeros(len(image))
            return image + self.model.denoise(image, time).to(image.dtype)  # type: ignore[operator]
        found = self.model({self.field.key: (image + 1) * 127.5}).maps[0]
        return image + self.head(found).to(image.dtype)


class PatchJudge(nn.Module):
    """Tells how real each patch of an image looks: [B, C, H, W] -> [B, P], scores without bounds.

    Each score sees 22×22 pixels; where the image is small, the last layers do not halve it.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        sizes = ((channels, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 1))
        layers: list[nn.Module] = []
        for inputs, outputs, stride in sizes:
            conv = nn.Conv2d(inputs, outputs, 4 if stride == 2 else 3, stride=stride, padding=1)
            layers += [spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(2 * width, 1, 3, padding=1)))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image).flatten(1)


def _light(image: Tensor) -> Tensor:
    """From −1 … 1 to 0 … 1, what is beyond cut off."""
    return image.float().add(1).div(2).clamp(0, 1)


def _width(model: nn.Module, field: Field) -> int:
    """Return the channels of the model's finest maps, which have to be as large as the image."""
    maps = probe(model, (field,)).maps
    if not maps or maps[0].shape[2:] != torch.Size(field.shape[1:]):
        raise ConfigError(
            "Objective 'translate_image' needs a model that says something of every pixel, such as unet or unet_2015; "
            f"{type(model).__name__} does not."
        )
    return int(maps[0].shape[1])
