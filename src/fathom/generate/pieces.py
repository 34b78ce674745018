"""From tokens, as they come, to pieces of text that never break a character and never show a stop text.

A character may be spread over several tokens, and a token's text may hang on the one before it (a space that only shows
between words). So a few tokens are decoded together, and only what is new and whole is given out. The beginning of
what may become a stop text is held back until it is clear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes that are not a whole character decode to
BEFORE = 8  # tokens of the prompt that the first one's text may hang on


class Pieces:
    """The text of one row.

    Args:
        decode: tokens -> their text.
        stop: texts that end it.
        before: tokens that stand before the first.

    Attributes:
        stopped: whether a stop text has come.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        self.decode, self.stop, self.stopped = decode, tuple(stop), False
        self._tokens, self._start = list(before)[-BEFORE:], 0
        self._read = len(self._tokens)  # tokens whose text is known
        self._held = ""

    def add(self, token: int) -> str:
        """Take in a token and return the text that it makes certain, often but not always its own."""
        self._tokens.append(token)
        text = self._new()
        if text.endswith(BROKEN):
            return ""
        if text:  # after a token that shows nothing, what comes next still hangs on what came before it
            self._start = self._read
        self._read = len(self._tokens)
        return self._released(text)

    def close(self) -> str:
        """Return what was held back; no more tokens will come."""
        text = "" if self.stopped else self._new()
        self._read = len(self._tokens)
        released = self._released(text)
        held, self._held = self._held, ""
        return released if self.stopped else released + held

    def _new(self) -> str:
        """Return the text of the tokens that are not read yet."""
        known = self.decode(self._tokens[self._start : self._read]) if self._read > self._start else ""
        whole = self.decode(self._tokens[self._start :]) if len(self._tokens) > self._start else ""
        return whole[len(known) :]

    def _released(self, text: str) -> str:
        """Return what can be shown of the text so far; what may begin a stop text is held back."""
        text = self._held + text
        found = [place for place in map(text.find, self.stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of `text` are the first of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
