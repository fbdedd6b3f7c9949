"""`seq2exp bench`: what it checks, counts, extrapolates, writes and refuses, at tiny sizes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from seq2exp import Seq2Exp, UserError
from seq2exp.baselines import PublishedForm, published_layer
from seq2exp.benchmark import contest as contests
from seq2exp.benchmark.contest import WrongResult, contest
from seq2exp.benchmark.honesty import SUMS, measure_honesty
from seq2exp.benchmark.learn import Learned, PublishedTrainer
from seq2exp.benchmark.report import notes
from seq2exp.benchmark.setting import BenchSetting
from seq2exp.benchmark.step import Cost, Step, peak_bytes, saved_bytes
from seq2exp.training import TrainConfig, Trainer

SMALL = ("--length", 200, "--d-model", 8, "--layers", 1, "--rounds", 1)


def setting(**changes: object) -> BenchSetting:
    made = BenchSetting.of(
        mode="soft", scan="ours", device="cpu", precision=None, length=200, batch=2, reference_length=None, d_model=8,
        layers=1, rounds=1,
    )  # fmt: skip
    return replace(made, **changes)


def published_step(s: BenchSetting) -> Step:
    return Step(s.published(s.model(s.length)), s.inputs(s.length), s.precision)


def test_table_and_files(seq2exp, tmp_path):
    code, out, err = seq2exp("bench", *SMALL, "--mode", "hard", "--precision", "bf16", "--out", tmp_path)
    assert code == 0, err
    assert "hard mask, L 200, batch 1, d 8, 1 + 1 layers, bf16, cpu" in out and "EXTRAPOLATED" not in out
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["setting"]["scan"] == "ours" and found["published_extrapolated_from"] is None
    assert len(found["ours"]["step"]) == len(found["published"]["forward"]) == 1
    assert 0 < found["errors"]["alpha"] < 5e-2
    with (tmp_path / "bench.csv").open(newline="") as file:
        rows = {(row["figure"], row["unit"]): row for row in csv.DictReader(file)}
    step = rows["training step", "s"]
    assert float(step["ratio"]) == pytest.approx(float(step["published"]) / float(step["ours"]))
    assert float(rows["training step", "bases/s"]["ours"]) == pytest.approx(200 / float(step["ours"]))
    assert float(rows["saved for the backward", "bytes"]["ratio"]) > 2


def test_extrapolation_is_said_and_in_proportion(seq2exp):
    code, out, _ = seq2exp("bench", *SMALL, "--scan", "reference", "--reference-length", 100)
    words = " ".join(out.split())
    assert code == 0 and "EXTRAPOLATED: the published form was measured at L 100; its times and bytes are " in words
    assert "multiplied by 2." in words and "relative errors at L 100" in words
    assert Cost(10, 20, None, 0.1, [1.0], [0.5]).scaled(2) == Cost(20, 40, None, 0.1, [2.0], [1.0])


def test_cost_is_in_proportion_to_length():
    """What the extrapolation rests on."""
    saved = [saved_bytes(published_step(setting(length=n, reference_length=n))) for n in (500, 1_000)]
    assert saved[1] == pytest.approx(2 * saved[0], rel=0.05)


def test_no_figure_for_a_wrong_form(seq2exp, monkeypatch):
    right = published_layer.flip
    monkeypatch.setattr(published_layer, "flip", lambda h: right(h).roll(1, 1))
    with pytest.raises(WrongResult, match=r"no figure: the gradient of .*\.rev\..* differs .*, the limit is 3e-04"):
        contest(setting())
    code, out, _ = seq2exp("bench", *SMALL)
    assert code == 1 and "no figure" in out and "bases/s" not in out


def test_no_figure_for_a_wrong_result_at_the_length_that_is_measured(monkeypatch):
    """Where the short window has shown nothing."""
    monkeypatch.setattr(contests, "CHECKED_BASES", 50)
    right = published_layer.flip
    monkeypatch.setattr(published_layer, "flip", lambda h: right(h) if h.shape[1] < 100 else h)
    with pytest.raises(WrongResult, match=r"no figure: .* differs between the two forms .*, the limit is 1e-04"):
        contest(setting())


def test_a_step_changes_nothing():
    """So that every round measures the same."""
    step = published_step(setting())
    before = {name: p.clone() for name, p in step.model.named_parameters()}
    first = step.evaluate().expression
    step()
    step()
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in step.model.named_parameters())
    assert torch.equal(step.evaluate().expression, first) and len(first) == 1 and step.model.training
    assert len(step.optimizer.state) == len(before)


def test_memory_is_counted():
    step = published_step(setting())
    hidden = 2 * 200 * 8 * 4
    assert saved_bytes(step) > 50 * hidden
    peak, _ = peak_bytes(step, step.device)
    assert peak > saved_bytes(step)
    megabytes = torch.empty(10, 1_000_000 // 4)
    peak, resident = peak_bytes(lambda: (megabytes + 1).add_(1), step.device)
    assert peak == pytest.approx(megabytes.nbytes, rel=1e-3) and (resident is None or resident > 0.9 * peak)


def test_parts_are_all_steps_of_the_form():
    """And their sum is near the whole where something is slow."""
    s = setting(length=2_000, reference_length=2_000, d_model=32, precision="bf16")
    step = published_step(s)
    found = measure_honesty(step, 2)
    module = {"input projection", "convolution", "x projection", "dt projection", "scan", "output projection"}
    others = {"one hot", "linear", "add", "rms norm", "flip", "beta mask", "gated", "mean after", SUMS}
    assert set(found.parts) == module | others and min(found.parts.values()) > 0
    assert found.ratio == found.whole / sum(found.parts.values()) and 0.2 < found.ratio < 10
    assert isinstance(step.model, PublishedForm) and step.model.run is published_layer.call
    assert all(p.grad is None for p in step.model.parameters())


def test_parts_see_what_the_whole_computes():
    """The outputs that the parts hand on give the form's result."""
    step = published_step(setting(mode="hard"))
    step.model.eval()
    seen = []
    beta_mask = step.model._beta_mask
    step.model._beta_mask = lambda *inputs: seen.append(beta_mask(*inputs)) or seen[-1]  # type: ignore[method-assign]
    step.model._beta_mask.__name__ = "_beta_mask"
    alpha = step.model(*step.batch[:3]).alpha
    measure_honesty(step, 1)
    assert all(torch.equal(out.alpha, alpha) for out in seen) and len(seen) >= 4


