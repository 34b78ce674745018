"""Layers of graph networks beside PyTorch Geometric's, weight for weight: values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from fathom.layers.graph import Graph, Graphs, Padded, Sparse
from fathom.layers.message import (
    GraphAttention,
    GraphConvolution,
    GraphIsomorphism,
    NodeNorm,
    SampleAndAggregate,
    sum_first,
)

NODES = 40


def hard_edges() -> Tensor:
    """Return edges [E, 2] with loops, some doubled, doubled others, and nodes that nothing leads to or from."""
    draw = torch.Generator().manual_seed(0)
    some = torch.randint(NODES - 5, (120, 2), generator=draw)  # the last five are alone
    into = torch.tensor([[0, NODES - 5], [1, NODES - 5]])  # one that only hears, and below one that is only heard
    return torch.cat([some, some[:7], into, torch.tensor([[3, 3], [3, 3], [8, 8], [NODES - 4, 2]])])


def both_forms(edges: Tensor) -> Iterator[Graph]:
    """Yield the graph as compressed rows and as padded edges, of which some do not exist."""
    size = torch.tensor([NODES])
    yield Graphs().of(edges[None], size, NODES)
    exists = torch.cat([torch.ones(len(edges)), torch.zeros(9)]).bool()
    source, target = torch.cat([edges, torch.zeros(9, 2, dtype=torch.long)]).unbind(1)
    yield Padded(source, target, exists, torch.ones(1, NODES, dtype=torch.bool))


def copy(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Give ours the weights of theirs; every parameter of either is named."""
    weights = dict(theirs.named_parameters())
    assert sorted(names) == sorted(dict(ours.named_parameters()))
    for name, parameter in ours.named_parameters():
        found = [weights.pop(part) for part in names[name].split("+")]
        parameter.data = torch.cat(found).reshape(parameter.shape).clone()
    assert not weights


def random_biases(module: nn.Module) -> None:
    """Biases begin at zero, which hides where they are added."""
    for parameter in module.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)


def largest_difference(ours: nn.Module, theirs: nn.Module, names: dict[str, str], width: int) -> float:
    """Return it over values, gradients of the input and gradients of every weight, in both forms of a graph."""
    random_biases(theirs)
    copy(ours, theirs, names)
    edges, worst = hard_edges(), 0.0
    for graph in both_forms(edges):
        for needs in (True, False):
            torch.manual_seed(1)
            x = torch.randn(NODES, width)
            mine, other = x.clone().requires_grad_(needs), x.clone().requires_grad_(needs)
            ours.zero_grad(), theirs.zero_grad()
            found, wanted = ours(mine, graph), theirs(other, edges.t())
            down = torch.randn_like(wanted)
            found.backward(down), wanted.backward(down)
            pairs = [(found, wanted)] + ([(mine.grad, other.grad)] if needs else [])
            grads = {name: p.grad for name, p in theirs.named_parameters()}
            for name, parameter in ours.named_parameters():
                wanted_grad = torch.cat([grads[part] for part in names[name].split("+")]).reshape(parameter.shape)
                pairs.append((parameter.grad, wanted_grad))
            worst = max(worst, *(float((a - b).detach().abs().max()) for a, b in pairs))
    return worst


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 16), (16, 5), (1, 1), (7, 7)])
def test_convolution_is_theirs(inputs: int, outputs: int) -> None:
    theirs = pytest.importorskip("torch_geometric.nn").GCNConv(inputs, outputs)
    names = {"weight": "lin.weight", "bias": "bias"}
    assert largest_difference(GraphConvolution(inputs, outputs), theirs, names, inputs) <= 1e-5


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_theirs(heads: int, join: bool) -> None:
    theirs = pytest.importorskip("torch_geometric.nn").GATConv(6, 5, heads, concat=join)
    names = {"source.weight": "lin.weight", "attention": "att_src+att_dst", "bias": "bias"}
    assert largest_difference(GraphAttention(6, 5, heads, join), theirs, names, 6) <= 1e-5


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("heads", [1, 4])
def test_dynamic_attention_is_theirs(heads: int, join: bool) -> None:
    theirs = pytest.importorskip("torch_geometric.nn").GATv2Conv(6, 5, heads, concat=join)
    names = {"source.weight": "lin_l.weight", "source.bias": "lin_l.bias", "target.weight": "lin_r.weight"}
    names |= {"target.bias": "lin_r.bias", "attention": "att", "bias": "bias"}
    assert largest_difference(GraphAttention(6, 5, heads, join, dynamic=True), theirs, names, 6) <= 1e-5


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 16), (16, 5)])
@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_sample_and_aggregate_is_theirs(aggregate: str, inputs: int, outputs: int, unit: bool) -> None:
    conv = pytest.importorskip("torch_geometric.nn").SAGEConv
    theirs = conv(inputs, outputs, aggr=aggregate, normalize=unit, project=aggregate == "max")
    names = {"neighbours.weight": "lin_l.weight", "neighbours.bias": "lin_l.bias", "own.weight": "lin_r.weight"}
    if aggregate == "max":
        names |= {"project.weight": "lin.weight", "project.bias": "lin.bias"}
    ours = SampleAndAggregate(inputs, outputs, aggregate, unit)
    assert largest_difference(ours, theirs, names, inputs) <= 1e-5


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 16), (16, 5)])
def test_isomorphism_is_theirs(inputs: int, outputs: int, learn: bool) -> None:
    layers = [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Linear(outputs, outputs)]
    theirs = pytest.importorskip("torch_geometric.nn").GINConv(nn.Sequential(*layers), train_eps=learn)
    ours = GraphIsomorphism(inputs, outputs, learn)
    names = {f"{mine}.{part}": f"nn.{place}.{part}" for mine, place in (("first", 0), ("norm", 1), ("second", 3))
             for part in ("weight", "bias")}  # fmt: skip
    if learn:
        nn.init.constant_(theirs.eps, 0.3)
        theirs.eps.data = theirs.eps.data.reshape(1)
        names["epsilon"] = "eps"
    theirs.eval(), ours.eval()  # gradients through the running statistics; those of a batch are tested by themselves
    assert largest_difference(ours, theirs, names, inputs) <= 1e-5


