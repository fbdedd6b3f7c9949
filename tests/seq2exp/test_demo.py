"""The demonstration: quickly that it runs, slowly that the model and its mask learn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

RIVALS = {
    f"{track}{contact}" for track in ("H3K27ac", "DNase", "H3K27ac x DNase") for contact in ("", " x contact")
}  # fmt: skip


def test_demo_prints_figures_and_where_the_results_are(seq2exp, tmp_path):
    code, out, _ = seq2exp("demo", "--out", tmp_path, "--steps", 2, "--genes", 60)
    assert code == 0
    for said in ("s/step", "ridge on binned signals", "mean", "Pearson", "soft mask", "DNase x contact", "elements"):
        assert said in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["recovery"]) == {"soft mask"} | RIVALS
    assert report["expression"]["mean"]["pearson"] is None and report["steps"] == 2
    assert all(Path(path).exists() and str(path) in out for path in report["files"].values())
    assert seq2exp("demo", "--out", tmp_path, "--steps", 2, "--genes", 60)[0] == 2
    assert seq2exp("demo", "--out", tmp_path, "--steps", 2, "--genes", 60, "--force")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 22])
def test_the_mask_finds_the_elements_and_the_model_beats_ridge(tmp_path, seed):
    from seq2exp.demo import run_demo

    report = run_demo(tmp_path, seed=seed)
    mask = report.recovery["soft mask"]
    for name in RIVALS:
        rival = report.recovery[name]
        assert mask[0] > rival[0] + 0.05, f"{name}: bases {rival[0]:.3f}, mask {mask[0]:.3f}"
        assert mask[1] > rival[1] + 0.3, f"{name}: elements {rival[1]:.3f}, mask {mask[1]:.3f}"
    model, ridge = (report.expression[name] for name in ("model", "ridge on binned signals"))
    assert model["pearson"] > ridge["pearson"] + 0.2 and model["mse"] < 0.5 * ridge["mse"]
    assert ridge["mse"] < report.expression["mean"]["mse"] and math.isfinite(report.seconds_per_step)
