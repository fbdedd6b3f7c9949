"""The cost of the hard predictor against the fraction of the bases that the mask selects.

    python bench/packed_cost.py            # writes bench/results/packed_cost.md and packed_cost.png

Gather, four layers and centre mean, forward and backward, of one window of 200,000 bases at d_model 128, float32, for
masks drawn at random. Time and memory at the peak are relative to the same predictor reading every base; proportional
cost would be the selected fraction itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import torch
from harness import peak_memory
from torch import Tensor

from seq2exp import Seq2Exp, Seq2ExpConfig
from seq2exp.kernels.beta_mask.settings import centre_slice

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LENGTH, CENTER = 200_000, 2_000
FRACTIONS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
ROUNDS = 3
RESULTS = Path(__file__).parent / "results"


def masks() -> dict[float, Tensor]:
    """fraction -> (1, L), the centre always selected."""
    g = torch.Generator().manual_seed(3)
    drawn = torch.rand(1, LENGTH, generator=g)
    drawn[:, centre_slice(LENGTH, CENTER)] = 0
    return {f: (drawn <= drawn.flatten().sort().values[round(f * LENGTH) - 1]).float() for f in FRACTIONS}


def step(model: Seq2Exp, inputs: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    model.zero_grad()
    expression = model.predict(*inputs, mask.detach().requires_grad_())
    expression.sum().backward()
    return expression.detach()


def report(seconds: dict[float, float], peaks: dict[float, int], dense: tuple[float, int]) -> None:
    rows = [(f, seconds[f] / dense[0], peaks[f] / dense[1]) for f in FRACTIONS]
    lines = ["| selected | time | memory at the peak |", "| --- | --- | --- |"]
    lines += [f"| {f:.0%} | {t:.3f} | {m:.3f} |" for f, t, m in rows]
    lines.append(f"\nThe predictor that reads every base: {dense[0]:.2f} s, {dense[1] / 1e9:.2f} GB at the peak.")
    text = "\n".join(lines)
    print(text)
    (RESULTS / "packed_cost.md").write_text(f"# Cost of the packed predictor\n\n{(__doc__ or '').strip()}\n\n{text}\n")
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    axes.plot(FRACTIONS, FRACTIONS, color="0.6", linestyle="--", label="proportional")
    axes.plot(FRACTIONS, [t for _, t, _ in rows], marker="o", label="time")
    axes.plot(FRACTIONS, [m for _, _, m in rows], marker="s", label="memory at the peak")
    axes.set(
        xscale="log", yscale="log", xlabel="fraction of the bases selected", ylabel="relative to reading every base",
        title=f"Hard predictor, {LENGTH:,} bases",
    )  # fmt: skip
    axes.set_xticks(FRACTIONS, [f"{f:.0%}" for f in FRACTIONS], minor=False)
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "packed_cost.png", dpi=150)


def main() -> int:
    fields = dict(share_backbone=False, generator_layers=1, gene_features=0)
    packed, dense = (Seq2Exp(Seq2ExpConfig.hard(**fields, packed=p)) for p in (True, False))
    dense.load_state_dict(packed.state_dict())
    g = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 5, (1, LENGTH), generator=g, dtype=torch.uint8)
    inputs, selected = (codes, torch.rand(1, LENGTH, 3, generator=g)), masks()
    everything = selected[1.0]
    torch.testing.assert_close(step(packed, inputs, everything), step(dense, inputs, everything), rtol=1e-4, atol=1e-5)

    works = {f: partial(step, packed, inputs, mask) for f, mask in selected.items()}
    works[0.0] = partial(step, dense, inputs, everything)
    peaks = {f: peak_memory(work) or 0 for f, work in works.items()}
    rounds = [{f: _seconds(work) for f, work in works.items()} for _ in range(ROUNDS)]
    seconds = {f: min(times[f] for times in rounds) for f in works}
    report(seconds, peaks, (seconds[0.0], peaks[0.0]))
    return 0


def _seconds(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
