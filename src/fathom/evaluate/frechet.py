"""How far two sets of samples are apart, by the mean and covariance of their features: the Fréchet distance.

With the features of a network that was trained to tell images apart, it measures generators: FID, of whose value the
network, the number of samples and their preparation are a part, and have to be stated.

Source: Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, GANs Trained by a Two Time-Scale Update Rule Converge to a
Local Nash Equilibrium, 2017; Dowson, Landau, The Fréchet Distance between Multivariate Normal Distributions, 1982.
"""

from __future__ import annotations

import numpy as np


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) of features [N, D] and [M, D], two samples each at the least.

    The trace of the root is the sum of the singular values of Σ₁^½·Σ₂^½: both roots are of symmetric matrices, so that
    nothing complex appears and a covariance without full rank does no harm.
    """
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    covariances = [np.atleast_2d(np.cov(features, rowvar=False)) for features in (one, other)]
    roots = [_root(covariance) for covariance in covariances]
    shared = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    apart = np.square(one.mean(0) - other.mean(0)).sum()
    return float(apart + sum(np.trace(c) for c in covariances) - 2 * shared)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a symmetric matrix [D, D] without negative eigenvalues but by rounding."""
    values, vectors = np.linalg.eigh(covariance)
    root: np.ndarray = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
