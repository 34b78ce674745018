"""Graphs of a batch: recognised when they come again, the same in both forms, and refused where they are wrong."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fathom.core.errors import DataError
from fathom.layers import graph as graph_layer
from fathom.layers.graph import Graphs, Sparse
from fathom.layers.propagate import product


def batch_of_graphs(seed: int = 0, rows: int = 5, nodes: int = 7, edges: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Return edges [B, E, 2], sizes [B] and vectors [B, N, 3] of graphs of all sizes, one of them without nodes."""
    draw = torch.Generator().manual_seed(seed)
    size = torch.randint(1, nodes + 1, (rows,), generator=draw)
    size[2] = 0
    ends = (torch.rand(rows, edges, 2, generator=draw) * size[:, None, None]).long()
    ends[torch.rand(rows, edges, generator=draw) < 0.3] = -1
    ends[size == 0] = -1
    x = torch.randn(rows, nodes, 3, generator=draw) * (torch.arange(nodes) < size[:, None])[..., None]
    return ends, size, x


def dense(edges: Tensor, rows: int) -> Tensor:
    """Return the number of edges from j to i at [i, j]."""
    found = torch.zeros(rows, rows)
    for source, target in edges[(edges >= 0).all(1)].tolist():
        found[target, source] += 1
    return found


@pytest.mark.parametrize("both", [True, False])
def test_each_graph_is_its_matrix(both: bool) -> None:
    edges, size, x = batch_of_graphs()
    graph = Graphs(both).of(edges, size, 7)
    packed = graph.pack(x)
    assert packed.shape == (int(size.sum()), 3)
    found = {kind: graph.pad(graph.gather(packed, kind)) for kind in ("sum", "mean", "symmetric")}
    for row in range(len(edges)):
        a = dense(edges[row], 7)
        a = a + a.t() if both else a
        looped = a - a.diag().diag() + torch.eye(7)
        root = looped.sum(1).rsqrt()
        real = (torch.arange(7) < size[row]).float()[:, None]
        wanted = {
            "sum": a @ x[row],
            "mean": a @ x[row] / a.sum(1, keepdim=True).clamp_min(1),
            "symmetric": root[:, None] * looped * root @ x[row] * real,
        }
        for kind, value in wanted.items():
            torch.testing.assert_close(found[kind][row], value)


def test_both_forms_give_the_same_numbers() -> None:
    edges, size, x = batch_of_graphs()
    sparse, padded = graph_layer._sparse(edges, size, 7, True), graph_layer._padded(edges, size, 7, True)
    assert torch.equal(sparse.real, padded.real)
    for kind in ("sum", "mean", "symmetric"):
        found = [graph.pad(graph.gather(graph.pack(x), kind)) for graph in (sparse, padded)]
        torch.testing.assert_close(*found)
    torch.testing.assert_close(*(graph.pad(graph.largest(graph.pack(x))) for graph in (sparse, padded)))
    ends = sparse.pattern.source.long(), sparse.pattern.target.long()
    found = graph_layer._largest(sparse.pack(x), *ends)  # on other devices
    torch.testing.assert_close(found, sparse.largest(sparse.pack(x)))


def test_a_graph_is_made_once() -> None:
    edges, size, _ = batch_of_graphs()
    graphs = Graphs()
    first = graphs.of(edges, size, 7)
    assert graphs.of(edges, size, 7) is first  # the very tensors
    assert graphs.of(edges.clone(), size.clone(), 7) is first  # gathered anew
    with torch.inference_mode():
        assert graphs.of(edges.clone(), size.clone(), 7) is first
    assert first.symmetric is first.symmetric and first.looped is first.looped


def test_a_changed_graph_is_another() -> None:
    edges, size, _ = batch_of_graphs()
    graphs = Graphs()
    first = graphs.of(edges, size, 7)
    before = edges.clone()
    row = int((size > 1).nonzero()[0])
    edges[row, 0] = torch.tensor([1, 0]) if edges[row, 0].tolist() != [1, 0] else torch.tensor([0, 1])
    changed = graphs.of(edges, size, 7)
    assert changed is not first
    assert graphs.of(before, size, 7) is first
    size[row] += 1
    assert graphs.of(edges, size, 8) is not changed
    with torch.inference_mode():
        inside = edges.clone()
        last = graphs.of(inside, size, 8)
        inside[row, 0] = -1  # tensors made in inference mode count no changes
        assert graphs.of(inside, size, 8) is not last
    assert graphs.of(before[:1], size[:1], 7).rows == int(size[0])


def test_a_tensor_of_another_shape_at_the_same_place_is_another() -> None:
    """What was freed may come again at the same address."""
    graphs = Graphs()
    size = torch.tensor([3])
    rows = set()
    for seed in range(50):
        edges = torch.randint(3, (1, 4, 2), generator=torch.Generator().manual_seed(seed))
        graph = graphs.of(edges, size, 3)
        assert isinstance(graph, Sparse)
        wanted = dense(edges[0], 3)
        torch.testing.assert_close(graph.gather(torch.eye(3), "sum"), wanted)
        rows.add(tuple(wanted.flatten().tolist()))
        del edges
    assert len(rows) > 20


def test_only_the_last_graphs_are_kept() -> None:
    size, graphs = torch.tensor([3]), Graphs()
    made = [torch.randint(3, (1, 4 + i, 2)) for i in range(6)]
    first = [graphs.of(edges, size, 3) for edges in made]
    assert len(graphs._kept) == graph_layer.KEPT
    assert [graphs.of(edges, size, 3) is graph for edges, graph in zip(made[2:], first[2:], strict=True)] == [True] * 4
    assert graphs.of(made[0], size, 3) is not first[0]


def test_a_copy_starts_empty() -> None:
    edges, size, _ = batch_of_graphs()
    graphs = Graphs(both=True)
    graphs.of(edges, size, 7)
    for other in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs))):
        assert other.both and other._kept == []


def test_edges_that_cannot_be_are_named() -> None:
    edges, size, _ = batch_of_graphs()
    wrong = edges.clone()
    wrong[1, 3] = torch.tensor([0, int(size[1])])
    with pytest.raises(
        DataError, match=rf"Edge 3 of graph 1 joins nodes \[0, {int(size[1])}\].* has {int(size[1])} nod"
    ):
        Graphs().of(wrong, size, 7)
    with pytest.raises(DataError, match="said to have 9 nodes; the batch has places for 0 to 7"):
        Graphs().of(edges, size + torch.tensor([0, 0, 0, 0, 9 - int(size[4])]), 7)


def test_a_product_can_be_differentiated_twice() -> None:
    edges, size, _ = batch_of_graphs()
    graph = Graphs().of(edges, size, 7)
    x = torch.randn(graph.rows, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: product(graph.symmetric, x), (x,))
    assert torch.autograd.gradgradcheck(lambda x: product(graph.symmetric, x), (x,))


def test_no_trace_holds_the_graph_of_one_batch() -> None:
    """What is laid out on the host would stand in it as constants."""
    edges, size = torch.tensor([[[0, 1], [1, 2]]]), torch.tensor([3])
    with pytest.raises(RuntimeError, match="tracing tensor"):
        make_fx(lambda edges, size: Graphs().of(edges, size, 4).pack(torch.randn(1, 4, 2)))(edges, size)
