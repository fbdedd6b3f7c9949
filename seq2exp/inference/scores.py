"""How well a per-base score finds known elements: average precision per base and per element."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the precision-recall curve as sum of (recall step * precision), equal scores taken together.

    Args:
        scores: (n,) higher means more likely positive.
        labels: (n,) true or false.

    Returns:
        the area, the share of positives for a constant score; NaN without a positive.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if not truth.any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    values, hits = values[order], np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)  # last position of each distinct score
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


@dataclass(frozen=True)
class Element:
    """A candidate element in window coordinates (0-based, half-open) and whether it is a true one."""

    start: int
    end: int
    true: bool


class Recovery:
    """Collects per-base scores of many windows and compares them with the true elements.

    Bases where ``counted`` is false (the centre, excluded bases) take no part, neither as bases nor inside elements.
    """

    def __init__(self) -> None:
        self._bases: dict[str, list[NDArray[np.float32]]] = {}
        self._elements: dict[str, list[float]] = {}
        self._base_truth: list[NDArray[np.bool_]] = []
        self._element_truth: list[bool] = []

    def add(self, scores: dict[str, NDArray[np.float32]], elements: list[Element], counted: NDArray[np.bool_]) -> None:
        """One window: scores (L,) by name, its candidate elements, and which bases are counted (L,)."""
        truth = np.zeros(len(counted), dtype=bool)
        kept = []
        for element in elements:
            part = slice(max(0, element.start), max(0, element.end))
            if counted[part].any():
                kept.append((part, element.true))
                truth[part] |= element.true
        self._base_truth.append(truth[counted])
        self._element_truth.extend(true for _, true in kept)
        for name, values in scores.items():
            self._bases.setdefault(name, []).append(values[counted])
            self._elements.setdefault(name, []).extend(float(values[part][counted[part]].mean()) for part, _ in kept)

    def average_precision(self) -> dict[str, tuple[float, float]]:
        """Average precision by score name: (over bases, over candidate elements scored by their mean)."""
        base_truth = np.concatenate(self._base_truth) if self._base_truth else np.zeros(0, dtype=bool)
        return {
            name: (
                average_precision(np.concatenate(parts), base_truth),
                average_precision(self._elements[name], self._element_truth),
            )
            for name, parts in self._bases.items()
        }

    def prevalence(self) -> tuple[float, float]:
        """Share of true bases and of true elements: the average precision of a constant score."""
        return float(np.mean(np.concatenate(self._base_truth))), float(np.mean(self._element_truth))
