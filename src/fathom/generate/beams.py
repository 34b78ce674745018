"""Beam search: several unfinished texts of each prompt side by side, of which the most probable go on.

A text that ends is set aside with its log probability divided by its length to the power of a penalty. A prompt is done
once it has as many ended texts as beams and the best unfinished one, judged as if it ended now, beats none of them.

Source: Lowerre, The Harpy Speech Recognition System, 1976; the lengths: Wu et al., Google's Neural Machine Translation
System, 2016. The order in which texts are ended and kept is that of transformers, so that results are the same.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fathom.generate.pens import Pen
from fathom.generate.settings import Settings

NEVER = -1e9  # log probability of what cannot be


@dataclass
class Search:
    """What is found of one prompt.

    Attributes:
        ended: (score, tokens, whether by an end token), the best ones so far.
        open: whether better ones may come.
    """

    ended: list[tuple[float, list[int], bool]] = field(default_factory=list)
    open: bool = True

    def end(self, score: float, tokens: list[int], whole: bool, beams: int) -> None:
        """Keep an ended text if it is among the best."""
        self.ended = sorted([*self.ended, (score, tokens, whole)], key=lambda found: -found[0])[:beams]

    def judge(self, best: float, beams: int) -> None:
        """Close the search if an unfinished text of score `best` would not be kept."""
        self.open = self.open and (len(self.ended) < beams or best > self.ended[-1][0])


def search(pen: Pen, rows: int, settings: Settings, ends: Set[int]) -> list[tuple[list[int], bool]]:
    """Return the best text of each of the pen's `rows` prompts, without its end token, and whether it had one."""
    beams, scores = settings.beams, pen.first()
    searches = [Search() for _ in range(rows)]
    sums = torch.full((rows, beams), NEVER, device=scores.device)  # log probabilities of the unfinished texts
    sums[:, 0] = 0.0  # in the beginning all are the same: one of them goes on
    texts: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(rows)]
    for length in range(1, settings.tokens + 1):
        found, origins, tokens = _candidates(scores, sums, beams, len(ends))
        weight, last = length**settings.length_penalty, length == settings.tokens
        chosen = []
        for row, each in enumerate(searches):
            kept = []
            for rank, (total, origin, token) in enumerate(zip(found[row], origins[row], tokens[row], strict=True)):
                if token not in ends and not last:
                    kept.append((total, origin, token))
                elif rank < beams and each.open:
                    text = texts[row][origin] + ([] if token in ends else [token])
                    each.end(total / weight, text, token in ends, beams)
            chosen.append(kept[:beams])
            if not last:
                each.judge(kept[0][0] / weight, beams)
        if last or not any(each.open for each in searches):
            break
        texts = [[texts[row][o] + [t] for _, o, t in kept] for row, kept in enumerate(chosen)]
        sums = torch.tensor([[total for total, *_ in kept] for kept in chosen], device=scores.device)
        pen.reorder(_flat([[origin for _, origin, _ in kept] for kept in chosen], beams, scores.device))
        scores = pen.next(torch.tensor([token for kept in chosen for *_, token in kept], device=scores.device))
    return [(each.ended[0][1], each.ended[0][2]) for each in searches]


def _candidates(
    scores: Tensor, sums: Tensor, beams: int, ends: int
) -> tuple[list[list[float]], list[list[int]], list[list[int]]]:
    """Return the most probable next steps of each prompt: log probability, the beam that it continues, the token.

    Enough of them that, however many end, as many as there are beams go on.
    """
    chances = scores.float().log_softmax(-1).unflatten(0, (-1, beams)) + sums[..., None]  # [B, K, V]
    vocabulary = chances.shape[-1]
    count = min(max(2, 1 + ends) * beams, beams * vocabulary)
    found, places = chances.flatten(1).topk(count, dim=1)
    return found.tolist(), (places // vocabulary).tolist(), (places % vocabulary).tolist()


def _flat(origins: list[list[int]], beams: int, device: torch.device) -> Tensor:
    """Return the row among all that each beam goes on from."""
    return torch.tensor([row * beams + origin for row, kept in enumerate(origins) for origin in kept], device=device)
