"""Which token comes next: the most probable, or one that is drawn.

    filtered    scores -> log probabilities of the tokens that may be drawn
    choose      scores -> tokens

Source: top-k: Fan, Lewis, Dauphin, Hierarchical Neural Story Generation, 2018; top-p: Holtzman, Buys, Du, Forbes, Choi,
The Curious Case of Neural Text Degeneration, 2020.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fathom.generate.settings import Settings


def choose(scores: Tensor, settings: Settings, draw: torch.Generator) -> Tensor:
    """Return the next token of each row: [B, V] -> [B]."""
    if settings.temperature == 0:
        return scores.argmax(-1)
    chances = filtered(scores.float(), settings.temperature, settings.top_k, settings.top_p).exp()
    # Of clocks that ring at exponential times, the first to ring is token i with its probability.
    times = torch.empty(chances.shape).exponential_(generator=draw).to(chances.device)
    return (chances / times).argmax(-1)


def filtered(scores: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Return the log probabilities of the tokens that may be drawn, −∞ for the others: [B, V] -> [B, V].

    Args:
        temperature: above 0; below 1 makes probable tokens more so.
        top_k: the most probable tokens that stay; 0: all.
        top_p: the fewest most probable tokens that have this probability together stay, at least one.
    """
    scores = scores / temperature
    if 0 < top_k < scores.shape[-1]:
        least = scores.topk(top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -math.inf)
    if top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True)
        chances = ordered.softmax(-1)
        before = chances.cumsum(-1) - chances  # of all that are more probable
        lost = (before >= top_p).index_fill(-1, torch.zeros(1, dtype=torch.long, device=scores.device), False)
        scores = scores.masked_fill(torch.zeros_like(lost).scatter(-1, order, lost), -math.inf)
    return scores.log_softmax(-1)
