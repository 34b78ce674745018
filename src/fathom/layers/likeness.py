"""How alike two images are, in the measures of the field. Images are [B, C, H, W] in 0 … 1; measures are [B].

    psnr   peak signal to noise: the mean squared error in decibels, with respect to the largest possible value
    ssim   structural similarity: means, variances and covariance under a Gaussian window of 1.5 pixels, compared

Source: Wang, Bovik, Sheikh, Simoncelli, Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BEST = 100.0  # decibels of an image that is the other one
WINDOW, SPREAD = 11, 1.5  # pixels: side and standard deviation of the window
DARK, FLAT = 0.01**2, 0.03**2  # what keeps quotients of dark and of flat places finite


def psnr(made: Tensor, wanted: Tensor) -> Tensor:
    """Return decibels [B], at most `BEST`."""
    error = (made.float() - wanted.float()).square().flatten(1).mean(1)
    return (-10 * error.log10()).clamp(max=BEST)


def ssim(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the structural similarity [B] up to 1, the mean over channels and over places where the window fits.

    Of images smaller than the window it is cut to the largest odd side that fits.
    """
    side = min(WINDOW, (min(made.shape[2:]) - 1) // 2 * 2 + 1)
    channels = made.shape[1]
    pair = torch.cat([made, wanted]).float().flatten(0, 1)[:, None]  # [2·B·C, 1, H, W]
    offset = torch.arange(side, device=made.device, dtype=torch.float32) - side // 2
    line = torch.softmax(-offset.square() / (2 * SPREAD**2), 0)
    window = torch.outer(line, line)[None, None]
    one, other = pair.chunk(2)
    mean_one, mean_other = F.conv2d(one, window), F.conv2d(other, window)
    variance_one = F.conv2d(one.square(), window) - mean_one.square()
    variance_other = F.conv2d(other.square(), window) - mean_other.square()
    covariance = F.conv2d(one * other, window) - mean_one * mean_other
    above = (2 * mean_one * mean_other + DARK) * (2 * covariance + FLAT)
    below = (mean_one.square() + mean_other.square() + DARK) * (variance_one + variance_other + FLAT)
    return (above / below).mean((1, 2, 3)).view(-1, channels).mean(1)