def test_norm_of_real_nodes_is_the_norm_of_them_alone() -> None:
    torch.manual_seed(0)
    x, real = torch.randn(30, 4) * 3 + 1, torch.rand(30) < 0.6
    masked, alone = NodeNorm(4), nn.BatchNorm1d(4)
    graph = Padded(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0).bool(), real[None])
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, wanted = masked(mine, graph)[real], alone(other[real])
    found.square().sum().backward(), wanted.square().sum().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.grad[real], other.grad[real], rtol=1e-4, atol=1e-5)
    for name, wanted in alone.state_dict().items():
        torch.testing.assert_close(masked.state_dict()[name], wanted)


@pytest.mark.parametrize("padded", [True, False])
def test_norm_of_a_single_node_takes_the_running_statistics(padded: bool) -> None:
    none, real = torch.zeros(0).long(), torch.tensor([[True, False]])
    graph: Graph = Padded(none, none, none.bool(), real)
    if not padded:
        graph = Sparse(none.numpy(), none.numpy(), real[:, :1].numpy(), none.device)
    norm = NodeNorm(3)
    found = norm(torch.full((2 if padded else 1, 3), 2.0), graph)
    torch.testing.assert_close(found[0], torch.full((3,), 2.0), rtol=1e-4, atol=1e-4)
    assert all(value.isfinite().all() for value in norm.state_dict().values())


def layers() -> dict[str, Callable[[], nn.Module]]:
    return {
        "convolution": lambda: GraphConvolution(6, 8),
        "attention": lambda: GraphAttention(6, 4, 2, dropout=0.0),
        "dynamic attention": lambda: GraphAttention(6, 4, 2, dynamic=True),
        "mean": lambda: SampleAndAggregate(6, 8),
        "max": lambda: SampleAndAggregate(6, 8, "max"),
        "isomorphism": lambda: GraphIsomorphism(6, 8, learn=True).eval(),
    }


@pytest.mark.parametrize("name", layers())
def test_gradients_are_those_of_differences(name: str) -> None:
    torch.manual_seed(0)
    layer = layers()[name]().double()
    random_biases(layer)
    edges = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 0], [0, 0], [1, 2]])
    graph = Graphs().of(edges[None], torch.tensor([5]), 5)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    weights = tuple(layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x, graph), (x, *weights))


@pytest.mark.parametrize("name", layers())
def test_a_graph_without_edges(name: str) -> None:
    torch.manual_seed(0)
    layer = layers()[name]()
    for edges in (torch.zeros(1, 0, 2).long(), torch.full((1, 3, 2), -1)):
        graph = Graphs().of(edges, torch.tensor([4]), 4)
        x = torch.randn(4, 6, requires_grad=True)
        layer(x, graph).sum().backward()
        assert x.grad.isfinite().all() and x.grad.abs().max() > 0


@pytest.mark.parametrize("name", layers())
def test_half_precision_is_close(name: str) -> None:
    torch.manual_seed(0)
    layer = layers()[name]()
    x = torch.randn(NODES, 6)
    for graph in both_forms(hard_edges()):
        wanted = layer(x, graph)
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x.clone().requires_grad_(), graph)
        assert (found.float() - wanted).abs().max() < 0.05 * wanted.abs().max()
        layer.zero_grad()
        found.float().sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dynamic", [True, False])
def test_scores_of_any_size_stay_finite(dynamic: bool) -> None:
    torch.manual_seed(0)
    layer = GraphAttention(6, 4, 2, dynamic=dynamic)
    nn.init.normal_(layer.attention, std=1e3)
    for graph in both_forms(hard_edges()):
        x = (1e3 * torch.randn(NODES, 6)).requires_grad_()
        found = layer(x, graph)
        found.sum().backward()
        assert found.isfinite().all() and x.grad.isfinite().all()


def test_dropped_attention_keeps_its_mean() -> None:
    """Weights are dropped after the softmax, and the rest made larger, in either form."""
    torch.manual_seed(0)
    layer, x = GraphAttention(6, 4, 2, dropout=0.5), torch.randn(NODES, 6)
    for graph in both_forms(hard_edges()):
        wanted = layer.eval()(x, graph)
        layer.train()
        assert (layer(x, graph) - wanted).abs().max() > 0.1
        torch.testing.assert_close(
            torch.stack([layer(x, graph) for _ in range(3000)]).mean(0), wanted, rtol=0, atol=0.1
        )


def test_what_is_narrower_is_summed() -> None:
    data, hidden = torch.zeros(1, 1), torch.zeros(1, 1, requires_grad=True)
    assert sum_first(data, outputs=64, inputs=128) and not sum_first(data, outputs=64, inputs=129)
    assert sum_first(hidden, outputs=64, inputs=64) and not sum_first(hidden, outputs=64, inputs=65)
    with torch.no_grad():
        assert sum_first(data, outputs=64, inputs=64) and not sum_first(data, outputs=64, inputs=65)
