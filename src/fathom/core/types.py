"""The values that cross from one room to the next.

    Field, DataSpec   what data tells everyone else about itself: frozen, readable, stored as JSON
    Batch             named tensors; the first dimension is the batch
    Store             samples that hand out a whole batch by index
    Features          what a model returns
    Loss              what an objective returns
    Phase, Average    what an objective asks of the engine beyond one loss and one set of parameters

Keys of a batch: all number columns share one tensor `number` [B, F] and all category columns one tensor
`category` [B, C], in the order of the spec; every image column has `image:NAME` [B, C, H, W] (uint8, the model
normalises it), every text column `text:NAME` [B, T] (tokens), every target `target:NAME` [B] (of a text [B, T]).
Inside an objective an image may also be float, in the same 0 to 255, and a category target probabilities [B, C].
A graph column has `graph:NAME` [B, N, F] (what is known of each node), `graph:NAME:edges` [B, E, 2] (from, to; −1
where there are no more) and `graph:NAME:size` [B] (nodes that are real, the first ones).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["number", "category", "text", "image", "graph"]
Batch = dict[str, "Tensor"]

PLURALS: dict[Kind, str] = {
    "number": "numbers",
    "category": "categories",
    "text": "texts",
    "image": "images",
    "graph": "graphs",
}
UNKNOWN = "<unknown>"  # class 0 of every input category: missing, or not seen in training
PAD, UNK, START, END, MASK = range(5)  # the first five tokens of every vocabulary
SPECIAL_TOKENS = ("<pad>", "<unk>", "<start>", "<end>", "<mask>")
IMBALANCE = 4.0  # a target is imbalanced where one class has more than so many times the rows of another


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Statistics of the training rows, after preprocessing (of a target: before, in its own unit).

    For a number each tuple but `quantiles` has one entry; for an image one for each channel, in units of 0–255.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    minimum: tuple[float, ...] = ()
    maximum: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()  # rising, distinct; for numeric embeddings


@dataclass(frozen=True, kw_only=True)
class Field:
    """One tensor column of a data set: its name, its kind, and what a model must know to take it in.

    Attributes:
        name: unique in its spec; a part of a date reads `when.month`.
        kind: what the tensor holds. Booleans and missing-value flags are categories; dates are numbers.
        source: the column of the user's data that it comes from.
        shape: (C, H, W) of an image, (T,) of a text, (N, E, F) of a graph with up to N nodes of F numbers each and
            up to E edges, () otherwise.
        classes: of a category, code i means classes[i]. An input's first class is `UNKNOWN`; a target has none.
        counts: of a target category, the training rows of each class.
        vocabulary: of a text, the number of tokens.
        special: of a text, the tokens that stand for padding, the unknown, start, end and a masked token; −1 where a
            tokenizer has none.
        frequencies: of a text, the share of training rows that hold each token, where known.
        occurrences: of a text, how often each token stands in the training rows, where known.
        bytes: of a text, how many bytes of it each token stands for, where known; −1 for a START that stands before a
            space which is not the text's own.
        stats: of a number or image.
    """

    name: str
    kind: Kind
    source: str = ""
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    vocabulary: int = 0
    special: tuple[int, int, int, int, int] = (PAD, UNK, START, END, MASK)
    frequencies: tuple[float, ...] = ()
    occurrences: tuple[int, ...] = ()
    bytes: tuple[int, ...] = ()
    stats: Stats | None = None

    @property
    def key(self) -> str:
        """Where an input field's values stand in a batch."""
        return self.kind if self.kind in ("number", "category") else f"{self.kind}:{self.name}"

    @property
    def pad(self) -> int:
        """The token of a text that stands for no token."""
        return self.special[0]

    @property
    def target_key(self) -> str:
        """Where a target field's values stand in a batch."""
        return f"target:{self.name}"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What later rooms need to know of the data: input fields, target fields, the number of training rows."""

    inputs: tuple[Field, ...]
    targets: tuple[Field, ...] = ()
    rows: int = 0

    def of(self, kind: Kind) -> tuple[Field, ...]:
        """Input fields of one kind, in the order of their columns in the batch."""
        return tuple(f for f in self.inputs if f.kind == kind)

    @property
    def numbers(self) -> tuple[Field, ...]:
        return self.of("number")

    @property
    def categories(self) -> tuple[Field, ...]:
        return self.of("category")

    @property
    def images(self) -> tuple[Field, ...]:
        return self.of("image")

    @property
    def texts(self) -> tuple[Field, ...]:
        return self.of("text")

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(f.kind for f in self.inputs)

    @property
    def given(self) -> str:
        """The input columns, some of many, as a refusal of them names them."""
        return ", ".join(f"'{f.name}' ({f.kind})" for f in self.inputs[:4]) or "none"

    def unless_one(self, kind: Kind) -> str | None:
        """Return why this is not one input column of that kind, as an entry's `accepts` does, or None where it is."""
        if len(self.inputs) == 1 and self.inputs[0].kind == kind:
            return None
        return f"it takes one {kind} column; the input columns are {self.given}"

    def unless_all(self, *kinds: Kind) -> str | None:
        """Return why these are not input columns of those kinds alone, as an entry's `accepts` does, or None."""
        *most, last = (PLURALS[kind] for kind in kinds)
        for column in self.inputs:
            if column.kind not in kinds:
                takes = f"{', '.join(most)} and {last}" if most else last
                return f"it takes {takes}; column '{column.name}' is {column.kind}"
        return None if self.inputs else f"it needs at least one {'input' if most else kinds[0]} column"

    def only(self, fields: Iterable[Field]) -> DataSpec:
        """The same data seen through some of its inputs: what one encoder of several gets."""
        return replace(self, inputs=tuple(fields))


