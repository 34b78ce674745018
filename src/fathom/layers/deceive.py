"""What a generator and its judge pay: scores of real and of made images, without bounds, into losses.

judged, deceived   the judge's loss, and the generator's: each image's cost [B]
slopes             how fast a judge's score changes with the image [B]
energy_distance    how far two sets of images are apart, without any judge

kind             judge                                    generator
non_saturating   log(1 + e^−real) + log(1 + e^made)       log(1 + e^−made)      Goodfellow et al., 2014
hinge            max(0, 1 − real) + max(0, 1 + made)      −made                 Lim, Ye, 2017; Miyato et al., 2018
wasserstein      made − real                              −made                 Arjovsky, Chintala, Bottou, 2017
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["non_saturating", "hinge", "wasserstein"]


def judged(real: Tensor, made: Tensor, kind: Kind) -> Tensor:
    """Return what the judge pays for scores of real and made images: twice [B] -> [B]."""
    if kind == "hinge":
        return F.relu(1 - real) + F.relu(1 + made)
    return made - real if kind == "wasserstein" else F.softplus(-real) + F.softplus(made)


def deceived(made: Tensor, kind: Kind) -> Tensor:
    """Return what the generator pays for scores of its images: [B] -> [B]."""
    return F.softplus(-made) if kind == "non_saturating" else -made


def slopes(judge: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Return the length of the gradient of each image's score [B], through which gradients pass in turn.

    Args:
        judge: images [B, C, H, W] -> scores [B], of which each depends on its own image alone.
    """
    image = image.detach().requires_grad_()
    with torch.enable_grad(), torch.autocast(image.device.type, enabled=False):
        score = judge(image)
        (gradient,) = torch.autograd.grad(score.sum(), image, create_graph=True)
    # The length of no gradient at all has none of its own: a tiny square keeps it finite.
    return (gradient.square().flatten(1).sum(1) + 1e-24).sqrt()


def energy_distance(real: Tensor, made: Tensor) -> Tensor:
    """Return each real image's share [B] of the energy distance between two sets of images [B, …] and [M, …].

    Its mean over real images is 2·E|r − m| − E|r − r'| − E|m − m'|, without bias: zero where both sets are of one kind,
    and above it otherwise, also where the made images are good but all alike. Distances are root mean squares over
    pixels. Source: Székely, Rizzo, Energy Statistics, 2013.
    """
    real, made = real.float().flatten(1), made.float().flatten(1)
    scale = real.shape[1] ** -0.5
    across = torch.cdist(real, made).mean(1)  # [B]
    among_real = torch.cdist(real, real).sum(1) / max(1, len(real) - 1)
    among_made = torch.cdist(made, made).sum() / max(1, len(made) * (len(made) - 1))
    return (2 * across - among_real - among_made) * scale
