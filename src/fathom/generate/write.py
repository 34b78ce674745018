"""Prompts as tokens -> texts: the loop over tokens, and the pieces of text as they come.

Script    what is known of a model's texts: how they are spelt, what starts and ends them
stream    yields a piece of text as soon as it is certain
write     the whole texts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fathom.core.errors import ConfigError, DataError
from fathom.core.roles import LanguageModel, Translator
from fathom.core.types import Field
from fathom.generate.beams import search
from fathom.generate.choose import choose
from fathom.generate.halves import lightened
from fathom.generate.pens import Answering, Continuing, Pen, Prompts
from fathom.generate.pieces import Pieces
from fathom.generate.settings import Settings

Reason = Literal["end", "stop", "length"]


@dataclass(frozen=True)
class Script:
    """What is known of a model's texts.

    Attributes:
        decode: tokens that were written -> their text.
        read: the field of the prompts.
        ends: tokens that end a text.
        start: the token that a translator begins with.
    """

    decode: Callable[[list[int]], str]
    read: Field
    ends: frozenset[int] = frozenset()
    start: int = -1


@dataclass(frozen=True)
class Text:
    """What was written.

    Attributes:
        text: without the prompt.
        tokens: those that were written, without the one that ended it.
        reason: what ended it: the model, a stop text, or the most tokens.
    """

    text: str
    tokens: tuple[int, ...]
    reason: Reason


@dataclass(frozen=True)
class Piece:
    """A piece of row `row`'s text; `token` made it certain, or None: the row has ended, for the given reason."""

    row: int
    text: str
    token: int | None
    reason: Reason | None = None


def write(model: Any, prompts: Prompts, script: Script, settings: Settings) -> list[Text]:
    """Return what the model writes to each prompt, in their order; see `stream`."""
    texts, tokens = [""] * len(prompts), [list[int]() for _ in prompts]
    reasons: list[Reason] = ["length"] * len(prompts)
    for piece in stream(model, prompts, script, settings):
        texts[piece.row] += piece.text
        if piece.token is not None:
            tokens[piece.row].append(piece.token)
        reasons[piece.row] = piece.reason or reasons[piece.row]
    return [Text(*parts) for parts in zip(texts, map(tuple, tokens), reasons, strict=True)]


def stream(model: Any, prompts: Prompts, script: Script, settings: Settings) -> Iterator[Piece]:
    """Yield the texts that the model writes to all prompts at once, piece by piece as they become certain.

    Of beams nothing is certain before the end. The model must be in evaluation mode.

    Raises:
        ConfigError: the model does not write texts. DataError: a prompt is empty, or leaves no room in the context.
    """
    tokens = _room(model, prompts, settings.tokens)
    if tokens < settings.tokens:
        settings = Settings(**{**vars(settings), "tokens": tokens})
    before = [()] * len(prompts) if isinstance(model, Translator) else list(prompts)
    texts = [Pieces(script.decode, settings.stop, prompt) for prompt in before]
    ended: list[Reason | None] = [None] * len(prompts)
    for step in _steps(model, prompts, script, settings, ended):
        for row, token in enumerate(step):
            if ended[row] or token is None:
                continue
            if token in script.ends:
                ended[row] = "end"
                continue
            piece = texts[row].add(token)
            yield Piece(row, piece, token)
            if texts[row].stopped:
                ended[row] = "stop"
    for row, text in enumerate(texts):
        rest = text.close()
        yield Piece(row, rest, None, "stop" if text.stopped else ended[row] or "length")


def _room(model: Any, prompts: Prompts, wanted: int) -> int:
    """Return how many tokens can be written, at most as many as are wanted."""
    if isinstance(model, Translator):
        return min(wanted, model.context - 1) if model.context > 1 else wanted
    if not isinstance(model, LanguageModel):
        raise ConfigError(
            f"A model of type {type(model).__name__} does not write texts; a language model such as gpt or llama does, "
            "or an encoder and decoder such as t5."
        )
    longest = max(map(len, prompts), default=0)
    if not all(prompts):
        raise DataError("A prompt is empty, and the model has no token that starts a text: give a word to begin with.")
    if longest >= model.context:
        raise DataError(
            f"A prompt has {longest} tokens; the model's context of {model.context} leaves no room to write."
        )
    return min(wanted, model.context - longest)


@torch.inference_mode()
def _steps(
    model: Any, prompts: Prompts, script: Script, settings: Settings, ended: Sequence[Reason | None]
) -> Iterator[list[int | None]]:
    """Yield one token of each row, until all rows have ended: by what the caller notes in `ended`, or by length."""
    pen, rows = _pen(model, prompts, script, settings), len(prompts)
    if settings.beams > 1:
        yield from _side_by_side(search(pen, rows, settings, script.ends), script)
        return
    draw = torch.Generator().manual_seed(settings.seed)
    scores = pen.first()
    for left in range(settings.tokens - 1, -1, -1):
        chosen: Tensor = choose(scores, settings, draw)
        yield chosen.tolist()
        if left == 0 or all(ended):
            return
        scores = pen.next(chosen)


def _pen(model: Any, prompts: Prompts, script: Script, settings: Settings) -> Pen:
    device = next(model.parameters()).device
    if isinstance(model, Translator):
        return Answering(model, prompts, script.read, script.start, settings.tokens, settings.beams, device)
    pen = Continuing(model, prompts, settings.tokens, settings.beams, device)
    return lightened(pen, settings) if settings.beams == 1 else pen


def _side_by_side(found: list[tuple[list[int], bool]], script: Script) -> Iterator[list[int | None]]:
    """Yield whole texts as if they came token by token."""
    end = min(script.ends, default=-1)
    whole = [[*tokens, end] if by_end else tokens for tokens, by_end in found]
    for place in range(max(map(len, whole), default=0)):
        yield [tokens[place] if place < len(tokens) else None for tokens in whole]
