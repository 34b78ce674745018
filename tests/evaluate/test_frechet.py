"""The Fréchet distance against closed forms, scipy's matrix root and published implementations."""

import numpy as np
import pytest
import scipy.linalg
import torch

from fathom.evaluate.frechet import frechet_distance


def features(rows: int, columns: int, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(columns)
    return random.normal(size=(rows, columns)) @ random.normal(size=(columns, columns)) + shift


def test_it_is_the_formula_with_scipys_root_of_the_product():
    one, other = features(300, 8), features(400, 8, 0.5) * 1.3
    means = one.mean(0) - other.mean(0)
    sigma = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = scipy.linalg.sqrtm(sigma[0] @ sigma[1]).real
    assert frechet_distance(one, other) == pytest.approx(means @ means + np.trace(sigma[0] + sigma[1] - 2 * root))


def test_of_one_number_it_is_the_difference_of_means_and_of_deviations_squared():
    one, other = features(50, 1), features(60, 1, 2.0) * 3
    expected = (one.mean() - other.mean()) ** 2 + (one.std(ddof=1) - other.std(ddof=1)) ** 2
    assert frechet_distance(one, other) == pytest.approx(expected)


def test_it_is_zero_of_a_set_and_itself_also_without_full_rank():
    flat = features(10, 30)  # fewer samples than numbers
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(flat, flat + 1) == pytest.approx(30, rel=1e-6)


def test_it_is_that_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    one, other = features(300, 16), features(400, 16, 0.5)
    moments = [torch.tensor(x) for a in (one, other) for x in (a.mean(0), np.cov(a, rowvar=False))]
    assert frechet_distance(one, other) == pytest.approx(fid._compute_fid(*moments).item(), rel=1e-6)


def test_it_is_that_of_pytorch_fid():
    fid = pytest.importorskip("pytorch_fid.fid_score")
    one, other = features(300, 16), features(400, 16, 0.5)
    moments = [x for a in (one, other) for x in (a.mean(0), np.cov(a, rowvar=False))]
    assert frechet_distance(one, other) == pytest.approx(fid.calculate_frechet_distance(*moments), rel=1e-6)
