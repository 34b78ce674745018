"""Retrieval against scikit-learn's nearest neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from fathom.evaluate import neighbours, recall


@pytest.mark.parametrize("nearest", [1, 4])
def test_recall_is_that_of_exact_neighbours(nearest):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 2_300).astype(str)  # more than are compared at once
    vectors = rng.normal(size=(2_300, 6)) + labels.astype(float)[:, None] / 2
    _, places = NearestNeighbors(n_neighbors=nearest + 1).fit(vectors).kneighbors(vectors)
    expected = (labels[places[:, 1:]] == labels[:, None]).any(1).mean()
    found = recall(vectors.astype(np.float32), labels, nearest)
    assert found["value"] == pytest.approx(expected, abs=1e-9)
    assert found["low"] < expected < found["high"] and found["rows"] == 2_300


def test_rows_alone_of_their_class_or_unreadable_do_not_count():
    vectors = np.array([[0.0], [0.1], [5.0], [np.nan], [0.2]])
    found = recall(vectors, np.array(["a", "a", "b", "a", "c"]))
    assert (found["value"], found["rows"]) == (1.0, 2)
    assert recall(vectors[:1], np.array(["a"]))["value"] is None


@pytest.mark.parametrize("apart", [False, True])
def test_neighbours_are_those_of_the_exact_cosine(apart):
    rng = np.random.default_rng(1)
    others = rng.normal(size=(1_500, 5)) + 0.3
    vectors = others if apart else rng.normal(size=(1_100, 5))  # more than are compared at once
    search = NearestNeighbors(n_neighbors=7, metric="cosine").fit(others)
    distances, expected = search.kneighbors(None if apart else vectors)
    places, cosines = neighbours(vectors, others, 7, apart)
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-9)


def test_there_are_no_more_neighbours_than_rows_and_zeros_are_near_to_none():
    places, cosines = neighbours(np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 3.0], [1.0, 1.0]]), 9)
    assert places.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(cosines, [[0, 0], [0.5**0.5, 0]])
    assert neighbours(np.ones((1, 2)), np.ones((1, 2)), 3, apart=True)[0].shape == (1, 0)
