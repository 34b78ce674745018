"""What a sum of objectives is for is what its parts are for; and what one part cannot learn from is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import fathom
from fathom.api.config import gather
from fathom.api.sample import sampled
from fathom.api.transfer import origin
from fathom.artifact.predict import embeddings
from fathom.cli import app
from fathom.core import compose
from fathom.core.errors import ConfigError
from fathom.core.objective import with_role
from fathom.core.roles import Embedder, Sampler
from fathom.core.types import DataSpec, Field, Stats
from fathom.models import t5, unet, vit
from fathom.objectives import consistency, diffuse, metric, next_token, self_distill, supervised
from fathom.objectives._sum import Sum
from fathom.objectives.translate import Translate
from tests.api.test_embed import png

SETS = ["engine.threads=1", "engine.precision=fp32", "engine.form=plain", "evaluate.baselines=false"]
NARROW = ["model.width=16", "model.depth=1", "model.num_heads=2", "prepare.vocabulary=300"]
IMAGE = Field(name="photo", kind="image", shape=(1, 8, 8), stats=Stats(mean=(100.0,), std=(50.0,)))
KIND = Field(name="kind", kind="category", classes=("a", "b"), counts=(8, 8))
SPEC = DataSpec(inputs=(IMAGE,), targets=(KIND,), rows=16)


@pytest.fixture(scope="module")
def pairs() -> pl.DataFrame:
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 9, 4) for _ in range(80)]
    return pl.DataFrame(
        {
            "english": [f"a {a} b {b} c {c}" for a, b, c, _ in rows],
            "german": [f"x {a} y {b} z {c}" for a, b, c, _ in rows],
        }
    )


def network() -> vit.ViT:
    return vit.build(vit.Config(width=16, depth=1, num_heads=2), SPEC)


def test_a_sum_with_a_translator_translates(pairs: pl.DataFrame, tmp_path: Path):
    out = tmp_path / "out"
    sets = [*SETS, *NARROW, "objective.masked_token.corruption=spans"]
    fathom.fit(pairs, "german", objective="translate+0.1*masked_token", epochs=1, sets=sets, out=out)
    loaded = fathom.load(out)
    assert isinstance(loaded.module, Sum) and isinstance(with_role(loaded.module, Translate), Translate)
    assert isinstance(loaded.translate("a 1 b 2"), str)
    assert loaded.translate(["a 1 b 2", " ", ""])[1:] == ["", ""]
    (tmp_path / "lines.txt").write_text("a 1 b 2\n\na 3 b 4\n")
    told = CliRunner().invoke(app, ["translate", str(out), "--file", str(tmp_path / "lines.txt")])
    assert told.exit_code == 0 and len(told.stdout.split("\n")) == 4 and told.stdout.split("\n")[1] == ""


def test_a_sum_embeds_as_its_part_does():
    torch.manual_seed(0)
    model = network()
    part = metric.build(metric.Config(), SPEC, model)
    both = Sum(
        model, SPEC, [("supervised", 0.1, supervised.Supervised(supervised.Config(), SPEC, model)), ("m", 1.0, part)]
    )
    batch = {
        "image:photo": torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8),
        "target:kind": torch.zeros(5).long(),
    }
    assert with_role(both, Embedder) is part and with_role(both, Sampler) is None
    found = embeddings(both, [batch])["embedding"]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found, embeddings(part, [batch])["embedding"])


def test_a_sum_makes_images_as_its_part_does():
    spec = DataSpec(inputs=(IMAGE,), rows=16)
    torch.manual_seed(0)
    model = unet.build(unet.Config(widths=(8,), attention=()), spec)
    part = diffuse.build(diffuse.Config(steps=2), spec, model)
    both = Sum(model, spec, [("diffuse", 2.0, part)])
    np.testing.assert_array_equal(sampled(both, spec, 2), sampled(part, spec, 2))


def test_the_network_to_go_on_from_is_the_teacher():
    model = network()
    taught = self_distill.build(self_distill.Config(), SPEC, model)
    steady = consistency.build(consistency.presets["steady_match"], SPEC, model)
    plain = consistency.build(consistency.Config(), SPEC, model)
    assert taught.network is taught.teacher and steady.network is steady.teacher and plain.network is model
    assert Sum(model, SPEC, [("plain", 1.0, plain), ("dino", 1.0, taught)]).network is taught.teacher


def test_weights_of_a_teacher_pass_into_fine_tuning(tmp_path: Path):
    frame = pl.DataFrame({"image": [png(100, seed) for seed in range(24)]})
    sets = [*SETS, "model.width=16", "model.depth=1", "model.num_heads=2", "engine.batch_size=8"]
    fathom.fit(frame, model="vit", objective="dino", epochs=2, sets=sets, out=tmp_path / "pre")
    trained = fathom.load(tmp_path / "pre").module
    found = origin(gather({}, {"transfer": {"source": str(tmp_path / "pre")}}, []))
    wanted, student = trained.teacher.state_dict(), trained.model.state_dict()
    assert all(torch.equal(found.tensors[name], wanted[name]) for name in wanted)
    assert any(not torch.equal(student[name], wanted[name]) for name in wanted)


def test_rows_without_a_target_are_not_for_every_part():
    few = DataSpec(inputs=(IMAGE,), targets=(KIND,), rows=40)
    said = compose.find("supervised+consistency").module.accepts(few)
    assert said and "24 of 40 rows have no 'kind'" in said
    assert compose.find("supervised+consistency").module.accepts(SPEC) is None
    assert compose.find("consistency+0.1*contrast").module.accepts(few) is None


def test_t5_learns_from_runs_of_tokens_taken_out(pairs: pl.DataFrame):
    sets = [*SETS, "objective.corruption=spans", "model.width=16", "model.depth=1", "model.num_heads=2"]
    model = fathom.fit(pairs, "german", objective="masked_token", model="t5", epochs=1, sets=sets)
    assert model.metrics


def test_a_translator_sees_what_comes_and_tells_no_next_token(pairs: pl.DataFrame):
    read = Field(name="text", kind="text", shape=(10,), vocabulary=30)
    written = Field(name="other", kind="text", shape=(6,), vocabulary=30)
    model = t5.build(t5.Config(width=16, depth=1, num_heads=2), DataSpec(inputs=(read,), targets=(written,)))
    assert "such as gpt or llama" in str(next_token.needs(model))
    with pytest.raises(ConfigError, match="of 'next_token', it needs one that tells the next token"):
        fathom.fit(pairs, "german", objective="translate+0.1*next_token", model="t5", epochs=1, sets=SETS)


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ("text", [], "found one: text."),
        ("text", ["--target", "text"], "found one: text."),
        ("text,other", [], "found 2: text, other; name the target with --target"),
    ],
)
def test_columns_that_an_objective_lacks_are_said_before_training(tmp_path: Path, columns, options, said):
    count = len(columns.split(","))
    lines = [columns, *(",".join(f"some words {i} {j}" for j in range(count)) for i in range(20))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    told = CliRunner().invoke(app, ["fit", str(tmp_path / "t.csv"), "--objective", "translate", *options])
    assert isinstance(told.exception, SystemExit | fathom.FathomError) or told.exit_code == 2
    message = told.output + told.stderr + str(told.exception)
    assert (
        f"Objective 'translate' needs two text columns, one to read and, as the target, one to write; {said}" in message
    )


def test_an_option_called_as_its_wrapper_may_stand_alone():
    for options in ({"rules": ["a -> b"]}, {"rules": {"rules": ["a -> b"]}}):
        assert compose.chosen({"name": "rules", **options}).config.rules.rules == ("a -> b",)
