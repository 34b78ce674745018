"""A step on micro-batches is the step on the whole batch: weights, buffers and averages alike.

Every row draws the same whichever micro-batch it stands in (`Drawn`). Left out, for their cost of a row depends on the
other rows of its micro-batch: contrast, metric's triplets and mixup, which compare or mix rows, and embed_words, whose
number of drawn words does; so does batch normalisation, hence models without it. Left out too are translate_image's
judge, whose spectral normalisation iterates once each time that it is asked, and the first batch of a quantised
autoencoder, of which its codebook is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fathom.core import catalog, compose
from fathom.core.objective import Objective
from fathom.core.types import Batch, DataSpec, Field, Loss, Stats
from fathom.engine.plan import Plan
from fathom.engine.step import Stepper
from fathom.layers.quantise import Quantiser
from tests.conformance.samples import batch_of
from tests.wrappers.earlier import Earlier

ROWS, CUTS = 20, (0, 3, 4, 20)
SGD = Plan(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.1, clip=0.0)
IMAGE = Field(name="image", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,)))
LABEL = Field(name="label", kind="category", classes=("a", "b", "c"), counts=(4, 3, 3))
TEXT = Field(name="text", kind="text", shape=(10,), vocabulary=30)
NUMBER = Field(name="size", kind="number", stats=Stats(quantiles=(-1.0, 0.0, 1.0)))
PICTURES, LABELLED = DataSpec(inputs=(IMAGE,), rows=16), DataSpec(inputs=(IMAGE,), targets=(LABEL,), rows=16)
TEXTS, TABLE = DataSpec(inputs=(TEXT,), rows=16), DataSpec(inputs=(NUMBER,), rows=16)
VIT = {"name": "vit", "width": 16, "depth": 1, "num_heads": 2, "patch": 4}
SMALL_VIEWS = {"prototypes": 12, "hidden": 8, "bottleneck": 6, "small_views": 2}
CODEBOOK = {"kind": "quantised", "groups": 2, "entries": 4, "decay": 0.8}


class Pair(nn.Module):
    """A generator and its judge, without normalisation."""

    noise, classes, width = 5, 0, 8

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 64), nn.Tanh())
        self.judge = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 1))

    def generate(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.generator(noise).unflatten(1, (1, 8, 8))

    def criticise(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        return self.judge(image.flatten(1)).squeeze(1)


@dataclass(frozen=True)
class Case:
    """An objective with its options, its data, and a model's name with its options; none: a pair of networks."""

    objective: dict[str, Any]
    spec: DataSpec
    model: dict[str, Any] | None = None

    def __str__(self) -> str:
        return " ".join(str(value) for value in self.objective.values()) + " " + self.spec.inputs[0].kind

    def built(self) -> Objective:
        torch.manual_seed(0)
        task = compose.chosen(self.objective)
        spec, options = self.spec, dict(self.model or {})
        network: nn.Module = Pair()
        if options:
            entry = catalog.find("models", options.pop("name"))
            network = entry.module.build(type(entry.config)(**options), spec)
        found = compose.build(task, spec, network, Earlier()).train()
        with torch.no_grad():  # a fresh bias of zero, or a teacher like its student, would hide what moves
            for p in found.parameters():
                p.add_(0.03 * torch.randn_like(p))
        for module in found.modules():
            if isinstance(module, Quantiser):
                module.kept.step.fill_(1)
                module.now.load_state_dict(module.kept.state_dict())
        return found


