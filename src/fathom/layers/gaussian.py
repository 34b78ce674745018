"""Codes that are drawn from a Gaussian whose coordinates are independent, as in a variational autoencoder.

    kl_to_standard   how far such a Gaussian is from the standard one
    draw             a sample, through which the gradient passes

Source: Kingma, Welling, Auto-Encoding Variational Bayes, 2014 (the divergence: appendix B).
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_to_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the divergence KL(N(mean, variance) ‖ N(0, 1)), summed over the code: twice [..., Z] -> [...], in nats.

    ½ Σ (μ² + σ² − log σ² − 1); σ² − 1 is taken together, so that what is near zero keeps its digits.
    """
    return 0.5 * (mean.square() + log_variance.expm1() - log_variance).sum(-1)


def draw(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return mean + noise · standard deviation, [..., Z], from torch's default generator."""
    return torch.addcmul(mean, torch.randn_like(mean), (0.5 * log_variance).exp())
