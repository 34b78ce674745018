"""Inputs of several kinds: which encoder sees what, how they are fused, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fathom.core.catalog import find
from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, DataSpec, Features, Field, Stats
from fathom.models import mixed
from tests.conformance.samples import batch_of

NUMBER = Field(name="size", kind="number", stats=Stats(quantiles=(-1.0, 0.0, 1.0)))
CATEGORY = Field(name="colour", kind="category", classes=(UNKNOWN, "red", "blue"))
PHOTO = Field(name="photo", kind="image", shape=(3, 8, 8), stats=Stats(mean=(128.0,) * 3, std=(64.0,) * 3))
SCAN = Field(name="scan", kind="image", shape=(1, 12, 9), stats=Stats(mean=(90.0,), std=(30.0,)))
TITLE = Field(name="title", kind="text", shape=(6,), vocabulary=20)
BODY = Field(name="body", kind="text", shape=(12,), vocabulary=30)
ALL = DataSpec(inputs=(NUMBER, CATEGORY, PHOTO, SCAN, TITLE, BODY), rows=16)
SMALL = mixed.Config(width=16, text="bag_of_words")


def build(config: mixed.Config = SMALL, spec: DataSpec = ALL) -> mixed.Mixed:
    torch.manual_seed(0)
    return mixed.build(config, spec).eval()


@pytest.mark.parametrize(
    "inputs",
    [
        (NUMBER, TITLE),
        (CATEGORY, PHOTO),
        (PHOTO, SCAN),
        (PHOTO, BODY),
        (TITLE,),
        (NUMBER, CATEGORY, PHOTO, TITLE, BODY),
        ALL.inputs,
    ],
)
@pytest.mark.parametrize("text", ["bag_of_words", "transformer"])
def test_every_mixture_of_kinds_has_one_vector_a_row(inputs, text):
    spec = ALL.only(inputs)
    model = build(replace(SMALL, text=text), spec)
    pooled = model(batch_of(spec, 5)).pooled
    assert pooled.shape == (5, 16) and pooled.isfinite().all()
    assert model.width == 16


def test_each_encoder_sees_its_own_columns():
    model = build()
    assert len(model.encoders) == 4  # the table, two images, the texts
    batch = batch_of(ALL, 6)
    before = model.parts(batch)
    changed = {
        "number": [0],
        "category": [0],
        "image:photo": [1],
        "image:scan": [2],
        "text:title": [3],
        "text:body": [3],
    }
    for key, parts in changed.items():
        other = {**batch, key: batch[key].roll(1, 0)}
        moved = [p for p in range(4) if not torch.equal(model.parts(other)[:, p], before[:, p])]
        assert moved == parts, key


def test_a_part_is_the_model_of_its_name_alone():
    """The features of the text part are those of the bag built on the texts, normalised and projected."""
    model = build()
    entry = find("models", "bag_of_words")
    alone = entry.module.build(entry.config, ALL.only(ALL.texts)).eval()
    alone.load_state_dict(model.encoders[3].state_dict())
    batch = batch_of(ALL, 6)
    expected = model.project[3](alone(batch).pooled)
    torch.testing.assert_close(model.parts(batch)[:, 3], expected)


def test_members_of_an_ensemble_are_averaged():
    class Ensemble(nn.Module):
        width = 4

        def forward(self, batch):
            return Features(pooled=batch["number"].unsqueeze(1) * torch.tensor([1.0, 2.0, 6.0])[:, None])  # [B, 3, 4]

    class Single(nn.Module):
        width = 4

        def forward(self, batch):
            return Features(pooled=batch["number"] * 3.0)

    torch.manual_seed(0)
    many, one = mixed.Mixed(SMALL, [Ensemble()]).eval(), mixed.Mixed(SMALL, [Single()]).eval()
    one.load_state_dict(many.state_dict())
    batch = {"number": torch.randn(5, 4)}
    torch.testing.assert_close(many(batch).pooled, one(batch).pooled)


def test_parts_are_left_out_in_training_only():
    model, batch = build(replace(SMALL, part_dropout=0.5, dropout=0.0), ALL.only((CATEGORY, TITLE))), batch_of(ALL, 64)
    assert torch.equal(model(batch).pooled, model(batch).pooled)
    for encoder in model.encoders:
        encoder.eval()
    model.training = True
    assert not torch.equal(model(batch).pooled, model(batch).pooled)


def test_rows_do_not_touch_one_another():
    model, batch, order = build(), batch_of(ALL, 6), torch.tensor([3, 1, 0, 2, 5, 4])
    shuffled = {key: value[order] for key, value in batch.items()}
    torch.testing.assert_close(model(shuffled).pooled, model(batch).pooled[order], atol=1e-5, rtol=1e-5)


def test_every_parameter_learns():
    model = build(replace(SMALL, text="transformer")).train()
    with torch.no_grad():  # as training leaves it: an encoder may start branches at zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model(batch_of(ALL, 64)).pooled.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_compiles_whole_and_exports():
    model, batch = build(), batch_of(ALL, 4)
    expected = model(batch).pooled
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(batch).pooled
    torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-4)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch):
            return self.model(batch).pooled

    exported = torch.export.export(Pooled(), (batch,)).module()(batch)
    torch.testing.assert_close(exported, expected, atol=1e-4, rtol=1e-4)


def test_an_encoder_that_cannot_take_its_columns_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"'model.table' was given 'bag', which cannot be used here: it takes texts"):
        build(replace(SMALL, table="bag"))
    with pytest.raises(ConfigError, match=r"'model.text' was given 'mixed', which cannot be used here: it is the one"):
        build(replace(SMALL, text="mixed"))
    with pytest.raises(ConfigError, match=r"no model 'resnets'\. Did you mean 'resnet'"):
        build(replace(SMALL, image="resnets"))


@pytest.mark.parametrize("options", [{"width": 0}, {"dropout": 1.0}, {"part_dropout": -0.5}])
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=f"'model.{next(iter(options))}' was given .*; expected"):
        build(replace(SMALL, **options))


def test_no_columns_are_refused():
    with pytest.raises(ConfigError, match="at least one input column"):
        build(SMALL, DataSpec(inputs=()))


def test_recipe_takes_fewer_passes_where_there_are_texts_or_many_rows():
    def epochs(inputs, rows):
        return mixed.recipe(SMALL, DataSpec(inputs=inputs, rows=rows))["engine"]["epochs"]

    assert epochs((NUMBER, TITLE), 50_000) < epochs((NUMBER, TITLE), 500) < epochs((NUMBER, PHOTO), 500)
    assert epochs((NUMBER, PHOTO), 50_000) < epochs((NUMBER, PHOTO), 500)
