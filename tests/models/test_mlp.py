"""The table model: shapes, members, equality with a plain network, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fathom.core.config import build as build_config
from fathom.core.errors import ConfigError
from fathom.core.types import UNKNOWN, DataSpec, Field, Stats
from fathom.models import mlp

SMALL = mlp.Config(width=12, depth=2, members=3, embedding_size=4, category_size=2)
EMBEDDINGS = ("piecewise", "periodic", "linear", "none")


def batch_of(spec: DataSpec, rows: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    batch = {}
    if spec.numbers:
        batch["number"] = torch.randn(rows, len(spec.numbers), generator=random)
    if spec.categories:
        columns = [torch.randint(0, len(c.classes), (rows,), generator=random) for c in spec.categories]
        batch["category"] = torch.stack(columns, dim=1)
    return batch


def build(config: mlp.Config = SMALL, spec: DataSpec | None = None, seed: int = 0) -> mlp.MLP:
    torch.manual_seed(seed)
    return mlp.build(config, spec or replace(mlp.example(), rows=1000)).eval()


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("kind", ["both", "number", "category"])
@pytest.mark.parametrize("members", [1, 3])
def test_shapes(embedding, kind, members):
    spec = mlp.example()
    if kind != "both":
        spec = spec.only(spec.of(kind))
    model = build(replace(SMALL, embedding=embedding, members=members), spec)
    pooled = model(batch_of(spec)).pooled
    assert pooled.shape == ((8, 3, 12) if members > 1 else (8, 12))
    assert (model.width, model.members) == (12, members)


def test_one_member_without_embedding_is_a_plain_network():
    spec = mlp.example().only(mlp.example().numbers)
    model = build(replace(SMALL, members=1, embedding="none", dropout=0.0), spec)
    first, second = model.layers
    plain = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
    plain[0].load_state_dict(first.state_dict())
    plain[2].load_state_dict(second.state_dict())
    batch = batch_of(spec)
    torch.testing.assert_close(model(batch).pooled, plain(batch["number"]))


def test_members_differ_from_the_start():
    pooled = build()(batch_of(mlp.example())).pooled
    assert all(not torch.allclose(pooled[:, 0], pooled[:, k]) for k in (1, 2))


def test_each_member_is_a_network_of_its_own():
    """Member k of the ensemble equals a plain network whose weights are the shared ones, rescaled."""
    model, batch = build(), batch_of(mlp.example())
    x, pooled = model.embed(batch), model(batch).pooled
    for k in range(3):
        hidden = x
        for layer in model.layers:
            weight = layer.scale_in[k][:, None] * layer.weight * layer.scale_out[k]
            hidden = (hidden @ weight + layer.bias[k]).relu()
        torch.testing.assert_close(pooled[:, k], hidden)


def test_parameter_count():
    model = build(SMALL, replace(mlp.example(), rows=1000))
    numbers, categories, bins = 2, 1, 3
    embedding = numbers * 4 * (1 + 1 + bins) + 3 * 2
    inputs = numbers * 4 + categories * 2
    layers = [i * 12 + 3 * i + 2 * 3 * 12 for i in (inputs, 12)]
    assert sum(p.numel() for p in model.parameters()) == embedding + sum(layers)


def test_members_cost_few_parameters():
    one, many = (sum(p.numel() for p in build(replace(mlp.Config(), members=k)).parameters()) for k in (1, 8))
    assert many < 1.2 * one


def test_a_row_does_not_depend_on_its_batch():
    model, batch = build(), batch_of(mlp.example())
    alone = torch.cat([model({k: v[i : i + 1] for k, v in batch.items()}).pooled for i in range(8)])
    torch.testing.assert_close(model(batch).pooled, alone)


def test_a_gradient_reaches_every_parameter():
    for embedding in EMBEDDINGS:
        model = build(replace(SMALL, embedding=embedding))
        batch = batch_of(mlp.example(), rows=256)
        model(batch).pooled.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, (embedding, name)


def test_gradients_are_those_of_finite_differences():
    model, batch = build(replace(SMALL, width=4)).double(), batch_of(mlp.example(), rows=3)
    batch["number"] = batch["number"].double()
    assert torch.autograd.gradcheck(lambda *_: model(batch).pooled, tuple(model.parameters()))


def test_scales_and_biases_are_not_decayed():
    decayed = {n for n, p in build().named_parameters() if p.ndim > 1 and not getattr(p, "no_weight_decay", False)}
    embedding = {"embed.number.linear.weight", "embed.number.bend", "embed.category.vectors"}
    assert decayed == {"layers.0.weight", "layers.1.weight"} | embedding


def test_dropout_acts_in_training_only():
    model, batch = build(replace(SMALL, dropout=0.5)), batch_of(mlp.example())
    assert torch.equal(model(batch).pooled, model(batch).pooled)
    model.train()
    assert not torch.equal(model(batch).pooled, model(batch).pooled)


def test_compiles_as_one_graph():
    model, batch = build(), batch_of(mlp.example())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(batch).pooled, model(batch).pooled)


class Pooled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(batch).pooled


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_exports_with_any_number_of_rows(embedding):
    model = Pooled(build(replace(SMALL, embedding=embedding))).eval()
    batch = batch_of(mlp.example())
    rows = torch.export.Dim("rows", min=1, max=4096)
    exported = torch.export.export(model, (batch,), dynamic_shapes=({"number": {0: rows}, "category": {0: rows}},))
    other = batch_of(mlp.example(), rows=5, seed=1)
    torch.testing.assert_close(exported.module()(other), model(other))


def test_very_wide_tables_get_smaller_embeddings():
    stats = Stats(quantiles=(-1.0, 1.0))
    spec = DataSpec(inputs=tuple(Field(name=f"x{i}", kind="number", stats=stats) for i in range(3000)))
    model = build(SMALL, spec)
    assert model.embed.width == 3000
    assert model(batch_of(spec)).pooled.shape == (8, 3, 12)


def test_numbers_without_quantiles_are_taken():
    spec = DataSpec(
        inputs=(
            Field(name="bare", kind="number"),
            Field(name="constant", kind="number", stats=Stats(mean=(2.0,), std=(0.0,), quantiles=(2.0,))),
        )
    )
    assert build(SMALL, spec)(batch_of(spec)).pooled.isfinite().all()


def test_edges_are_chosen_evenly_among_the_quantiles():
    column = Field(name="x", kind="number", stats=Stats(quantiles=tuple(float(i) for i in range(65))))
    assert mlp._edges(column, 4) == [0.0, 16.0, 32.0, 48.0, 64.0]
    assert mlp._edges(column, 1000) == list(column.stats.quantiles)


@pytest.mark.parametrize(("rows", "members", "dropout"), [(9_999, 8, 0.1), (10_000, 4, 0.0)])
def test_members_and_dropout_go_by_the_rows_unless_given(rows, members, dropout):
    spec = replace(mlp.example(), rows=rows)
    model = build(mlp.Config(), spec)
    assert (model.members, model.dropout.p) == (members, dropout)
    model = build(mlp.Config(members=2, dropout=0.0), spec)
    assert (model.members, model.dropout.p) == (2, 0.0)


def test_the_recipe_is_a_plan_that_can_be_built():
    from fathom.engine.plan import Plan

    for rows in (0, 100, 5_000, 50_000, 10_000_000):
        recipe = mlp.recipe(mlp.Config(), DataSpec(inputs=(), rows=rows))
        plan = build_config(Plan, recipe["engine"], "engine")
        assert 4 <= plan.epochs <= 30 and plan.keep == ("last" if rows < 10_000 else "best")


@pytest.mark.parametrize(("rows", "bins"), [(0, 1), (150, 1), (2000, 20), (10**6, 32)])
def test_few_rows_get_few_bins(rows, bins):
    column = Field(name="x", kind="number", stats=Stats(quantiles=tuple(float(i) for i in range(65))))
    model = build(mlp.Config(), DataSpec(inputs=(column,), rows=rows))
    assert model.embed.number.encode(torch.zeros(1, 1)).shape == (1, 1, bins)


def test_other_kinds_of_columns_are_refused_by_name():
    spec = DataSpec(inputs=(*mlp.example().inputs, Field(name="photo", kind="image", shape=(3, 8, 8))))
    assert "photo" in mlp.accepts(spec)
    with pytest.raises(ConfigError, match="'photo' is image"):
        mlp.build(SMALL, spec)
    assert mlp.accepts(DataSpec(inputs=())) is not None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("width", 0),
        ("depth", 0),
        ("members", -1),
        ("bins", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("category_size", -1),
    ],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=rf"'model\.{option}' was given {value}.*expected"):
        mlp.build(replace(SMALL, **{option: value}), mlp.example())


def test_a_periodic_embedding_needs_room_for_its_waves():
    with pytest.raises(ConfigError, match="2 or more"):
        mlp.build(replace(SMALL, embedding="periodic", embedding_size=1), mlp.example())


def test_an_unknown_embedding_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'piecewise'"):
        build_config(mlp.Config, {"embedding": "piecewize"}, "model")


def test_an_unknown_class_adds_nothing_before_training():
    spec = DataSpec(inputs=(Field(name="colour", kind="category", classes=(UNKNOWN, "red")),))
    model = build(SMALL, spec)
    assert torch.equal(model.embed({"category": torch.zeros(1, 1, dtype=torch.int64)}), torch.zeros(1, 2))


CLASSES = (3, 2)
QUANTILES = ((-1.0, 0.0, 0.5, 2.0), (-2.0, 0.3, 1.0), (-1.5, -0.2, 0.4))  # three bins, two and two


def columns_of_tabm() -> DataSpec:
    names = [UNKNOWN, "red", "blue"]
    return DataSpec(
        inputs=(
            *(Field(name=f"x{i}", kind="number", stats=Stats(quantiles=q)) for i, q in enumerate(QUANTILES)),
            *(Field(name=f"c{i}", kind="category", classes=tuple(names[:size])) for i, size in enumerate(CLASSES)),
        ),
        rows=10_000,
    )


def authors_tabm(model: mlp.MLP) -> nn.Module:
    """Return the network that the authors' package makes by default, with our weights."""
    tabm = pytest.importorskip("tabm", reason="the authors' package is not installed")
    embeddings = pytest.importorskip("rtdl_num_embeddings", reason="the authors' package is not installed")
    edges = [torch.tensor(quantiles) for quantiles in QUANTILES]
    numbers = embeddings.PiecewiseLinearEmbeddings(edges, 16, activation=False, version="B")
    theirs = tabm.TabM.make(n_num_features=3, cat_cardinalities=list(CLASSES), num_embeddings=numbers, d_out=None)
    theirs.load_state_dict(ours_to_tabm(model), strict=False)  # their edges are buffers
    return theirs


