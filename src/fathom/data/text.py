"""Text columns: a byte-pair tokenizer learned from the training rows, and texts as rows of tokens.

Byte-pair encoding: Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units", 2016;
over bytes, so that no character is unknown: Radford et al., "Language models are unsupervised multitask learners",
2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import polars as pl

from fathom.core.types import END, MASK, PAD, SPECIAL_TOKENS, START, UNK, Field
from fathom.data import _published
from fathom.data._categories import codes
from fathom.data._published import Vocabulary
from fathom.data._values import labels

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import Model

# Words with their marks and inner apostrophes, numbers and runs of signs, each with the space before it; other blanks.
# Every character is in exactly one piece, so that texts can be put together again.
PIECE = r" ?[\p{L}\p{M}]+(?:['’][\p{L}\p{M}]+)*| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|[^\S ]+| "
CAP = 512  # tokens kept of a text unless the user says otherwise
PROBE = 10_000  # texts measured to choose the length
LEARNED = 5_000_000  # characters that a tokenizer learns from, about
LONGEST_TOKEN = 24  # characters; longer runs (rules of dashes, encoded files) would waste the vocabulary
PER_TOKEN = LONGEST_TOKEN  # characters beyond length · PER_TOKEN cannot matter
CHUNK = 16_384  # texts encoded at once
LARGEST_VOCABULARY = 1_000_000


class _Model(msgspec.Struct):
    type: Literal["BPE"]
    vocab: dict[str, int]
    merges: list[tuple[str, str]]


class _File(msgspec.Struct):
    model: _Model


def texts(series: pl.Series, longest: int) -> pl.Series:
    """Return each value as text of at most `longest` characters, composed (NFC), a space before it unless empty.

    The space makes a text's first word the same as it is elsewhere.
    """
    plain = labels(series).fill_null("").str.slice(0, longest).str.normalize()
    return (pl.Series([" "]) + plain).replace({" ": ""})


def learn_tokenizer(sample: pl.Series, vocabulary: int, case: str) -> str:
    """Return a tokenizer learned from `sample`, as the JSON of a `tokenizer.json`.

    The same texts give the same tokenizer, however many threads count them.
    """
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = _tokenizer(models.BPE(), case)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    step = math.ceil(sample.str.len_chars().sum() / LEARNED) or 1
    tokenizer.train_from_iterator(sample.gather_every(step).to_list(), trainer)
    return tokenizer.to_str()


def learn_together(columns: Sequence[pl.Series], sample: np.ndarray, vocabulary: int, case: str) -> Vocabulary:
    """Return the tokens of all these columns, learned from the rows at `sample` of each.

    Texts that are to be written and those that they are written from share them, so that names, numbers and words of
    the same origin are spelt alike in both.
    """
    drawn = pl.concat([texts(column.gather(sample), CAP * PER_TOKEN) for column in columns])
    return Vocabulary(tokenizer=learn_tokenizer(drawn, vocabulary, case))


def _tokenizer(model: Model, case: str) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if case == "lower" else [])]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A text column: rows of tokens, START … END, then padding; longer texts lose their end.

    START and END stand in every row, so that no row is empty.

    Attributes:
        tokenizer: the contents of its `tokenizer.json`.
        length: T, tokens in a row, START and END included.
        frequencies: share of training rows that hold each token.
        occurrences: how often each token stands in the training rows.
        bytes: of a text that each token stands for, where known; −1 for START, behind which `texts` puts a space.
        special: the tokens for padding, the unknown, start, end and a masked token; −1 where there is none.
        published: whether the tokenizer came with published weights, and so is not one of ours.
    """

    column: str
    case: Literal["lower", "keep"]
    length: int
    tokenizer: str
    frequencies: tuple[float, ...] = ()
    occurrences: tuple[int, ...] = ()
    bytes: tuple[int, ...] = ()
    special: tuple[int, int, int, int, int] = (PAD, UNK, START, END, MASK)
    published: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.length <= 65_536 or not all(map(math.isfinite, self.frequencies)):
            raise ValueError("a text has 2 to 65536 tokens and finite frequencies")

    @classmethod
    def fit(
        cls,
        name: str,
        series: pl.Series,
        sample: np.ndarray,
        vocabulary: int,
        case: Literal["lower", "keep"],
        length: int,
        known: Vocabulary | None = None,
    ) -> TextEncoder:
        """Learn the tokenizer, unless one is `known`, and the length, unless it is given, from the training rows at
        `sample`."""
        drawn = texts(series.gather(sample), (length or CAP) * PER_TOKEN)
        known = known or Vocabulary(tokenizer=learn_tokenizer(drawn, vocabulary, case))
        encoder = cls(
            column=name,
            case=case,
            length=length or CAP,
            tokenizer=known.tokenizer,
            special=known.special,
            published=known.published,
        )
        if length:
            return encoder
        probe = drawn.gather_every(math.ceil(len(drawn) / PROBE))
        sizes = encoder._sizes(probe)
        enough = math.ceil(np.quantile(sizes, 0.99, method="higher") / 8) * 8
        return replace(encoder, length=min(CAP, enough))

    @cached_property
    def trained(self) -> Tokenizer:
        """The tokenizer, built anew from nothing but the vocabulary and merges of its file, which are checked.

        Raises:
            ValueError: the file is not a byte-pair tokenizer of ours.
        """
        from tokenizers import models

        if self.published:
            return _published.tokenizer(self.tokenizer, self.length, self.special)
        try:
            model = msgspec.json.decode(self.tokenizer, type=_File).model
        except msgspec.DecodeError as error:
            raise ValueError(f"its tokenizer is not one of byte pairs: {error}") from None
        vocab = model.vocab
        if len(vocab) > LARGEST_VOCABULARY or sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError("its tokenizer's tokens are not numbered from 0 without a gap")
        if tuple(sorted(vocab, key=vocab.__getitem__)[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise ValueError(f"its tokenizer's first tokens are not {', '.join(SPECIAL_TOKENS)}")
        if any(a not in vocab or b not in vocab or a + b not in vocab for a, b in model.merges):
            raise ValueError("its tokenizer merges tokens that are not in its vocabulary")
        return _tokenizer(models.BPE(vocab=vocab, merges=model.merges), self.case)

    @property
    def output(self) -> Field:
        return Field(
            name=self.column,
            kind="text",
            source=self.column,
            shape=(self.length,),
            vocabulary=self.trained.get_vocab_size(),
            special=self.special,
            frequencies=self.frequencies,
            occurrences=self.occurrences,
            bytes=self.bytes,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """What another column needs to be read by the same tokens."""
        return Vocabulary(tokenizer=self.tokenizer, special=self.special, published=self.published)

    def encode(self, series: pl.Series, tokens: np.ndarray) -> int:
        """Write token ids to `tokens` [N, T] (int32); return how many texts were cut."""
        if self.published:
            return _published.encode(self.trained, labels(series).fill_null(""), tokens)
        cut, room = 0, self.length - 2
        tokens[:] = PAD
        tokens[:, 0] = START
        for start in range(0, len(series), CHUNK):
            part = tokens[start : start + CHUNK]
            rows, ids = self._tokens(texts(series.slice(start, CHUNK), self.length * PER_TOKEN))
            sizes = np.bincount(rows, minlength=len(part))  # [N], tokens of each text
            places = np.arange(len(rows)) - np.repeat(sizes.cumsum() - sizes, sizes)
            kept = places < room
            part[rows[kept], places[kept] + 1] = ids[kept]
            part[np.arange(len(part)), np.minimum(sizes, room) + 1] = END
            cut += int((sizes > room).sum())
        return cut

    def decode(self, tokens: np.ndarray) -> list[str]:
        """Return the texts of rows of tokens [N, T]: all before END, and what is left of texts cut short."""
        special, end = set(self.special), self.special[3]
        rows = []
        for row in tokens.tolist():
            row = row[1:] if row and row[0] == self.special[2] else row
            row = row[: row.index(end)] if end in row else row
            rows.append([token for token in row if token not in special])
        return [text.removeprefix(" ") for text in self.trained.decode_batch(rows, skip_special_tokens=False)]

    def _sizes(self, probe: pl.Series) -> np.ndarray:
        """Return how many tokens each of these texts has, as `texts` returns them."""
        if self.published:
            return _published.sizes(self.tokenizer, probe)
        return np.bincount(self._tokens(probe)[0], minlength=len(probe)) + 2

    def _tokens(self, chunk: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """Return (row, token) of every token of these texts, in order.

        Texts are made of the same words again and again: each different piece is tokenized once.
        """
        pieces = chunk.str.extract_all(PIECE)
        every = pieces.list.explode().drop_nulls()
        different = every.unique(maintain_order=True)
        found = [piece.ids for piece in self.trained.encode_batch_fast(different.to_list(), add_special_tokens=False)]
        sizes = np.array([len(ids) for ids in found], dtype=np.int64)  # of each different piece
        vocabulary = np.array([token for ids in found for token in ids], dtype=np.int32)  # their tokens, one by one
        which = codes(every, pl.Enum(different))  # [P]
        count = sizes[which]
        first = (sizes.cumsum() - sizes)[which]
        ids = vocabulary[np.repeat(first - (count.cumsum() - count), count) + np.arange(count.sum())]
        rows = np.repeat(np.arange(len(chunk)), pieces.list.len().to_numpy())  # [P]
        return np.repeat(rows, count), ids

    def measured(self, tokens: np.ndarray) -> TextEncoder:
        """Return this encoder with the sizes of tokens and how often they stand in training rows `tokens` [N, T]."""
        size = self.trained.get_vocab_size()
        held, seen = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        for start in range(0, len(tokens), CHUNK):
            rows = np.sort(tokens[start : start + CHUNK], axis=1)
            first = np.ones(rows.shape, dtype=bool)  # the first of equal tokens in a row
            first[:, 1:] = rows[:, 1:] != rows[:, :-1]
            held += np.bincount(rows[first], minlength=size)
            seen += np.bincount(rows.ravel(), minlength=size)
        frequencies = tuple((held / max(1, len(tokens))).round(7).tolist())
        return replace(self, frequencies=frequencies, occurrences=tuple(seen.tolist()), bytes=self._token_bytes())

    def _token_bytes(self) -> tuple[int, ...]:
        """Return how many bytes each token stands for: byte pairs spell a byte as a letter."""
        if self.published:
            return _published.token_bytes(self.tokenizer)
        spelt = self.trained.get_vocab()
        sizes = [len(token) for token in sorted(spelt, key=spelt.__getitem__)]
        return (0, 0, -1, 0, 0, *sizes[len(SPECIAL_TOKENS) :])
