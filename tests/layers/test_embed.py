"""Embeddings of table columns against the formulas they stand for."""

import numpy as np
import pytest
import torch

from fathom.layers.embed import CategoryEmbedding, LinearEmbedding, PeriodicEmbedding, PiecewiseEmbedding

EDGES = [[-1.0, 0.0, 0.5, 2.0], [0.0, 1.0], [-3.0, -1.0, 4.0]]


def piecewise_linear(x: np.ndarray, edges: list[float], bins: int) -> np.ndarray:
    """The encoding of the paper's equation 1, one number and one bin at a time."""
    encoded = np.zeros((len(x), bins))
    last = len(edges) - 2
    for row, value in enumerate(x):
        for t in range(last + 1):
            if value < edges[t] and t > 0:
                encoded[row, t] = 0
            elif value >= edges[t + 1] and t < last:
                encoded[row, t] = 1
            else:
                encoded[row, t] = (value - edges[t]) / (edges[t + 1] - edges[t])
    return encoded


@pytest.fixture
def numbers() -> torch.Tensor:
    torch.manual_seed(0)
    return 3 * torch.randn(200, 3)  # some beyond the outer edges


def test_piecewise_encoding_is_the_papers(numbers):
    encoded = PiecewiseEmbedding(EDGES, 4).encode(numbers)
    assert encoded.shape == (200, 3, 3)
    for f, edges in enumerate(EDGES):
        expected = piecewise_linear(numbers[:, f].double().numpy(), edges, bins=3)
        np.testing.assert_allclose(encoded[:, f].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_piecewise_encoding_at_an_edge_is_continuous():
    embed = PiecewiseEmbedding(EDGES, 4)
    at, before, after = (embed.encode(torch.tensor([[e, 0.5, -1.0 + e]])) for e in (0.5, 0.5 - 1e-6, 0.5 + 1e-6))
    torch.testing.assert_close(at, before, atol=1e-4, rtol=0)
    torch.testing.assert_close(at, after, atol=1e-4, rtol=0)


def test_piecewise_embedding_begins_as_straight_lines_and_can_bend(numbers):
    embed = PiecewiseEmbedding(EDGES, 4)
    torch.testing.assert_close(embed(numbers), embed.linear(numbers))
    with torch.no_grad():
        embed.bend.normal_()
    bent = embed.linear(numbers) + (embed.encode(numbers).unsqueeze(-1) * embed.bend).sum(2)
    torch.testing.assert_close(embed(numbers), bent)


def test_periodic_embedding_is_the_number_and_mapped_waves(numbers):
    embed = PeriodicEmbedding(3, size=5, frequencies=7)
    out = embed(numbers).detach().numpy()
    frequency, phase, weight, bias = (p.detach().numpy() for p in embed.parameters())
    for f in range(3):
        x = numbers[:, f].numpy()
        waves = np.cos(2 * np.pi * (np.outer(x, frequency[f]) + phase[f]))
        np.testing.assert_allclose(out[:, f, 0], x)
        np.testing.assert_allclose(out[:, f, 1:], waves @ weight[f] + bias[f], rtol=1e-4, atol=1e-4)


def test_category_embedding_gives_each_column_its_own_vectors():
    torch.manual_seed(0)
    embed = CategoryEmbedding([3, 2], size=4)
    out = embed(torch.tensor([[0, 0], [1, 1], [2, 0]]))
    assert out.shape == (3, 2, 4)
    assert torch.equal(out[0], torch.zeros(2, 4))  # class 0, missing or never seen, says nothing at first
    assert torch.equal(out[1], embed.vectors[[1, 4]])
    assert torch.equal(out[2], embed.vectors[[2, 3]])


@pytest.mark.parametrize(
    "embed",
    [LinearEmbedding(3, 4), PiecewiseEmbedding(EDGES, 4), PeriodicEmbedding(3, 4)],
    ids=lambda e: type(e).__name__,
)
def test_gradients_are_those_of_finite_differences(embed):
    torch.manual_seed(0)
    embed = embed.double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: embed(x), (x, *embed.parameters()))


def test_category_gradients_reach_only_the_classes_in_the_batch():
    embed = CategoryEmbedding([3, 2], size=4)
    embed(torch.tensor([[1, 1]])).sum().backward()
    assert embed.vectors.grad.sum(1).tolist() == [0.0, 4.0, 0.0, 0.0, 4.0]
