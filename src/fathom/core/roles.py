"""What some models and objectives can do beyond their contracts. Who needs it asks by these names.

Of models, for objectives:

LanguageModel   tells the next token, also step by step with a cache
Translator      reads one sequence and writes another
Denoiser        takes noise out of images
Captioned       a denoiser that can also be told in words what is to be seen
Autoencoder     to a code, and back
Adversarial     a generator, and the judge it has to deceive
Towers          a network for each kind of column, which can be asked alone
Patches         reads images patch by patch, also some of the patches alone

Of objectives, for those who use what was trained:

Sampler         makes images
Embedder        says where each row lies among others
Matcher         says which text fits an image
TokenTeller     tells tokens, and can be asked what another was asked
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from fathom.core.types import Batch, Features, Kind, Loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@runtime_checkable
class LanguageModel(Protocol):
    """Tells the next token: `forward` gives hidden states [B, T, D] of which each has seen its past only.

    Attributes:
        vocabulary: V, tokens that are told apart.
        context: the most tokens that a sequence may have.
    """

    vocabulary: int
    context: int

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of the next token, [..., D] -> [..., V]."""

    def cache(self, rows: int, length: int) -> Any:
        """Return room for what is kept of `rows` sequences of up to `length` tokens.

        It has `reorder(rows)`, by which beams go on from others' pasts, and, where tokens can be taken back, `length`,
        how many it holds.
        """

    def extend(self, tokens: Tensor, cache: Any, mask: Tensor | None = None) -> Tensor:
        """Return the hidden states [B, t, D] of `tokens` [B, t] that follow what the cache holds, and put them there.

        Args:
            mask: [B, t], false at padding, which stands to the left of a shorter prompt.
        """


@runtime_checkable
class Translator(Protocol):
    """Reads one sequence and writes another."""

    vocabulary: int
    context: int

    def encode(self, batch: Batch) -> Features:
        """Return what is read: tokens [B, S, D] and their mask [B, S]."""

    def decode(self, tokens: Tensor, memory: Features) -> Tensor:
        """Return hidden states [B, T, D] of the tokens [B, T] written so far (START first), each seeing its past."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of the next token, [..., D] -> [..., V]."""

    def cache(self, memory: Features, length: int) -> Any:
        """Return room for up to `length` tokens written after reading `memory`."""

    def extend(self, tokens: Tensor, cache: Any) -> Tensor:
        """Return the hidden states [B, t, D] of `tokens` [B, t] that follow what the cache holds, and put them in."""


