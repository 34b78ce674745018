"""Knowledge distillation: a student learns from a trained teacher's predictions, and from the truth.

    (1 − s) · L + s · T² · KL(p_teacher(T) ‖ p_student(T)),    p(T) = softmax(log p / T)

What the teacher finds likely beside the right class says how classes resemble each other; a high temperature T shows
it. A number is learned from the teacher's value. Features may be learned, too, through a linear projection onto the
width of the teacher's (a hint). The teacher is no part of the student: it is neither trained nor stored again.

Around `masked_token` or `next_token` it is tokens that are told as the teacher tells them; to the two terms a third may
be added, that the states of each token point where the teacher's do (DistilBERT's triple loss: `distilbert`), see
`_tokens.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.config import at_least, option
from fathom.core.errors import ConfigError
from fathom.core.objective import Objective, predicted
from fathom.core.past import Past, Trained
from fathom.core.roles import TokenTeller
from fathom.core.types import Batch, DataSpec, Field, Loss, Phase, Stats
from fathom.core.wrapper import Wrapper, also_moving, plus, scaled
from fathom.layers.once import once
from fathom.layers.precision import wide
from fathom.layers.similar import one_vector
from fathom.wrappers._teacher import beside, class_order, in_order
from fathom.wrappers._tokens import DistillTokens, inherit, unless_same

REFERENCE = (
    "Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015; Romero, Ballas, Kahou, Chassang, "
    "Gatta, Bengio, FitNets: Hints for Thin Deep Nets, 2015; Sanh, Debut, Chaumond, Wolf, DistilBERT, a Distilled "
    "Version of BERT, 2019"
)
LEAST = 1e-30  # probability whose logarithm is taken


@dataclass(frozen=True)
class Config:
    teacher: str = option("", "folder of the trained model to learn from")
    temperature: float = option(4.0, "T, by which log-probabilities are divided")
    share: float = option(0.9, "s, of the teacher's predictions in the loss; what remains is that of the truth")
    features: float = option(0.0, "weight of the squared distance between projected features and the teacher's")
    cosine: float = option(0.0, "of texts: weight of one minus the cosine of each token's last states")
    tokens: Literal["all", "told"] = option(
        "all", "of texts: which are told as the teacher does; told: the masked ones"
    )
    inherit: bool = option(
        False, "begin with the teacher's weights; of more layers than the student's, with every so-th"
    )


presets: dict[str, Config] = {
    "distilbert": Config(temperature=2.0, share=5 / 7, cosine=1 / 7, inherit=True),  # 5 : 2 : 1
}


def accepts(spec: DataSpec) -> str | None:
    """Return why there is nothing to distil from such data, or None."""
    if spec.targets or spec.texts:
        return None
    return "it needs at least one target column, which the teacher predicts, or texts, of which it tells tokens"


def needs(inner: Objective) -> str | None:
    """Return why it cannot stand around this objective, or None."""
    if isinstance(inner, TokenTeller) or inner.predicts is None or inner.predicts:
        return None
    if isinstance(inner.kept(), TokenTeller):
        return "it stands around masked_token or next_token itself, and others around it, as in sam(distill(…))"
    return f"{type(inner).__name__} neither predicts a target nor tells tokens, so that there is nothing to teach"


def build(config: Config, spec: DataSpec, inner: Objective, past: Past | None = None) -> Distill | DistillTokens:
    """Return the wrapper.

    Raises:
        ConfigError: no teacher is named, or it takes, predicts or tells other things than the student.
    """
    at_least(config, {"features": 0, "cosine": 0}, "objective.distill")
    if not 0 <= config.share <= 1 or not config.temperature > 0:
        name, given = ("share", config.share) if config.temperature > 0 else ("temperature", config.temperature)
        expected = "a share from 0 to 1" if name == "share" else "a number above 0"
        raise ConfigError(f"Option 'objective.distill.{name}' was given {given}; expected {expected}.")
    if past is None or not config.teacher:
        raise ConfigError(
            "Wrapper 'distill' needs a teacher: set objective.distill.teacher to a trained model's folder."
        )
    of_texts = isinstance(inner, TokenTeller)
    if config.cosine and not of_texts:
        raise ConfigError(
            f"Option 'objective.distill.cosine' was given {config.cosine}, which is for masked_token and next_token; "
            "around other objectives set objective.distill.features."
        )
    teacher = past.model(config.teacher, "objective.distill.teacher", True)
    if of_texts and (why := unless_same(inner, spec, teacher)):
        raise ConfigError(f"The teacher '{teacher.folder}' cannot teach this student to tell tokens: {why}.")
    if not of_texts:
        task: Distill | DistillTokens = Distill(config, predicted(inner, spec), inner, teacher)
    else:
        weights = (config.share, config.temperature, config.cosine, config.features)
        task = DistillTokens(inner, teacher, *weights, everywhere=config.tokens == "all")
    if config.inherit:
        inherit(inner.kept(), teacher.objective)
    return task


class Distill(Wrapper):
    """The wrapped objective's loss, with a teacher's."""

    def __init__(self, config: Config, targets: tuple[Field, ...], inner: Objective, teacher: Trained) -> None:
        super().__init__(inner)
        self.config, self.targets = config, targets
        self.order = [class_order(target, teacher) for target in targets]
        self._teacher = (teacher.objective.eval().requires_grad_(False),)  # in a tuple: no part of this module
        theirs, ours = int(teacher.objective.model.width), int(self.model.width)  # type: ignore[arg-type]
        self.projection = nn.Linear(ours, theirs) if config.features else None

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        with once(self.model):
            loss = self.inner.losses(batch, phase)
            if phase != self.phases()[0].name:
                return loss
            said, features = self._taught(batch)
            guess = self.inner.predict(batch)
            each = [self._cost(t, guess[t.name], s) for t, s in zip(self.targets, said, strict=True)]
            taught, share = torch.stack(each).mean(), self.config.share
            costs = {"teacher": (share, taught)}
            if self.projection is not None:
                ours = self.projection(one_vector(self.model(batch).pooled))
                costs["features"] = (self.config.features, F.mse_loss(wide(ours), wide(features)))
        return plus(scaled(loss, 1 - share), costs, batch)

    def phases(self) -> tuple[Phase, ...]:
        """Return the wrapped objective's turns; the projection moves in the first."""
        return also_moving(self.inner.phases(), self.projection)

    @torch.no_grad()
    def _taught(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Return the teacher's prediction of each target, in the student's order of classes, and its features."""
        teacher = beside(self._teacher[0], batch)
        with once(teacher.network):
            found = teacher.predict(batch)
            features = one_vector(teacher.network(batch).pooled)
        return in_order(found, self.targets, self.order), features

    def _cost(self, target: Field, student: Tensor, teacher: Tensor) -> Tensor:
        """Return what a target's prediction costs for being another than the teacher's."""
        if target.kind != "category":
            spread = (target.stats or Stats()).std[0] or 1.0
            return ((student - teacher) / spread).square().mean()
        temperature = self.config.temperature
        ours, theirs = ((p.clamp_min(LEAST).log() / temperature).log_softmax(1) for p in (student, teacher))
        return F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2
