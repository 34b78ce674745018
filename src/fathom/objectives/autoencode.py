"""Autoencoding: put each row into a short code, and write the row down again from it.

    plain         the code as it is
    denoising     the row is damaged first; what is asked for is the whole one
    sparse        only the largest numbers of each code are kept
    variational   the code is drawn from a Gaussian that is kept near the standard one: the loss is −ELBO, in nats
    quantised     each part of the code is replaced by the nearest vector of a codebook

Images, tables and texts cost what `layers.likelihood` says, in nats; the loss is the mean cost of one value (pixel,
number, class, token), so that a learning rate suits small and large rows alike. A row that costs much is unlike those
that were learned from: its cost is its `anomaly`.

Source: Hinton, Salakhutdinov, 2006; Vincent et al., Stacked Denoising Autoencoders, 2010; Makhzani, Frey, k-Sparse
Autoencoders, 2014; Kingma, Welling, 2014; Higgins et al., β-VAE, 2017; van den Oord, Vinyals, Kavukcuoglu, 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fathom.core.config import at_least, below_one, option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.roles import Autoencoder
from fathom.core.types import UNKNOWN, Average, Batch, DataSpec, Field, Loss, Stats
from fathom.layers.gaussian import draw, kl_to_standard
from fathom.layers.likelihood import Likelihood, corrupted
from fathom.layers.precision import wide
from fathom.layers.quantise import Quantiser

REFERENCE = (
    "Hinton, Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, 2006; "
    "Kingma, Welling, Auto-Encoding Variational Bayes, 2014; "
    "van den Oord, Vinyals, Kavukcuoglu, Neural Discrete Representation Learning, 2017"
)
TARGET = "unused"
SHOWN = STEPS = 8  # rows of each picture, and codes on the way from one row to the next: as many as a grid has in a row


@dataclass(frozen=True)
class Config:
    kind: Literal["auto", "plain", "denoising", "sparse", "variational", "quantised"] = option(
        "auto", "what becomes of the code; auto: variational where the model is, otherwise plain"
    )
    pixels: Literal["gaussian", "bernoulli"] = option(
        "gaussian", "a pixel is a value with an error, or its brightness is a probability; of variational ones mostly"
    )
    beta: float = option(1.0, "variational: weight of the divergence from the standard Gaussian")
    damage: Literal["erase", "blur"] = option("erase", "denoising: values are erased, or noise is added to them")
    noise: float = option(0.3, "denoising: share of values that are erased, or the noise's standard deviation")
    active: float = option(0.25, "sparse: share of each code's numbers that are kept, the largest")
    groups: int = option(8, "quantised: parts of a code, each with a codebook of its own; they divide model.code")
    entries: int = option(64, "quantised: vectors of a codebook")
    commitment: float = option(0.25, "quantised: weight of a code's distance from the vector that stands for it")
    decay: float = option(0.99, "quantised: of the codebook's moving average, from one step to the next")


presets: dict[str, Config] = {
    "denoising": Config(kind="denoising"),
    "sparse": Config(kind="sparse"),
    "variational": Config(kind="variational"),
    "quantised": Config(kind="quantised"),
}


def accepts(spec: DataSpec) -> str | None:
    """Return why this objective cannot learn from such data, or None."""
    return spec.unless_all("number", "category", "image", "text")


def needs(model: nn.Module) -> str | None:
    """Return why this model cannot serve, or None."""
    if isinstance(model, Autoencoder):
        return None
    return f"it needs a model that makes codes and takes them back, such as autoencoder; {type(model).__name__} cannot"


def suggests(spec: DataSpec) -> str:
    """Return the model to train where the user names none."""
    return "autoencoder"


def recipe(config: Config, spec: DataSpec) -> dict[str, dict[str, Any]]:
    """Return settings to train with: images stay as they are, since what is made shall look like them."""
    return {"augment": {"shift": 0.0, "flip": "no"}}


def example() -> DataSpec:
    """Return a small table with a column of each kind that is no text."""
    return DataSpec(
        inputs=(
            Field(name="size", kind="number", stats=Stats(quantiles=(-1.0, 0.0, 1.0))),
            Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue")),
            Field(name="photo", kind="image", shape=(1, 6, 7), stats=Stats(mean=(128.0,), std=(64.0,))),
        ),
        rows=16,
    )


def build(config: Config, spec: DataSpec, model: nn.Module) -> Autoencode:
    """Return the objective.

    Raises:
        ConfigError: the model makes no codes, or an option is out of range or does not fit the model.
    """
    why = accepts(spec) or needs(model)
    if why:
        raise ConfigError(f"Objective 'autoencode' cannot be used: {why}.")
    at_least(config, {"beta": 0, "noise": 0, "groups": 1, "entries": 2, "commitment": 0}, "objective")
    below_one(config, "decay", where="objective")
    if config.damage == "erase":
        below_one(config, "noise", where="objective")
    if not 0 < config.active <= 1:
        raise ConfigError(f"Option 'objective.active' was given {config.active}; expected above 0 and up to 1.")
    return Autoencode(config, spec, model)


class Autoencode(Objective):
    """A model that makes codes, and what each row costs that is written down again from its code."""

    predicts = ()

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__()
        self.config, self.spec, self.model = config, spec, model
        self.kind = _kind(config, self.coder)
        self.likelihood = Likelihood(spec, config.pixels, learned=self.kind == "variational")
        self.quantiser: Quantiser | None = None
        if self.kind == "quantised":
            if self.coder.code % config.groups:
                raise ConfigError(
                    f"Option 'objective.groups' was given {config.groups}, which does not divide the code of "
                    f"{self.coder.code} numbers; expected a divisor of model.code."
                )
            self.quantiser = Quantiser(self.coder.code, config.groups, config.entries, config.decay)

    @property
    def coder(self) -> Any:
        """The model, as what it can do: an `Autoencoder`."""
        return self.model

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        seen = batch
        if self.kind == "denoising":
            seen = corrupted(batch, self.spec.inputs, self.config.noise, self.config.damage)
        code, extra = self._code(seen, by_chance=True)
        parts = {"reconstruction": self._cost(batch, code)} | extra  # [B] each, nats
        weights = {"divergence": self.config.beta, "commitment": self.config.commitment}
        total = torch.stack([weights.get(name, 1.0) * value for name, value in parts.items()]).sum(0)
        values = self.likelihood.values(batch)
        means = {name: value.mean() for name, value in parts.items()}
        # Rows weigh alike where they are of one length; where texts are not, the loss is a mean over values.
        weight = values if isinstance(values, Tensor) else float(len(total))
        return Loss(total.sum() / values, means, weight=weight)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return `embedding`, the code [B, Z] (of a variational one its mean), and `anomaly` [B], what the row costs
        in nats: of a variational one −ELBO with the code's mean for its draw."""
        code, extra = self._code(batch, by_chance=False)
        cost = self._cost(batch, code) + extra.get("divergence", 0.0)
        return {"anomaly": cost, "embedding": code.float()}

    def embed(self, batch: Batch) -> Tensor:
        """Return the codes [B, Z]."""
        return self._code(batch, by_chance=False)[0]

    def metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, each row's cost in nats, of a variational one −ELBO whatever β is; and what it consists of."""
        code, extra = self._code(batch, by_chance=True)
        cost = self._cost(batch, code)
        if self.kind == "variational":
            return {"loss": cost + extra["divergence"], "reconstruction": cost, **extra}
        return {"loss": cost, **extra}

    def averages(self) -> tuple[Average, ...]:
        return self.quantiser.averages() if self.quantiser is not None else ()

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Return, for each image column, rows above what became of them, the way from each row to the next, and of a
        variational one rows that it made up: [N, C, H, W] in 0 … 1."""
        found: dict[str, Tensor] = {}
        few = {key: value[:SHOWN] for key, value in batch.items()}
        for field in self.spec.images:
            real = few[field.key].float() / 255
            again = self.pictures(self.embed(few))[field.name]
            between = self.interpolate(few)[field.name]  # [N, S, C, H, W]: in a row of the grid one way
            ending = f" of {field.name}" if len(self.spec.images) > 1 else ""
            found[f"rows above their reconstructions{ending}"] = torch.cat([real, again], dim=2)
            found[f"from one row to the next{ending}"] = between.flatten(0, 1)
            if self.kind == "variational":
                code = torch.randn(SHOWN * 2, self.coder.code, device=again.device)
                found[f"made up{ending}"] = self.pictures(code)[field.name]
        return found

    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """Return rows that the model makes up, pictures [N, C, H, W] in 0 … 1.

        Raises:
            ConfigError: the autoencoder is not variational, its data has no image, or a class is asked for.
        """
        if self.kind != "variational":
            raise ConfigError(
                f"Codes of a {self.kind} autoencoder follow no known law, so none can be drawn; train one with "
                "objective.kind=variational and a variational model, such as vae."
            )
        if label is not None:
            raise ConfigError("An autoencoder was not told classes, so none can be asked of it.")
        if not self.spec.images:
            raise ConfigError("The data has no image column, so there is nothing to draw.")
        code = torch.randn(count, self.coder.code, generator=generator)
        where = next(self.parameters()).device
        return self.pictures(code.to(where))[self.spec.images[0].name]

    def pictures(self, code: Tensor) -> dict[str, Tensor]:
        """Return what codes [B, Z] look like: [B, C, H, W] in 0 … 1, by the names of the image columns."""
        return self.likelihood.pictures_of(self.coder.decode(code))

    def interpolate(self, batch: Batch, steps: int = STEPS) -> dict[str, Tensor]:
        """Return what lies between each row's code and the next one's, in equal steps: [B, S, C, H, W] in 0 … 1."""
        code = self.embed(batch)
        share = torch.linspace(0, 1, steps, device=code.device, dtype=code.dtype)[None, :, None]
        between = torch.lerp(code[:, None], code.roll(-1, 0)[:, None], share)  # [B, S, Z]
        found = self.pictures(between.flatten(0, 1))
        return {name: value.unflatten(0, (-1, steps)) for name, value in found.items()}

    def _code(self, batch: Batch, by_chance: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the code [B, Z] that is decoded, and what it costs beside the reconstruction [B]."""
        code = self.coder.encode(batch)
        if self.coder.variational:
            mean, log_variance = code.split(self.coder.code, dim=1)
            if self.kind != "variational":
                return mean, {}
            mean, log_variance = wide(mean), wide(log_variance)
            drawn = draw(mean, log_variance) if by_chance else mean
            return drawn, {"divergence": kl_to_standard(mean, log_variance)}
        if self.kind == "sparse":
            return largest(code, max(1, round(self.config.active * self.coder.code))), {}
        if self.quantiser is not None:
            code, far, _ = self.quantiser(wide(code))
            return code, {"commitment": far}
        return code, {}

    def _cost(self, batch: Batch, code: Tensor) -> Tensor:
        """Return what each row costs that is written down from its code [B, Z]: [B], nats."""
        return self.likelihood(self.coder.decode(code), self.coder.wanted(batch), batch)


def largest(code: Tensor, count: int) -> Tensor:
    """Return codes [B, Z] of which all but so many numbers, the largest ones by size, are zero."""
    kept = code.detach().abs().topk(count, dim=1).indices
    return code * torch.zeros_like(code).scatter_(1, kept, 1.0)


def _kind(config: Config, model: Any) -> str:
    if config.kind == "auto":
        return "variational" if model.variational else "plain"
    if config.kind == "variational" and not model.variational:
        raise ConfigError(
            "Option 'objective.kind' was given variational, for which the model has to give a Gaussian; set "
            "model.variational=true, or take the model vae."
        )
    if config.kind in ("sparse", "quantised") and model.variational:
        raise ConfigError(
            f"Option 'objective.kind' was given {config.kind}, for which a code has to be a point; set "
            "model.variational=false, or take the model autoencoder."
        )
    return config.kind
