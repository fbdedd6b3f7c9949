"""What the mask finds, on a model whose mask is known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from seq2exp import Seq2Exp, Seq2ExpConfig
from seq2exp.baselines import (
    AbcMasked,
    AbcMaskedConfig,
    GeneExpBiMamba,
    GeneExpBiMambaConfig,
    MaskedConfig,
    PeakMasked,
    Retrained,
    RetrainedConfig,
)
from seq2exp.data_tools import GeneWindows
from seq2exp.errors import UserError
from seq2exp.inference import recovery
from seq2exp.inference.recovery import KnownElements, generator_part, mask_gradient, recover, rivals
from seq2exp.inference.scores import average_precision

TINY = {
    "length": 128, "center": 16, "d_model": 8, "generator_layers": 1, "predictor_layers": 1, "d_state": 2,
    "gene_features": 0,
}  # fmt: skip
GIVEN = {"length": 128, "center": 16, "d_model": 8, "predictor_layers": 1, "d_state": 2, "gene_features": 0}


@pytest.fixture
def windows(tiny_store: Path) -> GeneWindows:
    return GeneWindows(tiny_store, 128, "test")


@pytest.fixture
def truth(simulated: Path) -> Path:
    return simulated / "elements.bed"


def _model(**fields: object) -> Seq2Exp:
    torch.manual_seed(0)
    return Seq2Exp(Seq2ExpConfig.discovery(**TINY | fields)).eval()


def test_generator_part_is_that_of_the_logits(windows):
    for fields in ({}, {"signal_scale": 10.0, "beta_min": 1.0, "z_scale": 2.0}):
        model = _model(**fields)
        item = windows[0]
        sequence, signals = item["sequence"][None], item["signals"][None]
        with torch.no_grad():
            out = model(sequence, signals)
            seq = torch.nn.functional.softplus(model._mask_logits(sequence, None, False)) + model.config.beta_min
        got = generator_part(model.config, signals, out.alpha, out.beta)
        torch.testing.assert_close(got, seq[..., 1] / seq.sum(-1), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"hard": True, "packed": True}])
def test_mask_gradient_is_the_slope_of_the_expression(windows, fields):
    model = _model(**fields).double()
    item = windows[0]
    inputs = (item["sequence"][None], item["signals"][None].double(), None)
    mask = torch.rand(1, 128, dtype=torch.float64)
    mask[:, 56:72] = 1
    if fields:
        mask[:, :40] = 0
    got = mask_gradient(model, inputs, mask)
    for place in (5, 50, 100):
        up, down = mask.clone(), mask.clone()
        up[0, place] *= 1 + 1e-6
        down[0, place] *= 1 - 1e-6
        with torch.no_grad():
            slope = (model.predict(*inputs[:2], up) - model.predict(*inputs[:2], down)).abs() / 2e-6
        assert float(got[0, place]) == pytest.approx(float(slope), rel=1e-3, abs=1e-9)


def test_recover_with_an_oracle_and_with_a_blind_mask(windows, truth, monkeypatch):
    """A mask that is the truth finds all of it, a constant one what chance does."""
    model, known = _model(), KnownElements(truth, windows)
    level = SimpleNamespace(causal=0.9)

    def oracle(_model, batch, out):
        mask = np.full(out.mask.shape, 0.2, dtype=np.float32)
        for i, (chrom, start) in enumerate(zip(batch["chrom"], batch["start"].tolist(), strict=True)):
            for element in known.within(chrom, start, 128):
                if element.kind == "causal":
                    mask[i, max(0, element.start - start) : element.end - start] = level.causal
        out.soft_mask.copy_(torch.from_numpy(mask))
        return {"soft mask": mask, "generator part": mask, "mask x gradient": mask}

    monkeypatch.setattr(recovery, "_model_scores", oracle)
    found = recover(model, windows, truth, batch_size=4)
    assert found.precision["soft mask"] == (1.0, 1.0) and found.learned
    assert found.selected == pytest.approx(found.prevalence[0])
    assert found.mean_mask == pytest.approx(0.2 + 0.7 * found.prevalence[0])
    assert found.top_precision == pytest.approx(found.top_recall * found.prevalence[0] / 0.1, rel=0.1)
    assert np.mean(found.profile["causal"][12:24]) == pytest.approx(0.9)
    assert max(found.profile["peak_only"][12:24]) < 0.9

    level.causal = 0.2
    found = recover(model, windows, truth, batch_size=4)
    assert found.precision["soft mask"] == found.prevalence and not found.learned and found.selected == 0


def test_selected_of_a_binary_mask_is_its_share_outside_the_centre(windows, truth):
    found = recover(_model(hard=True, top_fraction=0.25), windows, truth)
    assert 16 / 112 <= found.selected <= 32 / 112  # the 32 selected bases less those in the centre, of 112
    assert set(found.precision) == {"soft mask", "generator part", "mask x gradient"}
    assert list(found.genes) == ["target", "prediction"] and len(found.genes) == len(windows)


def _counted(windows: GeneWindows, truth: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each window the bases that count, and which bases are causal: bool (128,) each."""
    table = pd.read_csv(truth, sep="\t", header=None, usecols=[0, 1, 2, 4], names=["chrom", "start", "end", "kind"])
    table = table[table["kind"] == "causal"]
    found = []
    for item in (windows[i] for i in range(len(windows))):
        base = item["start"] + np.arange(128)
        counted = (base >= 0) & (base < windows.store.chromosomes[item["chrom"]]) & ~item["exclude"].numpy()
        counted[56:72] = False
        here = table[table["chrom"] == item["chrom"]]
        spans = zip(here["start"], here["end"], strict=True)
        found.append((counted, np.any([(base >= a) & (base < b) for a, b in spans], axis=0)))
    return found


