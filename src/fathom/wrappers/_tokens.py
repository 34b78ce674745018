"""Distillation of language models: a student learns to tell tokens as a trained teacher does.

    (1 − s) · L + s · T² · KL(p_teacher(T) ‖ p_student(T)) + c · (1 − cos(h_student, h_teacher))

L is the student's own loss on the same tokens that were taken from the same texts. The divergence is the mean over all
tokens, or over those that are to be told; the cosine is that of the last states of each token. With its three terms and
a student that begins with every other of the teacher's layers this is DistilBERT's training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.errors import ConfigError
from fathom.core.objective import Objective
from fathom.core.past import Trained
from fathom.core.roles import Answer, Question, TokenTeller, Translator
from fathom.core.types import Batch, DataSpec, Loss, Phase
from fathom.core.wrapper import Wrapper, also_moving, scaled
from fathom.layers.precision import wide
from fathom.layers.scoring import NOTHING, told
from fathom.wrappers._teacher import beside


class DistillTokens(Wrapper):
    """The wrapped objective's loss, and how far what it tells is from what a teacher tells.

    Args:
        share: s, of the divergence; what remains is that of the loss.
        temperature: T.
        cosine, features: weights of the cosine, and of the squared distance, of the last states.
        everywhere: whether all tokens are told as the teacher does, or only those that are to be told.
    """

    def __init__(
        self,
        inner: Objective,
        teacher: Trained,
        share: float,
        temperature: float,
        cosine: float,
        features: float,
        everywhere: bool,
    ) -> None:
        super().__init__(inner)
        self.share, self.temperature, self.everywhere = share, temperature, everywhere
        self.cosine, self.features = cosine, features
        self._teacher = (teacher.objective.eval().requires_grad_(False),)  # in a tuple: no part of this module
        theirs, ours = int(teacher.objective.model.width), int(self.model.width)  # type: ignore[arg-type]
        apart = features > 0 or (cosine > 0 and ours != theirs)
        self.projection = nn.Linear(ours, theirs) if apart else None

    def losses(self, batch: Batch, phase: str = "main") -> Loss:
        """Return the sum; each part counts in its own units: tokens to tell, tokens told, tokens."""
        if phase != self.phases()[0].name:
            return self.inner.losses(batch, phase)
        inner: TokenTeller = self.inner  # type: ignore[assignment]
        question = inner.ask(batch)
        ours, theirs = inner.answer(question), self._answered(question)
        own = inner.price(question, ours)
        marks = _marked(question.real if self.everywhere else tuple(w != NOTHING for w in question.wanted))
        terms = {"teacher": (self.share, *self._divergence(ours, theirs, marks))}
        if self.cosine or self.features:
            terms |= self._apart(ours, theirs, _marked(question.real))
        kept = scaled(own, 1 - self.share)
        costs = [Loss(weight * cost, weight=count) for weight, cost, count in terms.values()]
        total = torch.stack([kept.total, *(cost.total for cost in costs)]).sum()
        parts = {"own": own.total, **own.parts, **{name: cost for name, (_, cost, _) in terms.items()}}
        return Loss(total, parts, own.weight, (*(kept.terms or (Loss(kept.total, weight=kept.weight),)), *costs))

    def phases(self) -> tuple[Phase, ...]:
        """Return the wrapped objective's turns; the projection moves in the first."""
        return also_moving(self.inner.phases(), self.projection)

    @torch.no_grad()
    def _answered(self, question: Question) -> Answer:
        """Return what the teacher makes of a question."""
        beside(self._teacher[0], question.read)
        return self._asked.answer(question)

    @property
    def _asked(self) -> TokenTeller:
        return self._teacher[0]  # type: ignore[return-value]

    def _divergence(self, ours: Answer, theirs: Answer, marks: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return the mean of T² · KL over the marked places, and how many these are."""
        costs = []
        for column, mark in enumerate(marks):
            student, chosen = told(ours.states[column], mark)
            with torch.no_grad():
                right = self._asked.scores(told(theirs.states[column], mark)[0], column)
            guess = self.inner.scores(student, column)  # type: ignore[operator]
            costs.append(divergence(guess, right, self.temperature) * (chosen != NOTHING))
        return _mean(costs, marks)

    def _apart(
        self, ours: Answer, theirs: Answer, marks: tuple[Tensor, ...]
    ) -> dict[str, tuple[float, Tensor, Tensor]]:
        """Return weight and mean, over the marked places, of one minus the cosine and of the squared distance of
        states, and how many places these are."""
        angles, distances = [], []
        for student, teacher, mark in zip(ours.states, theirs.states, marks, strict=True):
            own, chosen = told(student, mark)
            own = wide(own if self.projection is None else self.projection(own))
            goal, counts = wide(told(teacher, mark)[0]), chosen != NOTHING
            angles.append((1 - F.cosine_similarity(own, goal, dim=-1)) * counts)
            distances.append((own - goal).square().mean(-1) * counts)
        found = {}
        if self.cosine:
            found["cosine"] = (self.cosine, *_mean(angles, marks))
        if self.features:
            found["features"] = (self.features, *_mean(distances, marks))
        return found


def divergence(guess: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(right ‖ guess) of scores [N, V] at a temperature T: [N], at least in float32."""
    ours, theirs = ((wide(scores) / temperature).log_softmax(-1) for scores in (guess, right))
    return F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1) * temperature**2


