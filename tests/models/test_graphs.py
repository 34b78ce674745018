"""Graph networks as a whole: the papers' sizes, what they refuse, and that padding and company do not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fathom.core import catalog
from fathom.core.config import build as build_config
from fathom.core.errors import ConfigError
from fathom.core.types import DataSpec, Field
from fathom.engine.plan import Plan
from fathom.layers.graph import Padded, Sparse
from fathom.models import gat, gcn, gin, graphsage
from fathom.models._graph import graphs
from tests.conformance.samples import batch_of

FAMILIES = {"gcn": gcn, "gat": gat, "graphsage": graphsage, "gin": gin}
KEY = "graph:graph"
SPEC = graphs(nodes=9, edges=20, features=5, classes=2)

every = pytest.mark.parametrize("name", sorted(n for n, file in catalog.names("models").items() if file in FAMILIES))


def network(name: str, spec: DataSpec = SPEC, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    entry = catalog.find("models", name)
    return entry.module.build(type(entry.config)(**options) if options else entry.config, spec)


def some(rows: int = 6) -> dict[str, Tensor]:
    return {key: value for key, value in batch_of(SPEC, rows).items() if key.startswith("graph")}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gcn_cora", 1433 * 16 + 16),  # and 16 · 7 + 7 of the head: 23,063 in all
        ("gat_cora", 64 * 1433 + 3 * 64 + 7 * 64 + 3 * 7),  # 92,373
        ("graphsage_reddit", 256 * (2 * 602 + 1) + 256 * (2 * 256 + 1)),
        ("gin_mutag", 7 * 32 + 3 * 32 * 32 + 4 * 32 * 32 + 4 * (2 * 32 + 2 * 2 * 32)),
    ],
)
def test_presets_have_the_papers_sizes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = network(name, catalog.find("models", name).module.paper())
    assert sum(p.numel() for p in model.parameters()) == parameters


@every
def test_other_data_is_refused(name: str) -> None:
    module = catalog.find("models", name).module
    table = DataSpec(inputs=(Field(name="size", kind="number"), *SPEC.inputs))
    assert "'size' (number), 'graph' (graph)" in module.accepts(table)
    assert module.accepts(SPEC) is None
    with pytest.raises(ConfigError, match="one graph column"):
        module.build(module.Config(), table)
    with pytest.raises(ConfigError, match=r"shape \(9, 20, 0\).*get a one"):
        module.build(module.Config(), graphs(9, 20, 0, 2))


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_options_are_refused_by_name(name: str) -> None:
    for option, value in (("width", 0), ("depth", 0), ("dropout", 1.0), ("dropout", -0.1)):
        with pytest.raises(ConfigError, match=rf"model\.{option}' was given"):
            network(name, **{option: value})


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"given 8, which does not divide the width of 60; set model\.width=64"):
        network("gat", width=60)
    with pytest.raises(ConfigError, match=r"model\.attention_dropout"):
        network("gat", attention_dropout=1.5)
    with pytest.raises(ConfigError, match=r"model\.last_heads"):
        network("gat", outputs=3, last_heads=0)
    with pytest.raises(ConfigError, match=r"model\.input_dropout"):
        network("gcn", input_dropout=1.0)


@every
@pytest.mark.parametrize("pooling", ["mean", "sum", "max", "attention"])
def test_padding_changes_nothing(name: str, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More places for nodes and edges, and edges in another order, in either form of a graph."""
    options = {**vars(catalog.find("models", name).config), "pooling": pooling}
    model, batch = network(name, **options).eval(), some()
    order = torch.randperm(20)
    more = {
        KEY: nn.functional.pad(batch[KEY], (0, 0, 0, 4)),
        f"{KEY}:edges": nn.functional.pad(batch[f"{KEY}:edges"], (0, 0, 0, 3), value=-1)[:, [20, *order, 21, 22]],
        f"{KEY}:size": batch[f"{KEY}:size"],
    }
    with torch.no_grad():
        features, padded = model(batch), model(more)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        fixed = model(more)
    for other in (padded, fixed):
        torch.testing.assert_close(other.pooled, features.pooled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.tokens[:, :9], features.tokens, rtol=1e-4, atol=1e-5)
        assert torch.equal(other.mask[:, :9], features.mask) and not other.mask[:, 9:].any()
    assert (padded.tokens[~padded.mask] == 0).all()


