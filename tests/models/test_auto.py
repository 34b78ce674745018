"""The choice of a model: by kinds and rows, always one that exists, takes the data, and is explained."""

from itertools import chain, combinations

import pytest

from fathom.core.catalog import find
from fathom.core.types import UNKNOWN, DataSpec, Field, Stats
from fathom.models._auto import ENOUGH_TEXTS, choose

NUMBER = Field(name="size", kind="number", stats=Stats(quantiles=(-1.0, 0.0, 1.0)))
CATEGORY = Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue"))
IMAGES = tuple(Field(name=name, kind="image", shape=(3, 8, 8), stats=Stats(mean=(0.0,) * 3)) for name in ("a", "b"))
TEXTS = tuple(Field(name=name, kind="text", shape=(6,), vocabulary=20) for name in ("c", "d"))


@pytest.mark.parametrize(
    ("inputs", "rows", "name", "why"),
    [
        ((NUMBER,), 100, "mlp", "numbers and categories"),
        ((NUMBER, CATEGORY), 10**6, "mlp", "numbers and categories"),
        (IMAGES[:1], 100, "resnet", "image"),
        (IMAGES, 100, "mixed", "2 image columns"),
        (TEXTS, ENOUGH_TEXTS - 1, "bag", "999,999 rows"),
        (TEXTS, ENOUGH_TEXTS, "transformer", "1,000,000 rows"),
        ((NUMBER, TEXTS[0]), 100, "mixed", "(table columns and texts)"),
        ((CATEGORY, IMAGES[0], TEXTS[0]), 100, "mixed", "(table columns, images and texts)"),
    ],
)
def test_choice_by_kinds_and_rows(inputs, rows, name, why):
    chosen, said = choose(DataSpec(inputs=inputs, rows=rows))
    assert chosen == name
    assert why in said
    assert "\n" not in said and not said.endswith(".")


@pytest.mark.parametrize("rows", [0, 10, 10**7])
def test_the_chosen_model_exists_and_takes_the_data(rows):
    fields = (NUMBER, CATEGORY, *IMAGES, *TEXTS)
    for inputs in chain.from_iterable(combinations(fields, size) for size in range(1, len(fields) + 1)):
        spec = DataSpec(inputs=inputs, rows=rows)
        entry = find("models", choose(spec)[0])
        assert entry.module.accepts(spec) is None, (choose(spec), [f.name for f in inputs])
