"""Diffusion and flow matching: learn to take noise out of images, and make images out of noise.

    noise      the network tells the noise (DDPM)
    velocity   it tells α·noise − σ·image, which is well posed where there is nothing but noise, too
    flow       it tells noise − image, the direction of a straight line from one to the other

An image is made from noise in some steps, each of which asks the network once (`layers.noising`). Where a target names
classes, the network is told them, and sometimes not: so it also knows what images of any class look like, and can be
led away from that towards the class by the factor `guidance` (Ho, Salimans, Classifier-Free Diffusion Guidance, 2022).
So it is with a text column beside the images, which says what is to be seen: then images can be asked for in words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, below_one, option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.roles import Captioned, Denoiser
from fathom.core.types import Batch, DataSpec, Field, Loss, Stats
from fathom.layers.condition import label_classes, unless_captions, unless_classes
from fathom.layers.image import Normalize
from fathom.layers.noising import LEVELS, Path

REFERENCE = (
    "Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020; "
    "Lipman, Chen, Ben-Hamu, Nickel, Le, Flow Matching for Generative Modeling, 2023"
)
TARGET = "optional"
SHOWN, SHOWN_STEPS = 16, 20  # images of the report, and steps that they are made in
AT_ONCE = 128  # images made side by side


@dataclass(frozen=True)
class Config:
    learn: Literal["noise", "velocity", "flow"] = option("velocity", "what the network is asked for")
    schedule: Literal["cosine", "linear"] = option("cosine", "how images fade into noise; flow: along straight lines")
    times: Literal["uniform", "middle"] = option("uniform", "middle: learn middling amounts of noise more often")
    label_dropout: float = option(
        0.1, "share of images in training whose class or caption is not told; of both, also that of each alone"
    )
    sampler: Literal["ddim", "ancestral"] = option(
        "ddim", "ddim: no chance after the first noise, of flow Euler's method; ancestral: new noise at each step"
    )
    steps: int = option(50, "that an image is made in")
    guidance: float = option(1.5, "how far images are led towards what is asked; 1: not beyond what was learned")
    clip: bool = option(True, "keep the image that is guessed at each step within the range of pixels")


presets: dict[str, Config] = {
    "ddpm_noise": Config(learn="noise", schedule="linear", sampler="ancestral", steps=1000, guidance=1.0),
    "flow_matching": Config(learn="flow"),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    return unless_captions(spec) or unless_classes(spec)


def needs(model: nn.Module) -> str | None:
    """Return why this model cannot serve, or None."""
    if isinstance(model, Denoiser):
        return None
    return f"it needs a model that takes noise out of images, such as unet or dit; {type(model).__name__} cannot"


def suggests(spec: DataSpec) -> str:
    """Return the model to train where the user names none."""
    return "unet"


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: images stay as they are, since what is made shall look like them."""
    return {"augment": {"shift": 0.0, "flip": "no"}}


def example() -> DataSpec:
    """Return tiny grey images of two classes."""
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,))),),
        targets=(Field(name="label", kind="category", classes=("no", "yes"), counts=(8, 8)),),
        rows=16,
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> Diffuse:
    """Return the objective.

    Raises:
        ConfigError: the model cannot take noise out of images, the data is of another kind, or an option is out of
            range.
    """
    why = accepts(spec) or needs(model)
    if why:
        raise ConfigError(f"Objective 'diffuse' cannot be used: {why}.")
    below_one(config, "label_dropout", where="objective")
    at_least(config, {"steps": 1, "guidance": 0}, "objective")
    _possible(config.steps, config.learn)
    if spec.texts and not (isinstance(model, Captioned) and model.captions):
        raise ConfigError(
            f"The model {type(model).__name__} cannot be told column '{spec.texts[0].name}': take unet or dit, or "
            "leave that column out."
        )
    return Diffuse(config, spec, model)


class Asked(NamedTuple):
    """What is to be seen on images: the class of each [B], and tokens of a caption [B, T], as far as they are told."""

    label: Tensor | None
    caption: Tensor | None