@every
def test_a_graph_is_told_alone(name: str) -> None:
    model, batch = network(name).eval(), some()
    with torch.no_grad():
        whole = model(batch)
        for row, size in enumerate(batch[f"{KEY}:size"].tolist()):
            edges = batch[f"{KEY}:edges"][row : row + 1]
            alone = model(
                {KEY: batch[KEY][row : row + 1, :size], f"{KEY}:edges": edges, f"{KEY}:size": torch.tensor([size])}
            )
            torch.testing.assert_close(alone.pooled[0], whole.pooled[row], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(alone.tokens[0], whole.tokens[row, :size], rtol=1e-4, atol=1e-5)


@every
def test_names_of_nodes_do_not_matter(name: str) -> None:
    model, batch = network(name).eval(), some(1)
    size = int(batch[f"{KEY}:size"])
    order = torch.randperm(size)
    back = torch.cat([order.argsort(), torch.tensor([-1])])  # −1 stays −1
    renamed = {
        KEY: batch[KEY][:, [*order, *range(size, 9)]],
        f"{KEY}:edges": back[batch[f"{KEY}:edges"]],
        f"{KEY}:size": batch[f"{KEY}:size"],
    }
    with torch.no_grad():
        torch.testing.assert_close(model(renamed).pooled, model(batch).pooled, rtol=1e-4, atol=1e-5)


@every
def test_one_large_graph_takes_compressed_rows_and_is_recognised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = network(name), some(1)
    made: list[Sparse] = []
    init = Sparse.__init__
    monkeypatch.setattr(Sparse, "__init__", lambda self, *args: (made.append(self), init(self, *args))[1])
    monkeypatch.setattr(Padded, "__init__", lambda *_: pytest.fail("the slow form was taken"))
    for _ in range(3):
        model({key: value.clone() for key, value in batch.items()}).pooled.sum().backward()
    assert len(made) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_undirected_edges_may_be_given_once(name: str) -> None:
    once, twice = network(name, both_ways=True).eval(), network(name).eval()
    twice.load_state_dict(once.state_dict())
    batch = some()
    edges = batch[f"{KEY}:edges"]
    with torch.no_grad():
        wanted = twice({**batch, f"{KEY}:edges": torch.cat([edges, edges.flip(2)], 1)})
        torch.testing.assert_close(once(batch).pooled, wanted.pooled, rtol=1e-4, atol=1e-5)


def test_a_last_layer_that_mixes_is_the_papers_network() -> None:
    """Mixing before the head is a last layer with the head's weights."""
    geometric = pytest.importorskip("torch_geometric.nn")
    theirs = geometric.GCN(5, 16, num_layers=2, out_channels=3)
    ours, head = network("gcn", width=16, last="mix", dropout=0.0), nn.Linear(16, 3)
    ours.layers[0].weight.data, ours.layers[0].bias.data = theirs.convs[0].lin.weight.data, theirs.convs[0].bias.data
    head.weight.data, head.bias.data = theirs.convs[1].lin.weight.data, theirs.convs[1].bias.data
    batch = some(1)
    edges, size = batch[f"{KEY}:edges"][0], int(batch[f"{KEY}:size"])
    found = head(ours(batch).tokens[0, :size])
    wanted = theirs(batch[KEY][0, :size], edges[edges[:, 0] >= 0].t())
    assert (found - wanted).abs().max() <= 1e-5
    assert sum(p.numel() for p in [*ours.parameters(), *head.parameters()]) == sum(
        p.numel() for p in theirs.parameters()
    )


@pytest.mark.parametrize("version", [1, 2])
def test_attention_networks_are_theirs(version: int) -> None:
    geometric = pytest.importorskip("torch_geometric.nn")
    theirs = geometric.GAT(5, 16, 2, heads=4, v2=version == 2, act="elu", jk=None)
    ours = network("gat", width=16, num_heads=4, dropout=0.0, version=version)
    for layer, conv in zip(ours.layers, theirs.convs, strict=True):
        layer.bias.data = conv.bias.data
        if version == 1:
            layer.source.weight.data = conv.lin.weight.data
            layer.attention.data = torch.cat([conv.att_src.data, conv.att_dst.data])
        else:
            layer.source.load_state_dict(conv.lin_l.state_dict())
            layer.target.load_state_dict(conv.lin_r.state_dict())
            layer.attention.data = conv.att.data
    batch = some(1)
    edges, size = batch[f"{KEY}:edges"][0], int(batch[f"{KEY}:size"])
    wanted = theirs(batch[KEY][0, :size], edges[edges[:, 0] >= 0].t())
    assert (ours(batch).tokens[0, :size] - wanted).abs().max() <= 1e-5
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_gin_counts_what_a_mean_cannot() -> None:
    """A node with one like neighbour and a node with two: the same mean, another sum."""
    one = torch.tensor([[[1, 0], [-1, -1]], [[1, 0], [2, 0]]])
    batch = {KEY: torch.ones(2, 3, 5), f"{KEY}:edges": one, f"{KEY}:size": torch.tensor([3, 3])}
    with torch.no_grad():
        means = network("graphsage", norm="none").eval()(batch).tokens[:, 0]
        sums = network("gin").eval()(batch).tokens[:, 0]
    torch.testing.assert_close(means[0], means[1])
    assert (sums[0] - sums[1]).abs().max() > 0.01


@every
@pytest.mark.parametrize("rows", [1, 200])
def test_the_recipe_holds_only_options_that_exist(name: str, rows: int) -> None:
    entry = catalog.find("models", name)
    recipe = entry.module.recipe(entry.config, graphs(9, 20, 5, 2, rows))
    assert set(recipe) == {"engine"}
    assert build_config(Plan, recipe["engine"], "engine").epochs >= 1
