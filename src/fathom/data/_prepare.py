"""What a user may set of preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fathom.core.config import option
from fathom.core.errors import ConfigError


@dataclass(frozen=True)
class PrepareConfig:
    numbers: Literal["robust", "quantile", "standard"] = option(
        "robust",
        "robust: centred on the median, divided by the quartile range, far values smoothly drawn in; "
        "quantile: mapped to a normal distribution; standard: mean 0, standard deviation 1",
    )
    max_classes: int = option(10_000, "the most frequent classes of an input column kept; others count as unknown")
    sample: int = option(
        50_000, "training rows, drawn by the seed, that medians, quantiles and tokens are learned from"
    )
    vocabulary: int = option(16_384, "the most tokens that a tokenizer learns")
    text_case: Literal["lower", "keep"] = option("lower", "lower: upper and lower case are one")
    text_length: int = option(0, "tokens kept of a text; 0: enough for 99 in 100 training texts, at most 512")
    image_size: int = option(0, "side of the square that images are brought to; 0: their own size, at most 224")
    image_colour: Literal["auto", "grey", "rgb"] = option("auto", "auto: grey where 99 in 100 training images are")
    image_fit: Literal["stretch", "crop", "pad"] = option("stretch", "how an image of another shape is made to fit")
    memory: float = option(0.0, "gigabytes of tensors held in memory before files are used; 0: half of what is free")

    def __post_init__(self) -> None:
        least = {"max_classes": 1, "sample": 100, "vocabulary": 300, "text_length": 0, "image_size": 0, "memory": 0}
        for name, floor in least.items():
            if getattr(self, name) < floor:
                raise ConfigError(f"Option 'prepare.{name}' was given {getattr(self, name)}; the least is {floor}.")
        if self.image_size > 4096 or self.text_length > 65_536:
            raise ConfigError("Options 'prepare.image_size' and 'prepare.text_length' go up to 4096 and 65536.")