@runtime_checkable
class Denoiser(Protocol):
    """Takes noise out of images.

    Attributes:
        classes: of images that it can be told to make; 0: it cannot be told.
    """

    classes: int

    def denoise(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Return what the objective asks for (the noise, the image, a velocity), in the shape of `x` [B, C, H, W].

        Args:
            time: [B], how much noise there is, from 0 to 1,000.
            label: [B], classes; the code `classes` stands for none.
        """


@runtime_checkable
class Captioned(Protocol):
    """A denoiser that can also be told in words what is to be seen.

    Attributes:
        captions: whether this one can, as it can where the data has a text column.
    """

    captions: bool

    def denoise(self, x: Tensor, time: Tensor, label: Tensor | None = None, caption: Tensor | None = None) -> Tensor:
        """Return what a `Denoiser` does.

        Args:
            caption: [B, T], tokens of the text column; a row of padding stands for none.
        """


@runtime_checkable
class Autoencoder(Protocol):
    """To a code, and back.

    Attributes:
        code: Z, numbers of a code.
        variational: whether `encode` gives means and log-variances [B, 2·Z] rather than codes [B, Z].
    """

    code: int
    variational: bool

    def encode(self, batch: Batch) -> Tensor:
        """Return codes [B, Z], or of a variational one means and log-variances [B, 2·Z]."""

    def decode(self, code: Tensor) -> Batch:
        """Return what codes [B, Z] stand for, by the keys of the batch: of numbers and images the values on the
        normalised scale, of categories and texts logits."""

    def wanted(self, batch: Batch) -> Batch:
        """Return what `decode` should give for a batch: normalised numbers and images, codes of categories, tokens."""


@runtime_checkable
class Adversarial(Protocol):
    """A generator, and the judge it has to deceive.

    Attributes:
        noise: Z, numbers that an image is made from.
        classes: of images that it can be told to make; 0: it cannot be told.
        generator, judge: networks, whose parameters move in turn.
    """

    noise: int
    classes: int
    generator: Any
    judge: Any

    def generate(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Return images [B, C, H, W] from −1 to 1 of noise [B, Z] and, where there are classes, labels [B]."""

    def criticise(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Return how real each image [B, C, H, W] looks [B]: a score without bounds."""


@runtime_checkable
class Towers(Protocol):
    """Looks at columns of each kind through a network of its own, before what they say is fused."""

    def tower(self, kind: Kind, batch: Batch) -> Tensor:
        """Return what the network for columns of one kind makes of them, [B, D]; the batch needs no other columns."""


@runtime_checkable
class Patches(Protocol):
    """Reads images patch by patch, also some of the patches alone.

    Attributes:
        patch: pixels of a patch's side.
        grid: patches from top to bottom and from left to right; N is their product, and they stand row by row.
    """

    patch: int
    grid: tuple[int, int]

    def read(self, batch: Batch, kept: Tensor) -> Tensor:
        """Return the vectors [B, k + K, D] of k leading tokens and of the patches at `kept` [B, K], which alone are
        seen."""


@runtime_checkable
class Sampler(Protocol):
    """An objective that makes images."""

    def sample(self, count: int, generator: torch.Generator, label: Tensor | None = None) -> Tensor:
        """Return images [count, C, H, W] from 0 to 1.

        Args:
            generator: all that is random comes from it.
            label: [count], the class of each, where it was trained with classes.
        """


@runtime_checkable
class Embedder(Protocol):
    """An objective whose embedding of a row is not simply the model's pooled features."""

    def embed(self, batch: Batch) -> Tensor:
        """Return a vector for each row, [B, D]: near one another where the rows are alike."""


@runtime_checkable
class Matcher(Protocol):
    """An objective that says which of several texts fits an image."""

    def match(self, images: Batch, texts: Batch) -> Tensor:
        """Return how probable each of C texts is for each of B images, [B, C]."""


class Question(NamedTuple):
    """What a model of texts is asked.

    Attributes:
        read: the batch that it reads.
        wanted: of each text column the token that each place has to tell, [B, T] each, −100 where none is.
        real: of each which places stand for tokens at all, [B, T] bool each.
        written: of a model that reads and writes the tokens that it writes after, [B, T].
    """

    read: Batch
    wanted: tuple[Tensor, ...]
    real: tuple[Tensor, ...]
    written: Tensor | None = None


class Answer(NamedTuple):
    """What a model makes of a question.

    Attributes:
        states: of each text column what it makes of each place, [B, T, D] each.
        penalty: what it asks to be kept small, where it does.
    """

    states: tuple[Tensor, ...]
    penalty: Tensor | None = None


@runtime_checkable
class TokenTeller(Protocol):
    """An objective that tells tokens of texts, so that one can learn to tell them as another does."""

    def ask(self, batch: Batch) -> Question:
        """Return what is asked about a batch; what is random in it is drawn here."""

    def answer(self, question: Question) -> Answer:
        """Return what the model makes of a question, which may be another objective's."""

    def scores(self, states: Tensor, column: int) -> Tensor:
        """Return the scores of all tokens at places of a text column, [N, D] -> [N, V]."""

    def price(self, question: Question, answer: Answer) -> Loss:
        """Return what `losses` does, of this question and answer."""
