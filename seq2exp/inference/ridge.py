"""The baseline every model has to beat: ridge regression on binned signals."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def binned_signals(signals: NDArray[np.float32], bins: int = 64) -> Array:
    """Mean of every signal in ``bins`` equal parts of the window: (L, tracks) -> (bins * tracks,)."""
    edges = np.linspace(0, len(signals), bins + 1).astype(int)
    return np.stack([signals[a:b].mean(0, dtype=np.float64) for a, b in pairwise(edges)]).ravel()


def fit_ridge(x: Array, y: Array, x_valid: Array, y_valid: Array) -> tuple[Array, Array, float]:
    """Ridge regression on standardised features, the penalty chosen by the error on the validation genes.

    Args:
        x, x_valid: (genes, features). y, y_valid: (genes,).

    Returns:
        weights (features,), means of the features (features,) and intercept:
        prediction = (x - means) @ weights + intercept.
    """
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1.0
    left, singular, right = np.linalg.svd((x - mean) / scale, full_matrices=False)
    centred = left.T @ (y - y.mean())
    fits = []
    for penalty in np.logspace(-2, 5, 22):
        weights = right.T @ (singular / (singular**2 + penalty) * centred) / scale
        error = float(np.mean(((x_valid - mean) @ weights + y.mean() - y_valid) ** 2))
        fits.append((error, weights))
    return min(fits, key=lambda fit: fit[0])[1], mean, float(y.mean())
