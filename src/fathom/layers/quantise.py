"""Codes of whole numbers: each group of a code's numbers becomes the nearest vector of a codebook.

    Quantiser   codes [B, Z] -> the nearest vectors [B, Z], through which the gradient passes as if nothing were changed

The codebook is learned without gradients: each vector is the mean of the codes that chose it, over many steps past.
Those means are kept as sums and counts that trail each step's own (`averages`), so that a step whose gradient is
gathered from several micro-batches sees one codebook, and moves it once.

Source: van den Oord, Vinyals, Kavukcuoglu, Neural Discrete Representation Learning, 2017 (the means: appendix A.1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fathom.core.types import Average

SMOOTHING = 1e-5  # added to counts, so that a vector that nobody chooses stays finite


class Tally(nn.Module):
    """Of each codebook vector: how often it was chosen, and the sum of the codes that chose it.

    Attributes:
        counts: [G, K].
        sums: [G, K, Z / G].
        step: how many steps were tallied.
    """

    step: Tensor

    def __init__(self, groups: int, entries: int, size: int) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.ones(groups, entries), requires_grad=False)
        self.sums = nn.Parameter(torch.randn(groups, entries, size), requires_grad=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))


class Quantiser(nn.Module):
    """G codebooks of K vectors, one for each Z / G numbers of a code.

    Args:
        code: Z.
        groups: G, which divides Z.
        entries: K.
        decay: of the means, from one step to the next.
    """

    def __init__(self, code: int, groups: int, entries: int, decay: float) -> None:
        super().__init__()
        self.groups, self.entries, self.decay = groups, entries, decay
        self.kept = Tally(groups, entries, code // groups)
        self.now = Tally(groups, entries, code // groups)  # of the present step alone
        self.now.load_state_dict(self.kept.state_dict())

    def averages(self) -> tuple[Average, ...]:
        """Return what the engine does after each step: the kept tallies move towards the step's own."""
        return (Average(self.now, self.kept, self.decay),)

    def codebook(self) -> Tensor:
        """Return the vectors [G, K, Z / G]."""
        total = self.kept.counts.sum(1, keepdim=True)
        smooth = (self.kept.counts + SMOOTHING) / (total + self.entries * SMOOTHING) * total
        return self.kept.sums / smooth[..., None]

    def choose(self, code: Tensor) -> Tensor:
        """Return which vectors are nearest: [B, Z] -> [B, G] int64."""
        grouped = self._grouped(code.detach())
        book = self.codebook().to(grouped.dtype)
        return torch.cdist(grouped, book, compute_mode="donot_use_mm_for_euclid_dist").argmin(2).T

    def vectors(self, chosen: Tensor) -> Tensor:
        """Return the vectors of such numbers: [B, G] -> [B, Z]."""
        groups = torch.arange(self.groups, device=chosen.device)
        return self.codebook()[groups, chosen].flatten(1)

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nearest vectors [B, Z], how far each code is from them, squared and summed [B], and which [B, G].

        In training the codes are tallied, and the first ones become the codebook.
        """
        if self.training:
            self._begin(code.detach())
        chosen = self.choose(code)
        nearest = self.vectors(chosen).to(code.dtype)
        if self.training:
            self._tally(code.detach(), chosen)
        far = (code - nearest).square().sum(1)  # moves the code alone: the codebook has no gradient
        return code + (nearest - code).detach(), far, chosen

    def usage(self) -> Tensor:
        """Return by how many vectors, of equal use, each group would be described as well: exp of the entropy, [G]."""
        shares = self.kept.counts / self.kept.counts.sum(1, keepdim=True)
        return torch.special.entr(shares).sum(1).exp()

    def _grouped(self, code: Tensor) -> Tensor:
        return code.float().unflatten(1, (self.groups, -1)).transpose(0, 1)  # [G, B, Z / G]

    @torch.no_grad()
    def _begin(self, code: Tensor) -> None:
        """Let codes of the first batch, drawn by chance, be the first codebook."""
        rows = torch.randint(len(code), (self.groups, self.entries), device=code.device)
        groups = torch.arange(self.groups, device=code.device)[:, None]
        first = (self.kept.step == 0) & (self.now.step == 0)
        self.kept.sums.copy_(torch.where(first, self._grouped(code)[groups, rows], self.kept.sums))

    @torch.no_grad()
    def _tally(self, code: Tensor, chosen: Tensor) -> None:
        """Add the codes to this step's tallies, which begin anew once the step before was taken over into the kept."""
        again = (self.now.step != self.kept.step).float()  # another micro-batch of the same step
        self.now.step.copy_(self.kept.step + 1)
        ones = torch.zeros_like(self.now.counts).scatter_add_(1, chosen.T, torch.ones_like(chosen.T, dtype=torch.float))
        grouped = self._grouped(code).nan_to_num(0.0, 0.0, 0.0)  # a step that is refused must not poison the means
        where = chosen.T[..., None].expand_as(grouped)
        sums = torch.zeros_like(self.now.sums).scatter_add_(1, where, grouped)
        self.now.counts.copy_(self.now.counts * again + ones)
        self.now.sums.copy_(self.now.sums * again + sums)
