"""Generative adversarial learning: a generator makes images from noise, a judge tells them from real ones.

Each step the judge moves first, then, in every `judge_steps`-th step, the generator. What each pays is in
`layers.deceive`; a Wasserstein judge is also held to slopes of one between real and made images. Where a target names
classes and the model can be told them, it makes and judges images of the classes of the batch.

Images are made by a generator whose weights trail the trained one's (Yazıcı et al., The Unusual Effectiveness of
Averaging in GAN Training, 2019).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, below_one, option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.roles import Adversarial
from fathom.core.types import Average, Batch, DataSpec, Field, Loss, Phase, Stats
from fathom.layers.condition import label_classes, unless_classes
from fathom.layers.deceive import deceived, energy_distance, judged, slopes
from fathom.layers.image import Normalize
from fathom.layers.precision import wide

REFERENCE = (
    "Goodfellow et al., Generative Adversarial Nets, 2014; "
    "Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, Improved Training of Wasserstein GANs, 2017; "
    "Miyato, Kataoka, Koyama, Yoshida, Spectral Normalization for Generative Adversarial Networks, 2018"
)
TARGET = "optional"
SHOWN, AT_ONCE = 64, 256  # images of the report; images made side by side
JUDGE, GENERATOR = "judge", "generator"  # the phases


@dataclass(frozen=True)
class Config:
    kind: Literal["non_saturating", "hinge", "wasserstein"] = option("non_saturating", "what the two networks pay")
    judge_steps: int = option(0, "steps of the judge to one of the generator; 0: one, of wasserstein five")
    gradient_penalty: float = option(10.0, "wasserstein: weight of the judge's slopes' squared distance from one")
    flat: float = option(0.0, "weight of half the judge's squared slopes at real images (Mescheder et al., 2018)")
    average: float = option(0.999, "decay of the generator's moving average, which rises to this over the run")


presets: dict[str, Config] = {
    "hinge_gan": Config(kind="hinge"),
    "wasserstein_gan": Config(kind="wasserstein"),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    return spec.unless_one("image") or unless_classes(spec)


def needs(model: nn.Module) -> str | None:
    """Return why this model cannot serve, or None."""
    if isinstance(model, Adversarial):
        return None
    return f"it needs a generator with a judge, such as dcgan or resnet_gan; {type(model).__name__} is none"


def suggests(spec: DataSpec) -> str:
    """Return the model to train where the user names none: one that can be told classes, where there are any."""
    return "resnet_gan" if label_classes(spec) else "dcgan"


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: the last state is kept, since no one number tells which images are best, and
    images stay as they are, since what is made shall look like them."""
    return {"engine": {"keep": "last", "clip": 0.0, "warmup": 0.0}, "augment": {"shift": 0.0, "flip": "no"}}