@pytest.mark.parametrize("packed", [True, False])
def test_given_peaks_by_hand(peaks_store, truth, packed):
    """Every element is a peak, so the mask finds the causal ones as often as they are among the peaks."""
    windows = GeneWindows(peaks_store, 128, "test", peaks=True)
    found = recover(PeakMasked(MaskedConfig(**GIVEN, packed=packed)), windows, truth, batch_size=3)
    counted = _counted(windows, truth)
    peaks = [windows[i]["peaks"].numpy() for i in range(len(windows))]
    bases = sum(here.sum() for here, _ in counted)
    in_peaks = sum((here & peak).sum() for (here, _), peak in zip(counted, peaks, strict=True))
    causal = sum((here & true).sum() for here, true in counted)
    assert 0 < causal < in_peaks < bases
    assert found.precision["soft mask"] == pytest.approx((causal / in_peaks, found.prevalence[1]))
    assert found.prevalence[0] == pytest.approx(causal / bases)
    assert found.selected == pytest.approx(in_peaks / bases) and found.mean_mask == pytest.approx(in_peaks / bases)
    assert set(found.precision) == {"soft mask", "mask x gradient"}


def test_a_given_abc_mask_by_hand(windows, truth):
    model = AbcMasked(AbcMaskedConfig(**GIVEN, width=8, fraction=0.25, signal_names=tuple(windows.signal_names)))
    found = recover(model, windows, truth)
    scores, selected, labels = [], [], []
    for i, (counted, causal) in enumerate(_counted(windows, truth)):
        first, second, contact = windows[i]["signals"].double().numpy().T
        mean = [np.array([track[max(0, j - 4) : j + 5].mean() for j in range(128)]) for track in (first, second)]
        score = np.sqrt(mean[0] * mean[1]) * (10**contact - 1)
        scores.append((score / score.max())[counted])
        selected.append((score >= np.sort(score)[-32])[counted])
        labels.append(causal[counted])
    expected = average_precision(np.concatenate(scores), np.concatenate(labels))
    assert found.precision["soft mask"][0] == pytest.approx(expected, rel=1e-3)
    assert found.selected == pytest.approx(np.concatenate(selected).mean(), abs=2e-3)
    assert found.mean_mask == pytest.approx(np.concatenate(scores).mean(), rel=1e-4)