def cases() -> list[Case]:
    coder = {"name": "autoencoder", "code": 6}
    found = [
        Case({"name": "autoencode", **options}, spec, coder)
        for spec in (PICTURES, TABLE, TEXTS)
        for options in ({}, CODEBOOK, {"kind": "denoising"})
    ]
    found += [
        Case({"name": "consistency", "method": method, "threshold": 0.3}, LABELLED, VIT)
        for method in ("fixmatch", "mean_teacher", "steady_match")
    ]
    unet = {"name": "unet", "widths": (8, 8), "groups": 2}
    translate = catalog.find("objectives", "translate").module.example()
    return [
        *found,
        Case({"name": "autoencode", "kind": "variational"}, TEXTS, {"name": "vae", "variational": True, "code": 6}),
        Case({"name": "supervised"}, LABELLED, VIT),
        Case({"name": "self_distill", "center_momentum": 0.6, **SMALL_VIEWS}, PICTURES, VIT),
        Case({"name": "sam(self_distill)", "self_distill": SMALL_VIEWS}, PICTURES, VIT),
        Case({"name": "masked_image", "width": 8, "num_heads": 2}, PICTURES, VIT),
        Case({"name": "metric", "method": "arcface"}, LABELLED, VIT),
        Case({"name": "adversarial", "average": 0.5}, PICTURES),
        Case({"name": "adversarial", "kind": "wasserstein", "average": 0.5}, PICTURES),
        Case({"name": "diffuse"}, PICTURES, unet),
        Case({"name": "diffuse", "learn": "flow"}, LABELLED, unet),
        Case({"name": "translate_image", "what": "denoise"}, PICTURES, unet | {"block": "plain"}),
        Case({"name": "translate_image", "what": "inpaint"}, PICTURES, unet | {"block": "plain"}),
        Case({"name": "masked_token"}, TEXTS, {"name": "bert", "width": 16, "depth": 1, "num_heads": 2, "dropout": 0}),
        Case({"name": "next_token"}, TEXTS, {"name": "gpt", "width": 16, "depth": 1, "num_heads": 2, "dropout": 0}),
        Case({"name": "supervised+0.5*autoencode"}, DataSpec(inputs=(TEXT,), targets=(LABEL,), rows=16), coder),
        Case({"name": "translate"}, translate, {"name": "transformer", "width": 16, "depth": 1, "dropout": 0}),
    ]


class Drawn(TorchFunctionMode):
    """Within it, the n-th draw of a loss gives each row what that row would draw in the whole batch.

    Args:
        rows: those of the whole batch that the micro-batch consists of.
    """

    def __init__(self, rows: slice) -> None:
        super().__init__()
        self.rows, self.size, self.calls = rows, rows.stop - rows.start, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if function in (torch.bernoulli, torch.multinomial, torch.randperm, torch.normal, Tensor.bernoulli_):
            raise AssertionError(f"{function.__name__} draws for all rows together")
        if function is F.dropout and given.get("p", args[1] if len(args) > 1 else 0.5) > 0:
            assert not given.get("training", True), "dropout draws for all rows together"
        if function in (torch.rand, torch.randn, torch.randint, torch.rand_like, torch.randn_like):
            return self._draw(function(*args, **given), function, args)
        return function(*args, **given)

    def _draw(self, plain: Tensor, function: Any, args: Any) -> Tensor:
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        rest = plain.shape[1:] if plain.ndim and len(plain) == self.size else None
        shape = plain.shape if rest is None else (ROWS, *rest)
        if function is torch.randint:
            ends = [value for value in args if isinstance(value, int)]
            low, high = (0, ends[0]) if len(ends) == 1 else ends
            whole = torch.randint(low, high, shape, generator=generator)
        else:
            draw = torch.randn if function in (torch.randn, torch.randn_like) else torch.rand
            whole = draw(shape, generator=generator)
        return (whole if rest is None else whole[self.rows]).to(plain)


def after_a_step(case: Case, cuts: tuple[int, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and buffers before and after one step on a batch in such micro-batches."""
    task, whole = case.built(), batch_of(case.spec, ROWS)
    slices = {stop - start: slice(start, stop) for start, stop in pairwise(cuts)}
    plain = task.losses

    def losses(batch: Batch, *phase: str) -> Loss:
        with Drawn(slices[len(next(iter(batch.values())))]):
            return plain(batch, *phase)

    task.losses = losses  # type: ignore[method-assign]
    before = state(task)
    parts = [{key: value[rows] for key, value in whole.items()} for rows in slices.values()]
    stepper = Stepper(task, SGD, torch.device("cpu"))
    stepper(0, 0.0, 0.1, parts)
    assert not stepper.trouble
    return before, state(task)


def state(task: Objective) -> dict[str, Tensor]:
    return {n: t.detach().clone().double() for n, t in (*task.named_parameters(), *task.named_buffers())}


@pytest.mark.parametrize("case", cases(), ids=str)
def test_micro_batches_move_everything_as_their_whole_does(case: Case) -> None:
    before, whole = after_a_step(case, (0, ROWS))
    _, parts = after_a_step(case, CUTS)
    moved = {name: (value - before[name]).norm() for name, value in whole.items()}
    assert sum(length > 1e-5 for length in moved.values()) > 1
    for name, length in moved.items():
        far = (parts[name] - whole[name]).norm()
        assert far <= 1e-3 * length + 1e-6, f"{name} ends {far} apart, having moved by {length}"