def example() -> DataSpec:
    """Return tiny grey images of two classes."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 9, 8), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> Deceive:
    """Return the objective.

    Raises:
        ConfigError: the model is no generator with a judge, the data is of another kind, an option is out of range, or
            slopes are to be measured of a judge that sees images in the light of others.
    """
    why = accepts(spec) or needs(model)
    if why:
        raise ConfigError(f"Objective 'adversarial' cannot be used: {why}.")
    at_least(config, {"judge_steps": 0, "gradient_penalty": 0, "flat": 0}, "objective")
    below_one(config, "average", where="objective")
    penalised = config.flat or (config.kind == "wasserstein" and config.gradient_penalty)
    if penalised and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in cast(Any, model).judge.modules()):
        raise ConfigError(
            f"Objective 'adversarial' measures the judge's slope at each image, but that of {type(model).__name__} "
            "normalises over the batch, so that no image has a slope of its own; take the model wgan_gp or resnet_gan."
        )
    return Deceive(config, spec, model)


class Deceive(Objective):
    """A generator, its judge, and the generator's moving average."""

    predicts = ()

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model, self.field = config, model, spec.inputs[0]
        self.target = spec.targets[0] if spec.targets and self.pair.classes == label_classes(spec) > 0 else None
        self.normalize = Normalize(replace(self.field, stats=None))  # to −1 … 1
        self.smooth = deepcopy(self.pair.generator).requires_grad_(False)

    @property
    def pair(self) -> Any:
        """The model, as what it can do: an `Adversarial`."""
        return self.model

    def phases(self) -> tuple[Phase, ...]:
        """Return the judge's turn, then the generator's, which comes once in `judge_steps`."""
        every = self.config.judge_steps or (5 if self.config.kind == "wasserstein" else 1)
        return (
            Phase(JUDGE, tuple(self.pair.judge.parameters())),
            Phase(GENERATOR, tuple(self.pair.generator.parameters()), every=every),
        )

    def averages(self) -> tuple[Average, ...]:
        decay = self.config.average
        return (Average(self.pair.generator, self.smooth, min(0.9, decay), decay),)

    def losses(self, batch: Batch, phase: str = JUDGE) -> Loss:
        """Return what one of the two pays: parts `real` and `made` are mean scores."""
        image, label = self.normalize(batch[self.field.key]), self._label(batch)
        noise = torch.randn(len(image), self.pair.noise, device=image.device, dtype=image.dtype)
        if phase == GENERATOR:
            score = wide(self.pair.criticise(self.pair.generate(noise, label), label))
            return Loss(deceived(score, self.config.kind).mean(), {"made": score.mean()}, weight=float(len(image)))
        with torch.no_grad():
            made = self.pair.generate(noise, label).to(image.dtype)
        scores = wide(self.pair.criticise(image, label)), wide(self.pair.criticise(made, label))
        total = judged(*scores, self.config.kind).mean()
        parts = {"real": scores[0].mean(), "made": scores[1].mean()}
        for name, cost in self._penalties(image, made, label).items():
            parts[name] = cost
            total = total + cost
        return Loss(total, parts, weight=float(len(image)))

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return `distance`, the rows' shares [B] of the energy distance between them and as many made images, and
        the judge's scores of both."""
        image, label = self.normalize(batch[self.field.key]), self._label(batch)
        noise = torch.randn(len(image), self.pair.noise, device=image.device, dtype=image.dtype)
        made = self._made(noise, label)
        real, false = wide(self.pair.criticise(image, label)), wide(self.pair.criticise(made, label))
        return {"distance": energy_distance(image, made), "real": real, "made": false}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return `realness` [B], the judge's score of each image, whatever its class."""
        return {"realness": wide(self.pair.criticise(self.normalize(batch[self.field.key])))}

    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """Return images [N, C, H, W] in 0 … 1.

        Args:
            generator: of all chance, on the CPU.
            label: [N], the class of each; None: all classes in turn, where there are any.

        Raises:
            ConfigError: classes are asked for that the model was not told.
        """
        if label is not None and self.target is None:
            raise ConfigError(
                "The generator was not told classes, so none can be asked of it; train resnet_gan with a --target."
            )
        if label is None and self.target is not None:
            label = torch.arange(count) % self.pair.classes
        where = next(self.parameters()).device
        made = []
        for first in range(0, count, AT_ONCE):
            noise = torch.randn(min(AT_ONCE, count - first), self.pair.noise, generator=generator)
            told = None if label is None else label[first : first + AT_ONCE].to(where)
            made.append(self._made(noise.to(where), told))
        return torch.cat(made).add(1).div(2).clamp(0, 1)

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Return images that the generator makes."""
        return {"made up": self.sample(SHOWN, torch.Generator().manual_seed(0))}

    def _made(self, noise: Tensor, label: Tensor | None) -> Tensor:
        """Return what the moving average of the generator makes of noise: [B, C, H, W] from −1 to 1."""
        trained = self.pair.generator
        self.pair.generator = self.smooth
        try:
            return self.pair.generate(noise, label).float()
        finally:
            self.pair.generator = trained

    def _penalties(self, image: Tensor, made: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """Return what the judge pays for its slopes."""
        found = {}
        if self.config.kind == "wasserstein" and self.config.gradient_penalty:
            share = torch.rand(len(image), 1, 1, 1, device=image.device, dtype=image.dtype)
            between = self._slopes(torch.lerp(made, image, share), label)
            found["penalty"] = self.config.gradient_penalty * (between - 1).square().mean()
        if self.config.flat:
            found["flat"] = self.config.flat / 2 * self._slopes(image, label).square().mean()
        return found

    def _slopes(self, image: Tensor, label: Tensor | None) -> Tensor:
        return slopes(lambda x: self.pair.criticise(x, label), image)

    def _label(self, batch: Batch) -> Tensor | None:
        return None if self.target is None else batch[self.target.target_key]