@pytest.mark.parametrize("centre_counts", [True, False])
def test_a_retrained_model_finds_what_its_source_does(windows, truth, tmp_path, centre_counts):
    source = _model()
    source.save_pretrained(tmp_path / "soft")
    fields = {"source": str(tmp_path / "soft"), "fraction": 0.25, "centre_counts": centre_counts}
    ours, theirs = (recover(m, windows, truth) for m in (Retrained(RetrainedConfig(**fields)), source))
    assert ours.precision["soft mask"] == pytest.approx(theirs.precision["soft mask"], rel=1e-5)
    assert (ours.top_precision, ours.mean_mask) == pytest.approx((theirs.top_precision, theirs.mean_mask), rel=1e-5)
    with torch.no_grad():
        means = [
            source(windows[i]["sequence"][None], windows[i]["signals"][None]).soft_mask[0] for i in range(len(windows))
        ]
    total = left = 0
    for mean, (counted, _) in zip(means, _counted(windows, truth), strict=True):
        if centre_counts:
            mean[56:72] = 1
        chosen = np.zeros(128, dtype=bool)
        chosen[mean.topk(32).indices] = True
        left, total = left + (chosen & counted).sum(), total + counted.sum()
    assert ours.selected == pytest.approx(left / total)


def test_evaluate_a_model_that_reads_peaks_with_the_truth(seq2exp, peaks_store, truth, tmp_path):
    PeakMasked(MaskedConfig(**GIVEN)).save_pretrained(tmp_path / "peaks")
    code, out, err = seq2exp(
        "evaluate", tmp_path / "peaks", "--store", peaks_store, "--split", "test", "--truth", truth
    )
    assert code == 0 and "mask_auprc_bases" in out, err


def test_a_model_without_a_mask_has_nothing_to_compare(seq2exp, tiny_store, truth, tmp_path):
    fields = {"length": 128, "center": 16, "d_model": 8, "layers": 1, "d_state": 2, "gene_features": 0}
    GeneExpBiMamba(GeneExpBiMambaConfig(**fields)).save_pretrained(tmp_path / "bare")
    code, _, err = seq2exp("evaluate", tmp_path / "bare", "--store", tiny_store, "--truth", truth)
    assert code == 2 and "has no mask" in err and "evaluate it without --truth" in err and err.strip().count("\n") == 0


def test_rivals_by_hand():
    signals = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
    scores = rivals(signals, ["A", "B", "contacts"])
    assert {name: values.tolist() for name, values in scores.items()} == {
        "A": [1, 4], "B": [2, 5], "A x B": [2, 20], "A x contact": [3, 24], "B x contact": [6, 30],
        "A x B x contact": [6, 120],
    }  # fmt: skip
    assert list(rivals(signals[:, :1], ["A"])) == ["A"]


def test_evaluate_with_the_truth(seq2exp, trained, truth, tmp_path):
    code, out, _ = seq2exp("evaluate", trained, "--truth", truth, "--out", tmp_path / "e")
    table = pd.read_csv(tmp_path / "e" / "evaluation.csv").set_index("split")
    assert code == 0 and "mask_auprc_bases" in out
    assert table[["mask_auprc_bases", "mask_auprc_elements", "rival_auprc_bases"]].to_numpy().min() > 0
    assert "learned" in json.loads((tmp_path / "e" / "evaluation.json").read_text())["test"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chr1\t5\t9\tG1\n", "no truth to compare with"),
        ("chr1\t1\t2\tG1\tcausal\n", "no causal element lies in a window of"),
        (None, "cannot be read"),
    ],
)
def test_no_truth_to_compare_with(seq2exp, trained, tmp_path, text, said):
    path = tmp_path / "truth.bed"
    if text is not None:
        path.write_text(text)
    code, _, err = seq2exp("evaluate", trained, "--truth", path, "--out", tmp_path / "e")
    assert code == 2 and said in err and "Traceback" not in err
    with pytest.raises(UserError, match=r"truth\.bed"):
        KnownElements(path, GeneWindows(_store_of(trained), 128))


def _store_of(run: Path) -> str:
    import yaml

    return str(yaml.safe_load((run / "config.yaml").read_text())["data"]["store"])
