"""Tokenizers that came with published weights: texts are read as those weights learned to read them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from fathom.core.errors import ArtifactError
from fathom.core.types import END, MASK, PAD, START, UNK

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK = 16_384  # texts encoded at once
ROLES = (("pad",), ("unk",), ("bos", "cls"), ("eos", "sep"), ("mask",))  # as transformers names special tokens


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer that is known beforehand.

    Attributes:
        tokenizer: the contents of its `tokenizer.json`.
        special: the tokens for padding, the unknown, start, end and a masked token; −1 where there is none.
        published: whether it is not one of ours.
    """

    tokenizer: str
    special: tuple[int, int, int, int, int] = (PAD, UNK, START, END, MASK)
    published: bool = False


def vocabulary(tokenizer: str, names: dict[str, str]) -> Vocabulary:
    """Return the vocabulary of a published `tokenizer.json`.

    Where it has no token for padding, the end of text stands in: behind the last real token nothing looks at it.

    Args:
        names: special tokens by their roles, such as {"pad_token": "[PAD]"}.

    Raises:
        ArtifactError: it cannot be read.
    """
    found = _read(tokenizer)
    places = []
    for roles in ROLES:
        ids = [found.token_to_id(names[f"{role}_token"]) for role in roles if f"{role}_token" in names]
        places.append(next((place for place in ids if place is not None), -1))
    padding = found.padding or {}
    if places[0] < 0:
        places[0] = padding["pad_id"] if padding else max(places[3], 0)
    return Vocabulary(tokenizer, tuple(places), published=True)  # type: ignore[arg-type]


def tokenizer(text: str, length: int, special: tuple[int, ...]) -> Tokenizer:
    """Return the tokenizer, cutting texts at `length` tokens and filling the shorter ones up.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        found = _read(text)
    except ArtifactError as error:
        raise ValueError(str(error)) from None
    if not min(special) >= -1 or not 0 <= special[0] <= max(special) < found.get_vocab_size():
        raise ValueError("its special tokens are not in its vocabulary")
    found.enable_truncation(length)
    found.enable_padding(length=length, pad_id=special[0], pad_token=found.id_to_token(special[0]))
    return found


def encode(tokenizer: Tokenizer, texts: pl.Series, tokens: np.ndarray) -> int:
    """Write the tokens of each text to `tokens` [N, T]; return how many texts were cut."""
    cut = 0
    for start in range(0, len(texts), CHUNK):
        some = tokenizer.encode_batch(texts.slice(start, CHUNK).to_list())
        tokens[start : start + len(some)] = [text.ids for text in some]
        cut += sum(bool(text.overflowing) for text in some)
    return cut


def sizes(tokenizer: str, texts: pl.Series) -> np.ndarray:
    """Return how many tokens each text has, start and end included."""
    found = _read(tokenizer)
    found.no_truncation()
    found.no_padding()
    return np.array([len(text.ids) for text in found.encode_batch_fast(texts.to_list())])


def token_bytes(tokenizer: str) -> tuple[int, ...]:
    """Return how many bytes of a text each token stands for, if the tokenizer spells bytes as letters; else nothing."""
    if '"ByteLevel"' not in json.dumps(json.loads(tokenizer).get("pre_tokenizer")):
        return ()
    found = _read(tokenizer)
    spelt, added = found.get_vocab(), found.get_added_tokens_decoder()
    return tuple(0 if token in added else len(name) for name, token in sorted(spelt.items(), key=lambda item: item[1]))


def _read(text: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except BaseException as error:  # what Rust panics with is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ArtifactError(f"The tokenizer cannot be read: {str(error)[:200]}.") from None