def test_hidden_cost_is_said(seq2exp):
    result = contest(setting())
    slow = replace(result, honesty=replace(result.honesty, whole=2 * sum(result.honesty.parts.values())))
    assert any("2.00 times its parts" in line and "MORE THAN 1.1 TIMES" in line for line in notes(slow))


def test_curves(tmp_path, seq2exp):
    code, out, err = seq2exp(
        "bench", *SMALL, "--learn", "--seeds", 2, "--steps", 4, "--genes", 30, "--out", tmp_path
    )  # fmt: skip
    assert code in (0, 1), err
    assert "Final loss over 2 seeds" in out
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert set(zip(curves["form"], curves["seed"], strict=True)) == {
        (form, seed) for form in ("ours", "published") for seed in (2, 22)
    }  # fmt: skip
    assert curves["step"].tolist() == 4 * [1, 2, 3, 4] and (curves["loss"] > 0).all()
    first = curves[curves["step"] == 1].pivot(index="seed", columns="form", values="loss")
    difference = (first["ours"] - first["published"]).abs()  # the same weights and genes, another draw
    assert difference.min() > 0 and difference.max() < 0.05
    learned = json.loads((tmp_path / "bench.json").read_text())["learned"]
    assert learned["same"] == (code == 0) and len(learned["final_loss"]["published"]) == 2
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def test_the_published_form_is_trained_from_the_weights_of_ours(settings, tmp_path):
    config = TrainConfig.model_validate(settings | {"model": settings["model"] | {"preset": "soft"}})
    ours, published = (cls(config, tmp_path / cls.__name__, quiet=True).model for cls in (Trainer, PublishedTrainer))
    assert type(ours) is Seq2Exp and type(published) is PublishedForm
    theirs = published.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


def test_within_the_noise_of_the_seeds():
    def with_final(*published: float) -> Learned:
        return Learned(pd.DataFrame(), {"ours": [1.0, 1.1, 1.2], "published": list(published)})

    near, far = with_final(1.1, 1.2, 1.3), with_final(1.3, 1.4, 1.5)
    assert near.difference == pytest.approx(0.1) and near.error == pytest.approx((2 * 0.01 / 3) ** 0.5)
    assert near.same and "within two standard errors" in near.sentence()
    assert not far.same and "MORE THAN two standard errors" in far.sentence()


@pytest.mark.parametrize(
    "options,sentence",
    [
        (["--mode", "top"], "mode 'top' is unknown: one of soft, hard"),
        (["--precision", "fp8"], "precision 'fp8' is unknown: one of fp32, bf16"),
        (["--scan", "fast"], "scan 'fast' is unknown: one of ours, chunked, reference, mamba-ssm"),
        (["--scan", "mamba-ssm"], "scan mamba-ssm runs on a GPU only"),
        (["--length", 200, "--reference-length", 300], "reference-length is 300, more than length (200)"),
        (["--seeds", 1], "--seeds"),
    ],
)
def test_refusals(seq2exp, options, sentence):
    code, out, err = seq2exp("bench", "--device", "cpu", *options)
    assert code == 2 and sentence in err and len(err.splitlines()) == 1 and not out


def test_memory_that_is_not_there(monkeypatch):
    monkeypatch.setattr(contests, "CHECKED_BASES", 100)
    monkeypatch.setattr(contests, "free_memory", lambda device: 100_000)
    with pytest.raises(UserError, match=r"needs about .* MB at length 200, batch 2, and .*: give --reference-length"):
        contest(setting())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_memory_that_runs_out(monkeypatch, error):
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(contests, "memory", fails)
    with pytest.raises(UserError, match="out of memory at length 200, batch 2: lower --length or --batch"):
        contest(setting())
