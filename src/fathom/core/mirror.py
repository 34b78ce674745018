"""Whether an image and its mirror image mean the same: training may then mirror images, and prediction look at both."""

from __future__ import annotations

import re

from fathom.core.types import Field

DIGITS = frozenset(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
SIDES = frozenset(["left", "right", "leftward", "rightward", "clockwise", "counterclockwise", "east", "west"])


def mirrors_alike(targets: tuple[Field, ...]) -> bool:
    """Say whether a mirrored image surely keeps its label, judging by the names of the classes.

    A mirrored shoe is a shoe, a mirrored 3 is not a 3. True only where every target is a category whose classes are
    named by words, none of them a number, a single letter or a word for a side. Names cannot tell everything
    (traffic signs, road scenes): where a mirror changes the meaning, set `augment.flip` and `model.mirror` to no.
    """
    names = [name.lower() for target in targets for name in target.classes]
    words = [set(re.findall(r"[^\W\d_]+", name)) for name in names]
    return (
        bool(targets)
        and all(target.kind == "category" and target.classes for target in targets)
        and all(any(len(word) > 1 for word in found) and not found & (DIGITS | SIDES) for found in words)
    )
