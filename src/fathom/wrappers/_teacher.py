"""What wrappers share that ask a trained model: where it stands, and in which order it names classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fathom.core.errors import ConfigError, did_you_mean
from fathom.core.objective import Objective, predicted
from fathom.core.past import Trained
from fathom.core.types import Batch, Field


def beside(teacher: Objective, batch: Batch) -> Objective:
    """Return the teacher, on the device of the batch: no part of the student, it is not moved with it."""
    device = next(iter(batch.values())).device
    if next(teacher.parameters()).device != device:
        teacher.to(device)
    return teacher


def class_order(target: Field, teacher: Trained) -> list[int] | None:
    """Return where the teacher has each of a target's classes; None of a number.

    Raises:
        ConfigError: it does not predict that target, or with other classes.
    """
    known = {field.name: field for field in predicted(teacher.objective, teacher.spec)}
    theirs = known.get(target.name)
    place = f"The teacher '{teacher.folder}'"
    if theirs is None or theirs.kind != target.kind:
        raise ConfigError(f"{place} does not predict '{target.name}'.{did_you_mean(target.name, known)}")
    if target.kind != "category":
        return None
    if set(theirs.classes) != set(target.classes):
        differing = sorted(set(theirs.classes) ^ set(target.classes))[0]
        raise ConfigError(f"{place} tells other classes of '{target.name}' apart: '{differing}' is not common to both.")
    return [theirs.classes.index(name) for name in target.classes]


def in_order(found: Mapping[str, Tensor], targets: Sequence[Field], orders: Sequence[list[int] | None]) -> list[Tensor]:
    """Return a teacher's prediction of each target, in the student's order of classes."""
    pairs = zip(targets, orders, strict=True)
    return [found[t.name] if order is None else found[t.name][:, order] for t, order in pairs]