class Diffuse(Objective):
    """A network that takes noise out of images."""

    predicts = ()

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.config, self.model, self.field = config, model, spec.images[0]
        self.target = spec.targets[0] if spec.targets and self.denoiser.classes == label_classes(spec) > 0 else None
        self.words = spec.texts[0] if spec.texts and isinstance(model, Captioned) and model.captions else None
        self.normalize = Normalize(replace(self.field, stats=None))  # to −1 … 1
        self.path = Path("straight" if config.learn == "flow" else config.schedule, config.learn)

    @property
    def denoiser(self) -> Any:
        """The model, as what it can do: a `Denoiser`."""
        return self.model

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        image = self.normalize(batch[self.field.key])  # [B, C, H, W]
        time = self.path.draw(len(image), image.device, self.config.times == "middle").to(image.dtype)
        each = self._errors(image, time, self._partly(self._asked(batch)))
        return Loss(each.mean(), weight=float(len(each)))

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, the squared error of what the network tells, at times spread evenly over the rows [B]."""
        image = self.normalize(batch[self.field.key])
        spread = (torch.randperm(len(image), device=image.device) + 0.5) / len(image)
        return {"loss": self._errors(image, self.path.snap(spread).to(image.dtype), self._asked(batch))}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return nothing: what it makes are images (`sample`), and rows have nothing to be told of them."""
        return {}

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        label: Tensor | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        caption: Tensor | None = None,
    ) -> Tensor:
        """Return images [N, C, H, W] in 0 … 1.

        Args:
            generator: of all chance, on the CPU.
            label: [N], the class of each; None: all classes in turn, where there are any and no captions are given.
            steps, guidance: others than the configuration's.
            caption: [N, T], tokens of the text column: what is to be seen on each.

        Raises:
            ConfigError: classes or captions are asked for that the network was not told, or steps are out of range.
        """
        steps = self.config.steps if steps is None else steps
        guidance = self.config.guidance if guidance is None else guidance
        _possible(steps, self.config.learn)
        if label is not None and self.target is None:
            raise ConfigError("The network was not told classes, so none can be asked of it; train with a --target.")
        if caption is not None and self.words is None:
            raise ConfigError("The network was not told captions; train on images with a text column beside them.")
        if label is None and caption is None and self.target is not None:
            label = torch.arange(count) % self.denoiser.classes
        where = next(self.parameters()).device
        made = []
        for first in range(0, count, AT_ONCE):
            noise = torch.randn(min(AT_ONCE, count - first), *self.field.shape, generator=generator)
            asked = Asked(
                *(part if part is None else part[first : first + AT_ONCE].to(where) for part in (label, caption))
            )
            made.append(self._made(noise.to(where), asked, steps, guidance, generator))
        return torch.cat(made).add(1).div(2).clamp(0, 1)

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Return images that are made up, and rows above what is seen of them in noise and what is guessed."""
        generator = torch.Generator().manual_seed(0)
        steps = min(self.config.steps, SHOWN_STEPS)
        image = self.normalize(batch[self.field.key][:8])
        time = self.path.snap(torch.linspace(0.2, 0.95, len(image), device=image.device)).to(image.dtype)
        seen = self.path.mix(image, torch.randn_like(image), time)
        asked, again = self._asked(batch), torch.arange(SHOWN, device=image.device) % len(image)
        label, caption = (None if part is None or asked.caption is None else part[again] for part in asked)
        answer = self._answer(seen, time, Asked(*(part if part is None else part[:8] for part in asked)), 1.0)
        guess = self.path.apart(seen, answer, time)[0]
        rows = torch.cat([image, seen, guess], dim=2).add(1).div(2).clamp(0, 1)
        return {
            f"made up in {steps} steps": self.sample(SHOWN, generator, label, steps, caption=caption),
            "rows, with more and more noise, and what is guessed from that": rows,
        }

    @torch.no_grad()
    def _made(self, x: Tensor, asked: Asked, steps: int, guidance: float, generator: torch.Generator) -> Tensor:
        """Return images [B, C, H, W] from −1 to 1 that noise becomes."""
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        for now, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            time, then = x.new_full((len(x),), now), x.new_full((len(x),), after)
            chance = None
            if self.config.sampler == "ancestral" and after > 0:
                chance = torch.randn(x.shape, generator=generator).to(x)
            x = self.path.step(x, self._answer(x, time, asked, guidance), time, then, self.config.clip, chance)
        return x

    def _answer(self, x: Tensor, time: Tensor, asked: Asked, guidance: float) -> Tensor:
        """Return what the network tells of x [B, C, H, W], led towards what is asked."""
        said = self.path.said(time)
        if guidance == 1 or (asked.label is None and asked.caption is None):
            return self._told(x, said, asked).to(x.dtype)
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        nothing = self._without(asked, everyone, everyone)
        pairs = zip(asked, nothing, strict=True)
        twice = Asked(*(None if one is None or other is None else torch.cat([one, other]) for one, other in pairs))
        told, untold = self._told(x.repeat(2, 1, 1, 1), said.repeat(2), twice).to(x.dtype).chunk(2)
        return torch.lerp(untold, told, guidance)

    def _told(self, x: Tensor, said: Tensor, asked: Asked) -> Tensor:
        """Return what the network tells of x [B, C, H, W]."""
        words = {} if self.words is None else {"caption": asked.caption}
        found: Tensor = self.denoiser.denoise(x, said, asked.label, **words)
        return found

    def _errors(self, image: Tensor, time: Tensor, asked: Asked) -> Tensor:
        """Return the mean squared error of what the network tells of each image [B], given what is asked."""
        noise = torch.randn_like(image)
        answer = self._told(self.path.mix(image, noise, time), self.path.said(time), asked)
        return (answer.to(image.dtype) - self.path.wanted(image, noise, time)).square().mean((1, 2, 3))

    def _asked(self, batch: Batch) -> Asked:
        """Return the rows' classes and captions, as far as the network is told them."""
        return Asked(
            None if self.target is None else batch[self.target.target_key],
            None if self.words is None else batch[self.words.key],
        )

    def _partly(self, asked: Asked) -> Asked:
        """Return what is asked without that of some rows; where there are both, of some rows without one of the two, so
        that each can be asked alone."""
        some = next((part for part in asked if part is not None), None)
        if some is None:
            return asked
        share, fate = self.config.label_dropout, torch.rand(len(some), device=some.device)
        neither = fate < share
        if asked.label is None or asked.caption is None:
            return self._without(asked, neither, neither)
        second = (fate >= share) & (fate < 2 * share)
        return self._without(asked, neither | second, neither | ((fate >= 2 * share) & (fate < 3 * share)))

    def _without(self, asked: Asked, unlabelled: Tensor, unsaid: Tensor) -> Asked:
        """Return what is asked without the classes of some rows and the captions of some, [B] bool each."""
        label, caption = asked
        if label is not None:
            label = label.masked_fill(unlabelled, self.denoiser.classes)
        if caption is not None:
            assert self.words is not None
            caption = caption.masked_fill(unsaid[:, None], self.words.pad)
        return Asked(label, caption)


def _possible(steps: int, learn: str) -> None:
    if steps < 1 or (learn != "flow" and steps > LEVELS):
        most = f"1 to {LEVELS:,}" if learn != "flow" else "1 or more"
        raise ConfigError(f"Steps that an image is made in were given as {steps}; expected {most}.")