def ours_to_tabm(model: mlp.MLP) -> dict[str, torch.Tensor]:
    """Return our weights by the names of the authors' package, which keeps a column's last bin at the end."""
    weight = model.state_dict()
    bend = torch.zeros_like(weight["embed.number.bend"])
    for column, quantiles in enumerate(QUANTILES):
        last = len(quantiles) - 2
        bend[column, :last] = weight["embed.number.bend"][column, :last]
        bend[column, -1] = weight["embed.number.bend"][column, last]
    found = {f"num_module.linear0.{leaf}": weight[f"embed.number.linear.{leaf}"] for leaf in ("weight", "bias")}
    found["num_module.linear.weight"] = bend
    for index in range(len(model.layers)):
        ours, theirs = f"layers.{index}", f"backbone.blocks.{index}.0"
        found[f"{theirs}.weight"] = weight[f"{ours}.weight"].T
        found[f"{theirs}.r"], found[f"{theirs}.s"] = weight[f"{ours}.scale_in"], weight[f"{ours}.scale_out"]
        found[f"{theirs}.bias"] = weight[f"{ours}.bias"]
    return found


def test_tabm_equals_the_authors_package_weight_for_weight():
    model = build(replace(mlp.presets["tabm"], dropout=0.0), columns_of_tabm())
    with torch.no_grad():
        model.embed.number.bend.normal_(std=0.3)  # begins at zero
    theirs = authors_tabm(model).eval()
    batch = batch_of(columns_of_tabm(), rows=32)
    ours, reference = model(batch).pooled, theirs(batch["number"], batch["category"])
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5)
    ours.square().mean().backward()
    reference.square().mean().backward()
    for parameter in model.parameters():
        parameter.data = parameter.grad  # so that the table of names does for gradients too
    gradients = ours_to_tabm(model)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_tabm_has_the_parameters_and_settings_of_the_authors_default():
    model = build(mlp.presets["tabm"], columns_of_tabm())
    theirs = authors_tabm(model)
    named = dict(theirs.named_parameters())
    assert {name: tuple(value.shape) for name, value in ours_to_tabm(model).items()} == {
        name: tuple(value.shape) for name, value in named.items()
    }
    assert (theirs.k, theirs.backbone.blocks[0][2].p) == (model.members, model.dropout.p) == (32, 0.1)
    inputs = 3 * 16 + 5
    layers = sum(i * 512 + 32 * (i + 2 * 512) for i in (inputs, 512))
    assert sum(p.numel() for p in model.parameters()) == 3 * 16 * (2 + 3) + layers


def test_tabms_members_begin_apart_by_one_factor_a_column():
    first, second = build(mlp.presets["tabm"], columns_of_tabm()).layers
    parts = first.scale_in.detach().split([16, 16, 16, *CLASSES], dim=1)
    factors = torch.stack([part[:, 0] for part in parts], dim=1)  # [K, columns]
    assert all(torch.equal(part, part[:, :1].expand_as(part)) for part in parts)
    assert factors.unique().numel() == 32 * 5 and 0.8 < float(factors.std()) < 1.2
    assert torch.equal(second.scale_in, torch.ones(32, 512))
    for layer in (first, second):
        assert torch.equal(layer.bias, layer.bias[:1].expand(32, -1)) and layer.bias.unique().numel() > 500


def test_classes_without_vectors_are_units():
    model = build(replace(SMALL, category_size=0), columns_of_tabm().only(columns_of_tabm().categories))
    found = model.embed({"category": torch.tensor([[2, 0], [0, 1]])})
    assert found.tolist() == [[0.0, 0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0]]