def unless_same(inner: Objective, spec: DataSpec, teacher: Trained) -> str | None:
    """Return why a student cannot learn to tell tokens as this teacher does, or None where it can."""
    theirs = teacher.objective
    if type(theirs) is not type(inner):
        return f"it was trained by {type(theirs).__name__}, and the student is by {type(inner).__name__}"
    if isinstance(theirs.model, Translator) != isinstance(inner.model, Translator):
        return "of the two only one reads and writes"
    sizes = [[field.vocabulary for field in each.texts] for each in (teacher.spec, spec)]
    if sizes[0] != sizes[1]:
        return f"it tells {sizes[0]} tokens of each text column, the student {sizes[1]}"
    return None


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> int:
    """Put a teacher's weights into a student, as far as there are the same, and return how many tensors they are.

    Of a list of layers that is shorter in the student, layer i gets the weights of the teacher's layer i·k, where k is
    how many times the teacher's list is as long: every other one of twice as many.
    """
    lengths = {name: len(layers) for name, layers in teacher.named_modules() if isinstance(layers, nn.ModuleList)}
    steps = {
        name: lengths[name] // len(layers)
        for name, layers in student.named_modules()
        if isinstance(layers, nn.ModuleList) and len(layers) and lengths.get(name, 0) > len(layers)
    }
    theirs, count = teacher.state_dict(), 0
    for name, own in student.state_dict().items():
        found = theirs.get(_source(name, steps))
        if found is not None and found.shape == own.shape:
            own.copy_(found)
            count += 1
    if not count:
        raise ConfigError(
            "Option 'objective.distill.inherit' asks for the teacher's weights, but none of them has the name and "
            "shape of one of the student's: train the same model with fewer layers, or leave the option out."
        )
    return count


def _source(name: str, steps: dict[str, int]) -> str:
    """Return the teacher's name of a tensor, where each `step`-th of a list of layers is taken."""
    parts = name.split(".")
    return ".".join(
        str(int(part) * steps[".".join(parts[:place])]) if ".".join(parts[:place]) in steps else part
        for place, part in enumerate(parts)
    )


def _marked(real: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return which places count, as `told` takes them: NOTHING at others."""
    return tuple(torch.where(each, 0, NOTHING) for each in real)


def _mean(costs: list[Tensor], marks: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the mean of costs over the marked places of all columns, and how many places these are."""
    count = torch.stack([(mark != NOTHING).sum() for mark in marks]).sum().float()
    return torch.cat(costs).sum() / count.clamp_min(1), count