@runtime_checkable
class Store(Protocol):
    """Samples that hand out a whole batch by index, in one call."""

    def __len__(self) -> int: ...

    def gather(self, index: Tensor) -> Batch:
        """Return the samples at `index` [B] (int64), in that order."""
        ...

    def soon(self, index: Tensor) -> None:
        """Be told that the samples at `index` [B] are asked for next: what has to be fetched can be, meanwhile."""
        ...

    def column(self, key: str) -> Tensor:
        """Return what all samples have at one key of the batch, [N, …]."""
        ...


class Augment(Protocol):
    """A random change of a whole training batch, on the device, drawing from torch's default generator."""

    def __call__(self, batch: Batch) -> Batch: ...


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What the engine is handed: the samples to learn from, those to choose by, and how to vary the first."""

    train: Store
    valid: Store | None = None
    augment: Augment | None = None


@dataclass
class Features:
    """What a model makes of a batch. D is the model's `width`.

    Attributes:
        pooled: [B, D], or [B, K, D] from an ensemble of K members in one network.
        tokens: [B, T, D] where the model has a sequence.
        mask: [B, T] bool, true at real tokens.
        maps: image features, finest first, each [B, C, H, W].
        penalty: scalar, what the model itself asks to be kept small in training, already weighted (how unevenly a
            mixture's experts are used); an objective adds it to its loss.
    """

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    maps: tuple[Tensor, ...] = ()
    penalty: Tensor | None = None


@dataclass
class Loss:
    """What one batch costs.

    Attributes:
        total: scalar, the mean over the batch's units; the engine differentiates it.
        parts: scalars worth showing, detached by the engine.
        weight: how many units (samples, tokens) `total` is the mean of; accumulation over uneven
            micro-batches weights each by it, so that the gradient is that of one large batch.
        terms: the summands of `total`, where they are means of different units; accumulation then weights each by its
            own.
    """

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor | float = 1.0
    terms: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class Phase:
    """One turn of a training step: which parameters move, by which loss, how often.

    The engine runs an objective's phases in order within each step, calls `objective.losses(batch, name)`, and
    differentiates with respect to `parameters` only, so that no phase leaks gradients into another.

    Attributes:
        name: handed to `losses`.
        parameters: what this phase's optimiser moves.
        every: run at each `every`-th step (a generator that moves once in five).
        learning_rate: times the plan's learning rate.
        climb: the gradient that moves the weights is not the one where they are but the one so far up the first, in
            the same batch with the same random numbers; buffers are those of where they are.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    every: int = 1
    learning_rate: float = 1.0
    climb: float = 0.0


@dataclass(frozen=True)
class Average:
    """A network that trails another: after each step, target = decay · target + (1 − decay) · source.

    `decay` may rise from its first value to `final_decay` along a cosine over the run. Buffers are copied; those that
    hold fractions may be "averaged" as weights are, which running statistics of batches have to fit.
    """

    source: nn.Module
    target: nn.Module
    decay: float = 0.999
    final_decay: float | None = None
    buffers: Literal["copied", "averaged"] = "copied"
