"""Building blocks of convolutional networks."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """A convolution without bias, then batch normalisation: [B, C, H, W] -> [B, O, ⌈H/stride⌉, ⌈W/stride⌉].

    The weights begin as He et al., Delving Deep into Rectifiers, 2015, have it: variance 2 / (kernel² · O), by which
    ReLU layers keep the size of the gradient.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, activation: bool = True) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if activation else []))


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + branch(x))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))
