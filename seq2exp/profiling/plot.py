"""The picture of memory over a training step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seq2exp.files import atomic
from seq2exp.inference.plot import INK, MASK, MUTED

from .measure import Curve, StepCost
from .report import Profile, seconds

LINES = {"ours": "#2a6f97", "published": MASK}
NARROWEST = 0.068  # share of the picture that every part gets, before its time counts


def plot_memory(path: Path, sizes: Sequence[Sequence[Profile]]) -> None:
    """Draw memory over the step as PNG, atomically: a row for each size, whose forms lie over one another.

    A step is drawn part by part, each as wide as it takes in the first form, but wide enough to be seen; the curves of
    the others are stretched to the same parts.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [forms for forms in sizes if any(p.cost for p in forms)]
    style: Any = {
        "font.size": 9, "axes.edgecolor": MUTED, "axes.linewidth": 0.6, "text.color": INK, "axes.labelcolor": INK,
        "xtick.color": MUTED, "ytick.color": MUTED, "axes.spines.top": False, "axes.spines.right": False,
        "font.family": "DejaVu Sans",
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(len(measured), 1, figsize=(10, 3.6 * len(measured) + 0.3), squeeze=False)
        figure.set_layout_engine("constrained", hspace=0.06)
        for axis, forms in zip(axes[:, 0], measured, strict=True):
            _step(axis, forms)
        figure.supxlabel("each part as wide as it takes, but wide enough to be seen", fontsize=7.5, color=MUTED)
        with atomic(path) as partial:
            figure.savefig(partial, dpi=150)
        plt.close(figure)


def _step(axis: Any, forms: Sequence[Profile]) -> None:
    costs: dict[str, StepCost] = {p.settings.form: p.cost for p in forms if p.cost is not None}
    edges = piece_edges(next(iter(costs.values())))
    for form, cost in costs.items():
        color, overlaid = LINES[form], len(costs) > 1
        x, bytes_ = _placed(cost.allocated_curve, cost, edges)
        label = f"{form}, " if overlaid else ""
        axis.step(x, bytes_ / 1e9, where="post", color=color, lw=1.2, label=f"{label}allocated")
        axis.fill_between(x, bytes_ / 1e9, step="post", color=color, alpha=0.22, lw=0)
        if cost.resident_curve is not None and cost.resident_before is not None:
            x, bytes_ = _placed(cost.resident_curve, cost, edges)
            above = (bytes_ - cost.resident_before) / 1e9
            axis.plot(x, above, color=color, lw=1, ls=(0, (4, 2)), label=f"{label}resident, above the import of torch")
    axis.set(xlim=(0, 1), ylabel="memory (GB)")
    axis.set_ylim(0, 1.12 * axis.get_ylim()[1])
    _bands(axis, edges, costs)
    axis.legend(loc="upper left", frameon=False, fontsize=8)
    s = forms[0].settings
    failed = "".join(f"   {p.settings.form}: {p.failed}" for p in forms if p.failed)
    axis.set_title(
        f"One training step: {s.config.length:,} bases, batch {s.batch}, {s.precision}, {s.device}{failed}",
        loc="left", fontsize=10.5, weight="bold", pad=24,
    )  # fmt: skip


def pieces(cost: StepCost) -> list[tuple[str, float, float]]:
    """The spans of the step, those of one part that follow on each other joined."""
    joined: list[tuple[str, float, float]] = []
    for name, start, end in cost.spans:
        if joined and joined[-1][0] == name:
            start = joined.pop()[1]
        joined.append((name, start, end))
    return joined


def piece_edges(cost: StepCost) -> NDArray[np.float64]:
    """Where the pieces begin and the last one ends, from 0 to 1."""
    times = np.array([end - start for _, start, end in pieces(cost)])
    widths = NARROWEST + (1 - NARROWEST * len(times)) * times / times.sum()
    return np.append(0, np.cumsum(widths))


def _placed(curve: Curve, cost: StepCost, edges: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The curve with its seconds mapped to the places of the pieces in the picture."""
    there = [second for _, start, end in pieces(cost) for second in (start, end)]
    here = [place for piece in pairwise(edges) for place in piece]
    return np.append(np.interp(curve.seconds, there, here), 1), np.append(curve.bytes, curve.bytes[-1])


def _bands(axis: Any, edges: NDArray[np.float64], costs: dict[str, StepCost]) -> None:
    """The pieces: shaded in turn, named above, their seconds below."""
    text = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "fontsize": 7.5}
    for row, (form, cost) in enumerate(costs.items()):
        color = LINES[form] if len(costs) > 1 else MUTED
        for i, ((name, start, end), (left, right)) in enumerate(zip(pieces(cost), pairwise(edges), strict=True)):
            middle = (left + right) / 2
            axis.annotate(seconds(end - start), (middle, 0), (0, -6 - 11 * row), va="top", color=color, **text)
            if row == 0:
                axis.annotate(name, (middle, 1), (0, 6), va="bottom", color=INK, **text)
                if i % 2 == 0:
                    axis.axvspan(left, right, color="#000000", alpha=0.045, lw=0)
    axis.set_xticks([])
