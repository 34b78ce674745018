"""Data, models and a past to try wrappers on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from fathom.core import compose
from fathom.core.objective import Objective
from fathom.core.past import Trained
from fathom.core.types import Batch, DataSpec, Features, Field, Stats, Store
from fathom.data import TensorStore
from fathom.objectives import supervised
from tests.conformance.samples import batch_of

KIND = Field(name="kind", kind="category", classes=("coat", "sandal", "boot"), counts=(10, 10, 10))
SEASON = Field(name="season", kind="category", classes=("winter", "summer"), counts=(15, 15))
PRICE = Field(name="price", kind="number", stats=Stats(mean=(50.0,), std=(4.0,)))
NUMBERS = DataSpec(
    inputs=tuple(Field(name=f"x{i}", kind="number", stats=Stats(std=(1.0 + i,))) for i in range(4)),
    targets=(KIND, SEASON),
    rows=40,
)
IMAGES = DataSpec(inputs=(Field(name="photo", kind="image", shape=(1, 6, 6)),), targets=(KIND,), rows=40)


class Small(nn.Module):
    """Two layers over numbers and images, with dropout and batch normalisation if asked for."""

    def __init__(self, spec: DataSpec, width: int = 5, noisy: bool = False) -> None:
        super().__init__()
        self.width = width
        self.keys = list(dict.fromkeys(f.key for f in (*spec.numbers, *spec.images)))
        size = len(spec.numbers) + sum(f.shape[0] * f.shape[1] * f.shape[2] for f in spec.images)
        self.first = nn.Linear(size, 8)
        self.rest = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.2)) if noisy else nn.Identity()
        self.second = nn.Linear(8, width)

    def forward(self, batch: Batch) -> Features:
        parts = [batch[k].to(self.first.weight.dtype).flatten(1) / (1 if k == "number" else 255) for k in self.keys]
        return Features(pooled=self.second(self.rest(self.first(torch.cat(parts, 1))).tanh()))


@dataclass
class Earlier:
    """A past that holds what a test gives it."""

    trained: Trained | None = None
    store: Store | None = None
    begun: str = ""
    asked: list[str] = field(default_factory=list)

    def model(self, folder: str, option: str, alike: bool = False) -> Trained:
        assert self.trained is not None
        return self.trained

    def present(self, option: str) -> Store:
        assert self.store is not None
        return self.store

    def rows(self, folder: str, source: str, option: str, own: bool = True) -> Store:
        assert self.store is not None
        return self.store


def trained(spec: DataSpec, seed: int = 7, width: int = 5) -> Trained:
    torch.manual_seed(seed)
    model = Small(spec, width)
    return Trained("earlier", supervised.build(supervised.Config(), spec, model).eval(), spec)


def past_of(spec: DataSpec, width: int = 5) -> Earlier:
    return Earlier(trained(spec, width=width), TensorStore(batch_of(spec, 30, seed=3)), begun="earlier")


OPTIONS = {  # beyond the defaults, for every wrapper that needs some
    "distill": {"teacher": "earlier", "features": 0.1},
    "rules": {"rules": ("coat -> winter", "sandal -> not winter")},
    "ewc": {"strength": 10.0, "rows": 8},
    "replay": {"rows": 8},
    "adversarial_training": {"steps": 2},
    "noisy_student": {"teachers": ("earlier",)},
}


def built(name: str, spec: DataSpec, noisy: bool = False, seed: int = 0, **more: object) -> Objective:
    """Return what a name stands for, with options that it cannot do without."""
    given = {part: dict(options) for part, options in OPTIONS.items() if part in name}
    for key, value in more.items():
        part, _, option = key.partition("__")
        given.setdefault(part, {})[option] = value
    torch.manual_seed(seed)
    entry = compose.chosen({"name": name, **given})
    return compose.build(entry, spec, Small(spec, noisy=noisy), past_of(spec))
