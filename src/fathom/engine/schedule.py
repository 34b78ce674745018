"""The learning rate over the run, as a share of its highest value."""

from __future__ import annotations

import math


def factor(progress: float, kind: str, warmup: float) -> float:
    """Return the share of the peak learning rate at `progress` of the run, both in [0, 1].

    It rises along a line during the first `warmup` of the run, then falls to zero at the run's end: along half a
    cosine (Loshchilov, Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017), along a line, or not.
    """
    if progress < warmup:
        return progress / warmup
    if kind == "constant":
        return 1.0
    rest = min(1.0, (progress - warmup) / (1 - warmup)) if warmup < 1 else 0.0
    return 0.5 * (1 + math.cos(math.pi * rest)) if kind == "cosine" else 1 - rest


def decay(progress: float, first: float, last: float | None) -> float:
    """Return a moving average's decay at `progress` of the run: from `first` to `last` along half a cosine.

    Source: Grill et al., Bootstrap Your Own Latent, 2020.
    """
    return first if last is None else last - (last - first) * 0.5 * (1 + math.cos(math.pi * progress))
