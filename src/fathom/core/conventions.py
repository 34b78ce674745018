"""What several recipes and papers do alike."""

from __future__ import annotations

from typing import Any

from fathom.core.types import DataSpec, Field, Stats

LEAST_BATCH = 16


def batch_size(rows: int, most: int = 128, steps: int = 50) -> int:
    """Return the power of two, from 16 to `most`, that is small enough for about so many steps in a pass over the rows.

    Few rows in large batches would be seen often and yet move the weights seldom.
    """
    return min(most, max(LEAST_BATCH, 1 << max(0, (rows // steps).bit_length() - 1)))


def moved(narrow: bool, rate: float, muon: float = 0.02) -> dict[str, Any]:
    """Return a recipe's optimiser: Muon for a narrow network, AdamW for others, each at its rate.

    Muon's products of matrices cost wide networks too much.
    """
    return {"optimizer": "muon", "learning_rate": muon} if narrow else {"learning_rate": rate}


def imagenet() -> DataSpec:
    """Return the data of most papers on images: ImageNet's 1,281,167 photographs of 1,000 classes, at 224 pixels.

    Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015.
    """
    stats = Stats(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    classes = tuple(f"class {i}" for i in range(1000))
    return DataSpec(
        inputs=(Field(name="image", kind="image", shape=(3, 224, 224), stats=stats),),
        targets=(Field(name="label", kind="category", classes=classes, counts=(1281,) * 1000),),
        rows=1_281_167,
    )
