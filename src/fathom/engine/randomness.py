"""Random numbers of a run, kept apart from those of whoever runs it.

What is random in a step (dropout, augmentation) is a pure function of (seed, step): PyTorch's generators are seeded
anew before each step. Python's and NumPy's global generators are seeded once, and travel in the checkpoint.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from fathom.engine.order import mix

STEP, GLOBAL = 1, 2  # streams of one seed


def generators(device: torch.device) -> list[torch.Generator]:
    """Return PyTorch's default generators that a step on that device draws from."""
    found = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()
        found.append(torch.cuda.default_generators[device.index or 0])
    elif device.type == "mps":
        found.append(torch.mps._get_default_mps_generator())
    return found


class Randomness:
    """Swaps the process's generators for the run's own while the engine works, and back while the caller does."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self._generators = generators(device)
        first = mix(seed, GLOBAL)
        self._away: Any = (
            [torch.Generator(g.device).manual_seed(first).get_state() for g in self._generators],
            random.Random(first).getstate(),
            np.random.RandomState(first & 0xFFFFFFFF).get_state(),
        )

    def swap(self) -> None:
        """Exchange the process's generators with those kept aside."""
        mine = ([g.get_state() for g in self._generators], random.getstate(), np.random.get_state())
        torches, python, numpy = self._away
        for generator, state in zip(self._generators, torches, strict=True):
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)
        self._away = mine

    def at_step(self, step: int) -> None:
        """Seed PyTorch's generators for a step."""
        seed = mix(self.seed, STEP, step)
        for generator in self._generators:
            generator.manual_seed(seed)

    def state(self) -> dict[str, Any]:
        """Return Python's and NumPy's global state as plain values (PyTorch's is a function of the step)."""
        version, words, gauss = random.getstate()
        legacy: Any = np.random.get_state()
        name, keys, position, has_gauss, cached = legacy
        numpy = [name, keys.tolist(), int(position), int(has_gauss), float(cached)]
        return {"python": [version, list(words), gauss], "numpy": numpy}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
