"""Writes tests/kernels/beta_gradients.csv: d logit(m) / d alpha and / d beta of Beta draws m, to high precision.

    python tests/support/make_beta_gradients.py

At 200 random points: alpha and beta log-uniform over 1e-3..1e4, the logit z drawn from the Beta and kept where m does
not round to 0 or 1. -(dF/dalpha) / (p(m) dm/dz) by central differences of the incomplete Beta function, in 50 digits;
the function by its series of positive terms. Needs mpmath (torch brings it) and numpy.
"""

from __future__ import annotations

import csv
from pathlib import Path

import mpmath as mp
import numpy as np

POINTS, REACH = 200, 60.0
OUT = Path(__file__).parents[1] / "kernels" / "beta_gradients.csv"


def lower_tail(a: mp.mpf, b: mp.mpf, x: mp.mpf, y: mp.mpf) -> mp.mpf:
    """I_x(a, b) = x^a y^b / (a B(a, b)) sum_n (a + b)_n / (a + 1)_n x^n, with y = 1 - x."""
    term = total = mp.mpf(1)
    n = 0
    while True:
        ratio = (a + b + n) / (a + 1 + n) * x
        term *= ratio
        total += term
        n += 1
        if ratio < 1 and term * ratio / (1 - ratio) < total * mp.mpf(10) ** -45:
            break
    return density(a, b, x, y) / a * total


def density(a: mp.mpf, b: mp.mpf, x: mp.mpf, y: mp.mpf) -> mp.mpf:
    """Of the logit."""
    return mp.e ** (a * mp.log(x) + b * mp.log(y)) / mp.beta(a, b)


def gradients(alpha: float, beta: float, logit: float) -> tuple[float, float]:
    a, b, z = map(mp.mpf, (alpha, beta, logit))
    x, y = 1 / (1 + mp.e**-z), 1 / (1 + mp.e**z)

    def cdf(a: mp.mpf, b: mp.mpf) -> mp.mpf:
        return lower_tail(a, b, x, y) if x < 0.5 else 1 - lower_tail(b, a, y, x)

    h = mp.mpf(10) ** -15
    by_a = (cdf(a * (1 + h), b) - cdf(a * (1 - h), b)) / (2 * a * h)
    by_b = (cdf(a, b * (1 + h)) - cdf(a, b * (1 - h))) / (2 * b * h)
    p = density(a, b, x, y)
    return float(-by_a / p), float(-by_b / p)


def draw(rng: np.random.Generator) -> tuple[float, float, float]:
    """alpha, beta, logit, exact in float32."""
    while True:
        alpha, beta = (np.float32(10 ** rng.uniform(-3, 4)) for _ in range(2))
        log_g = [np.log(rng.gamma(c + 1)) + np.log(rng.random()) / c for c in (float(alpha), float(beta))]
        z = np.float32(log_g[0] - log_g[1])
        if abs(z) < REACH:
            return float(alpha), float(beta), float(z)


def main() -> None:
    mp.mp.dps = 50
    rng = np.random.default_rng(0)
    with OUT.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["alpha", "beta", "logit", "by_alpha", "by_beta"])
        for _ in range(POINTS):
            point = draw(rng)
            table.writerow([repr(x) for x in (*point, *gradients(*point))])


if __name__ == "__main__":
    main()
