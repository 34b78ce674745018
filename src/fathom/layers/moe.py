"""A mixture of experts: of many networks each token is sent through a few, so that weights grow and work does not.

    MixtureOfExperts   a router, and the experts that it chooses from
    unevenness         how unevenly tokens are spread over experts, to be kept small in training

Sources: Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton, Dean, Outrageously Large Neural Networks: The Sparsely-Gated
Mixture-of-Experts Layer, 2017; Fedus, Zoph, Shazeer, Switch Transformers, 2021 (the balance); Jiang et al., Mixtral of
Experts, 2024 (weights by a softmax over the chosen alone).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.errors import ConfigError


class MixtureOfExperts(nn.Module):
    """Σ over the k chosen experts e of weight[e] · expert_e(x): [..., D] -> [..., D].

    Args:
        width: D.
        hidden: units of each expert between its two layers.
        experts: E.
        active: k, how many a token is sent through.
        gated: experts are (silu(x·G) ⊙ x·A)·B, with G and A in `expand`; otherwise gelu(x·A)·B. None has a bias.

    Raises:
        ConfigError: not 1 ≤ active ≤ experts.
    """

    def __init__(self, width: int, hidden: int, experts: int, active: int, gated: bool = True) -> None:
        super().__init__()
        if not 1 <= active <= experts:
            raise ConfigError(
                f"Option 'model.active' was given {active}; expected 1 to {experts}, the number of model.experts."
            )
        self.active, self.gated = active, gated
        self.router = nn.Linear(width, experts, bias=False)
        self.expand = nn.Parameter(torch.empty(experts, (1 + gated) * hidden, width).normal_(std=0.02))
        self.contract = nn.Parameter(torch.empty(experts, width, hidden).normal_(std=0.02))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the chosen experts give out, and the router's scores [..., E], for `unevenness`."""
        flat = x.reshape(-1, x.shape[-1])  # [N, D]
        scores = self.router(flat)  # [N, E]
        best, chosen = scores.float().topk(self.active, dim=-1)  # [N, k]
        weights = best.softmax(-1)
        # How many tokens an expert gets hangs on the data, and a graph's shapes may not.
        whole = torch.compiler.is_compiling()
        found = self._each(flat, chosen, weights) if whole else self._grouped(flat, chosen, weights)
        return found.reshape(x.shape), scores.unflatten(0, x.shape[:-1])

    def _grouped(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Send each expert its own tokens, laid one behind the other."""
        order = chosen.flatten().argsort(stable=True)  # [N·k], places in [N, k] by expert
        counts = chosen.flatten().bincount(minlength=len(self.expand)).tolist()
        parts = x.index_select(0, order // self.active).split(counts)
        experts = zip(parts, self.expand.unbind(), self.contract.unbind(), strict=True)
        found = torch.cat([self._expert(*expert) for expert in experts if len(expert[0])])
        back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        found = found.index_select(0, back).unflatten(0, chosen.shape)  # [N, k, D]
        # As products of matrices so small it would take three times as long.
        return (found * weights[..., None].to(found.dtype)).sum(1)

    def _each(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Send every expert all tokens, and leave out of each what was not chosen."""
        gates = weights.new_zeros(len(x), len(self.expand)).scatter(1, chosen, weights)  # [N, E]
        experts = zip(gates.unbind(1), self.expand.unbind(), self.contract.unbind(), strict=True)
        found = [self._expert(x, expand, contract) * gate[:, None] for gate, expand, contract in experts]
        return torch.stack(found).sum(0).to(x.dtype)

    def _expert(self, x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
        hidden = F.linear(x, expand)
        if not self.gated:
            return F.linear(F.gelu(hidden, approximate="tanh"), contract)
        gate, up = hidden.chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, contract)


def unevenness(routed: list[Tensor], active: int, real: Tensor) -> Tensor:
    """Return E · Σ over experts of (share of tokens sent to it) · (mean probability of it), a mean over layers: scalar.

    It is `active` where tokens are spread evenly, and more where few experts get them. Its gradient flows through the
    probabilities alone.

    Args:
        routed: of each layer its router's scores [B, T, E].
        active: how many experts a token is sent through.
        real: [B, T], false at padding, which does not count.
    """
    return torch.stack([_unevenness(scores, active, real) for scores in routed]).mean()


def _unevenness(scores: Tensor, active: int, real: Tensor) -> Tensor:
    probability = scores.float().softmax(-1).flatten(0, 1)  # [N, E]
    chosen = probability.topk(active, dim=-1).indices
    sent = torch.zeros_like(probability).scatter(1, chosen, 1.0)
    weight = real.flatten() / real.sum().clamp_min(1)  # [N]
    return scores.shape[-1] * ((weight @ sent) * (weight @ probability)).sum()
