"""What a model's recipe proposes, and what of it is left out where the user asks for something else."""

from __future__ import annotations

import pytest

from fathom.api.assemble import assemble
from fathom.api.config import gather
from fathom.models import gpt

PROPOSED = gpt.recipe(gpt.Config(), gpt.example())["engine"]
ASKED = {
    "": ("muon", PROPOSED["learning_rate"], PROPOSED["weight_decay"]),
    "engine.optimizer=lion": ("lion", 0.0, 0.01),  # the numbers were tuned for another
    "engine.shard=true": ("adamw", 0.0, 0.01),  # Muon needs whole matrices, which cannot be spread
    "engine.learning_rate=0.5": ("muon", 0.5, PROPOSED["weight_decay"]),
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_recipes_optimiser_gives_way_with_its_numbers(asked):
    settings = gather({}, {"model": {"name": "gpt"}, "objective": {"name": "next_token"}}, [asked] if asked else [])
    plan = assemble(gpt.example(), settings, None, "next_token").plan
    assert (plan.optimizer, plan.learning_rate, plan.weight_decay) == ASKED[asked]
    assert plan.warmup == PROPOSED["warmup"]
