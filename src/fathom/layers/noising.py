"""How images become noise, step by step, and the way back: x = α·image + σ·noise at each time from 0 (the image) to 1.

    Path    α and σ of each time; what a network is asked for; steps back, with chance and without

    linear     a thousand steps whose variances rise evenly (Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models,
               2020)
    cosine     a thousand steps, the image fading more slowly at both ends (Nichol, Dhariwal, Improved Denoising
               Diffusion Probabilistic Models, 2021)
    straight   α = 1 − time, σ = time: lines from images to noise (Lipman et al., Flow Matching for Generative Modeling,
               2023; Liu, Gong, Liu, Flow Straight and Fast, 2023)

A network may be asked for the noise, for the velocity α·noise − σ·image (Salimans, Ho, Progressive Distillation for
Fast Sampling of Diffusion Models, 2022), or for the direction of the line, noise − image. From each, and from x, both
image and noise follow. The step without chance puts the two together anew at an earlier time: of the first two paths it
is that of Song, Meng, Ermon, Denoising Diffusion Implicit Models, 2021, on straight lines it is Euler's method.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

LEVELS = 1000  # of the paths that are made of steps; also the network's word for the last time
FIRST_VARIANCE, LAST_VARIANCE = 1e-4, 0.02  # of the linear path's steps
COSINE_OFFSET, LARGEST_VARIANCE = 0.008, 0.999  # of the cosine path
CLOSEST = 1e-8  # what is divided by is at least so large

Asked = Literal["noise", "velocity", "flow"]


class Path(nn.Module):
    """The way from images to noise.

    Args:
        kind: which.
        asked: what a network gives out: the noise, the velocity, or the direction of the line (of straight ones).
    """

    signal: Tensor
    noise: Tensor

    def __init__(self, kind: Literal["linear", "cosine", "straight"], asked: Asked) -> None:
        super().__init__()
        self.asked, self.straight = asked, kind == "straight"
        kept = torch.ones(1, dtype=torch.float64) if self.straight else _kept(kind)  # [LEVELS + 1], of the variance
        self.register_buffer("signal", kept.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - kept).sqrt().float(), persistent=False)

    def draw(self, rows: int, device: torch.device, middle: bool = False) -> Tensor:
        """Return times by chance, of torch's default generator: [B] in 0 … 1, the image itself left out.

        Args:
            middle: draw middling ones more often: the logistic of a normal number (Esser et al., Scaling Rectified Flow
                Transformers, 2024, section 3.1).
        """
        time = torch.randn(rows, device=device).sigmoid() if middle else torch.rand(rows, device=device)
        return self.snap(time)

    def snap(self, time: Tensor) -> Tensor:
        """Return times between 0 and 1 at which there is noise: on a path of steps the end of the one they fall in."""
        if self.straight:
            return time
        return ((time * LEVELS).floor() + 1).clamp(max=LEVELS) / LEVELS

    def at(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ of times [B], each [B, 1, 1, 1]."""
        time = time[:, None, None, None]
        if self.straight:
            return 1 - time, time
        level = (time * LEVELS).round().long()
        return self.signal[level].to(time.dtype), self.noise[level].to(time.dtype)

    def said(self, time: Tensor) -> Tensor:
        """Return times [B] as networks are told them: 0 to 1,000, of a path of steps the number of the step from 0."""
        return time * LEVELS if self.straight else ((time * LEVELS).round() - 1).clamp(min=0)

    def mix(self, image: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return x [B, C, H, W] at times [B]."""
        signal, share = self.at(time)
        return signal * image + share * noise

    def wanted(self, image: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return what a network should give: [B, C, H, W]."""
        if self.asked == "noise":
            return noise
        if self.asked == "flow":
            return noise - image
        signal, share = self.at(time)
        return signal * noise - share * image

    def apart(self, x: Tensor, answer: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return image and noise, [B, C, H, W] each, that x consists of according to a network's answer."""
        signal, share = self.at(time)
        if self.asked == "noise":
            return (x - share * answer) / signal.clamp(min=CLOSEST), answer
        if self.asked == "velocity":
            return signal * x - share * answer, share * x + signal * answer
        return x - share * answer, x + signal * answer

    def step(
        self, x: Tensor, answer: Tensor, time: Tensor, then: Tensor, clip: bool = False, chance: Tensor | None = None
    ) -> Tensor:
        """Return x [B, C, H, W] at earlier times.

        Args:
            answer: the network's, in the shape of x.
            time, then: [B], from where to where.
            clip: keep the image that is guessed within −1 … 1, and let the noise be what remains.
            chance: standard normal numbers in the shape of x; with them the step is a draw from what came before x,
                given the image that is guessed (Ho, Jain, Abbeel, 2020, equation 6).
        """
        image, noise = self.apart(x, answer, time)
        (signal, share), (signal_then, share_then) = self.at(time), self.at(then)
        if clip:
            image = image.clamp(-1, 1)
            noise = (x - signal * image) / share.clamp(min=CLOSEST)
        if chance is None:
            return signal_then * image + share_then * noise
        # Of the noise at `time`, that which came after `then`: σ² − (α / α')²·σ'².
        added = (share.square() - (signal / signal_then * share_then).square()).clamp(min=0)
        variance = added * (share_then / share.clamp(min=CLOSEST)).square()
        kept = (share_then.square() - variance).clamp(min=0).sqrt()
        return signal_then * image + kept * noise + variance.sqrt() * chance


def _kept(kind: str) -> Tensor:
    """Return the image's share of the variance after each number of steps, from none on: [LEVELS + 1], float64."""
    if kind == "linear":
        variances = torch.linspace(FIRST_VARIANCE, LAST_VARIANCE, LEVELS, dtype=torch.float64)
    else:
        time = torch.arange(LEVELS + 1, dtype=torch.float64) / LEVELS
        whole = ((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).cos().square()
        variances = (1 - whole[1:] / whole[:-1]).clamp(max=LARGEST_VARIANCE)
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - variances).cumprod(0)])
