"""docs/models.md and what `fathom models` shows are counted from the code."""

import json
import runpy
from pathlib import Path

import pytest

from fathom.api.listing import list_models
from fathom.core import catalog

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "models.py"))


@pytest.fixture(scope="module")
def facts() -> dict:
    return SCRIPT["facts"]()


def test_counts_are_those_of_the_code(facts: dict) -> None:
    kept = json.loads(SCRIPT["FACTS"].read_text(encoding="utf-8"))
    changed = [name for name in {*kept, *facts} if kept.get(name) != facts.get(name)]
    assert changed == [], "run scripts/models.py"


def test_the_page_is_that_of_the_code(facts: dict) -> None:
    assert SCRIPT["PAGE"].read_text(encoding="utf-8") == SCRIPT["page"](facts), "run scripts/models.py"


def test_the_list_says_of_every_model_what_it_is_and_where_it_was_proven() -> None:
    rows = list_models()
    assert {row["name"] for row in rows} == set(catalog.names("models"))
    for row in rows:
        assert row["about"] and row["reference"] and row["proven"] and row["accepts"], row["name"]
        assert 1943 <= row["year"] <= 2030 and row["parameters"] >= 0


@pytest.mark.parametrize(
    ("name", "parameters"),  # as the papers or the libraries that everyone compares with have them
    [
        ("lenet5", 61_706),
        ("vgg16", 138_357_544),
        ("resnet50", 25_557_032),
        ("convnext_tiny", 28_589_128),
        ("mobilenet_v2", 3_504_872),
        ("efficientnet_b0", 5_288_548),
        ("vit_base", 86_567_656),
        ("bert_base", 109_482_240),
        ("gpt2", 124_439_808),
        ("smollm2_135m", 134_515_008),
        ("t5_small", 60_506_624),
        ("ddpm", 35_746_307),
    ],
)
def test_well_known_counts(name: str, parameters: int) -> None:
    row = next(row for row in list_models() if row["name"] == name)
    assert row["parameters"] == parameters, row["data"]
