"""Ctrl-C and SIGTERM, held back until a step is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

HELD = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, notes signals instead of delivering them, so that no step is cut in half.

    A second Ctrl-C is delivered at once. Signals can only be held in the main thread; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in HELD:
            handler = signal.getsignal(number)
            if handler is not None and handler != signal.SIG_IGN:
                self._handlers[number] = handler
                signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def deliver(self) -> None:
        """Deliver what was held back to whom it was meant for."""
        number, self.pending = self.pending, None
        if number is not None:
            signal.raise_signal(number)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.pending == signal.SIGINT == number:
            self.pending = None
            raise KeyboardInterrupt
        self.pending = number
