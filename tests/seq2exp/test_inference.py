"""Scores, regions and files, on values worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seq2exp.errors import UserError
from seq2exp.files import atomic, write_json
from seq2exp.inference.discover import BED, COLUMNS, Locus, MaskBigWig, Region, Selection, called, write_discovery
from seq2exp.inference.evaluate import score_splits, scores
from seq2exp.inference.plot import KnownElement, plot_locus, read_elements
from seq2exp.inference.ridge import binned_signals, fit_ridge
from seq2exp.inference.scores import Element, Recovery, average_precision


def test_average_precision_by_hand():
    # ranks of the positives 1, 3, 4: (1/1 + 2/3 + 3/4) / 3
    assert average_precision([0.9, 0.8, 0.7, 0.6, 0.1], [1, 0, 1, 1, 0]) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert average_precision([0.9, 0.8, 0.1], [1, 1, 0]) == 1.0
    assert average_precision([0.1, 0.2, 0.9], [1, 0, 0]) == pytest.approx(1 / 3)


def test_average_precision_takes_equal_scores_together():
    assert average_precision([0.5] * 10, [1, 1] + [0] * 8) == pytest.approx(0.2)
    # thresholds 0.9 (1 of 1), 0.5 (2 of 3): 1/2 * 1 + 1/2 * 2/3, whatever the order of the tie
    for labels in ([1, 1, 0], [1, 0, 1]):
        assert average_precision([0.9, 0.5, 0.5], labels) == pytest.approx(0.5 + 1 / 3)
    assert np.isnan(average_precision([0.5, 0.1], [0, 0]))


def test_recovery_counts_bases_and_elements_outside_the_centre():
    counted = np.array([1, 1, 1, 1, 0, 0, 1, 1, 1, 1], dtype=bool)
    good = np.array([0, 5, 5, 0, 9, 9, 1, 1, 0, 0], dtype=np.float32)
    bad = 9 - good
    recovery = Recovery()
    elements = [Element(1, 3, True), Element(6, 8, False), Element(4, 6, False), Element(-2, 0, True)]
    recovery.add({"good": good, "bad": bad}, elements, counted)
    assert recovery.prevalence() == (2 / 8, 1 / 2)  # the element in the centre and the one outside are not candidates
    result = recovery.average_precision()
    assert result["good"] == (1.0, 1.0)
    assert result["bad"] == pytest.approx((2 / 8, 1 / 2))


def test_ridge_solves_the_normal_equations_with_the_best_penalty():
    rng = np.random.default_rng(0)
    x, truth = rng.normal(size=(300, 6)) * [1, 2, 3, 1, 1, 0], np.array([1.0, -0.5, 0.2, 0, 0, 0])
    y = x @ truth + 4 + 0.3 * rng.normal(size=300)
    weights, means, intercept = fit_ridge(x[:200], y[:200], x[200:], y[200:])
    assert weights == pytest.approx(truth, abs=0.1) and intercept == pytest.approx(y[:200].mean())
    train = (x[:200] - means) / np.where(x[:200].std(0) == 0, 1, x[:200].std(0))
    errors = {}
    for penalty in np.logspace(-2, 5, 22):
        beta = np.linalg.solve(train.T @ train + penalty * np.eye(6), train.T @ (y[:200] - intercept))
        valid = (x[200:] - means) / np.where(x[:200].std(0) == 0, 1, x[:200].std(0))
        errors[penalty] = np.mean((valid @ beta + intercept - y[200:]) ** 2)
    assert np.mean(((x[200:] - means) @ weights + intercept - y[200:]) ** 2) == pytest.approx(min(errors.values()))


def test_binned_signals():
    signals = np.array([[1, 10], [3, 10], [5, 20], [5, 40]], dtype=np.float32)
    assert binned_signals(signals, bins=2).tolist() == [2, 10, 5, 30]


def _genes() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "split": ["test", "test", "test", "valid"],
            "prediction": [1.0, 2.0, 9.0, 1.0],
            "target": [0.0, 3.0, np.nan, 1.0],
            "selected_fraction": [0.2, 0.4, 1.0, 0.5],
        }
    )


def test_scores_leave_out_and_count_genes_without_a_target():
    table = score_splits(_genes()).set_index("split")
    test = table.loc["test"]
    assert (test["mse"], test["mae"], test["pearson"], test["spearman"]) == pytest.approx((1, 1, 1, 1), rel=1e-5)
    assert (test["genes"], test["without_target"]) == (2, 1)
    assert test["mask_ratio"] == pytest.approx(0.3)
    assert table.loc["valid", "genes"] == 1 and np.isnan(table.loc["valid", "pearson"])
    assert np.isnan(scores(_genes().iloc[2:3])["mse"])


def test_correlations_by_hand():
    genes = pd.DataFrame({"prediction": [1.0, 2, 3, 10], "target": [1.0, 3, 2, 4], "selected_fraction": 1.0})
    got = scores(genes)
    assert got["spearman"] == pytest.approx(0.8, rel=1e-5)
    assert got["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 10], [1, 3, 2, 4])[0, 1])


MASK = np.array([0, 0.9, 0.9, 0, 0.8, 0, 0, 0, 0.7, 0.7, 0.9, 0], dtype=np.float32)
ALL = np.ones(12, dtype=bool)


def test_regions_are_merged_and_filtered():
    peaks = np.isin(np.arange(12), (2, 3)).astype(np.float32)  # fewer than the fraction: zeros are not selected
    assert Selection(top_fraction=0.5, merge_gap=0, min_length=1).regions(peaks, np.ones(12, bool)) == [(2, 4)]
    assert Selection(0.5, merge_gap=0, min_length=1).regions(MASK, ALL) == [(1, 3), (4, 5), (8, 11)]
    assert Selection(0.5, merge_gap=0, min_length=2).regions(MASK, ALL) == [(1, 3), (8, 11)]
    assert Selection(0.5, merge_gap=2, min_length=1).regions(MASK, ALL) == [(1, 5), (8, 11)]
    assert Selection(0.5, merge_gap=4, min_length=1).regions(MASK, ALL) == [(1, 11)]
    assert Selection(0.95, merge_gap=0, min_length=1).regions(MASK, ALL) == []


def test_top_fraction_selects_the_highest_bases():
    assert Selection(top_fraction=0.25, merge_gap=0, min_length=1).regions(MASK, ALL) == [(1, 3), (10, 11)]


def test_no_region_in_or_across_bases_that_are_no_candidates():
    candidates = ALL.copy()
    candidates[3] = candidates[9] = False
    got = Selection(0.5, merge_gap=3, min_length=1).regions(MASK, candidates)
    assert got == [(1, 3), (4, 5), (8, 9), (10, 11)]
    assert Selection().regions(MASK, np.zeros(12, dtype=bool)) == []


@pytest.mark.parametrize(("strand", "distances"), [("+", [-3, 3]), ("-", [3, -3]), (".", [-3, 3])])
def test_called_elements_have_ranks_and_distances(strand, distances):
    locus = replace(_locus(), strand=strand, gene_name="TP53")
    first, second = called(locus, Selection(0.5, merge_gap=2, min_length=3))
    assert [(first.start, first.end), (second.start, second.end)] == [(101, 105), (108, 111)]
    assert [first.name, second.name] == ["TP53_2", "TP53_1"] and first.gene_id == "G1"  # ranks by mean mask
    assert (first.mask, first.highest, first.selected) == pytest.approx((0.65, 0.9, 0.75))
    assert [first.distance, second.distance] == distances  # from the TSS, 106, to 103 and 109
    assert first.overlaps == ()


class _Config:
    hard, top_fraction, threshold = False, None, 0.5


def test_a_hard_model_calls_what_it_selects_itself():
    hard, top = type("Hard", (_Config,), {"hard": True}), type("Top", (_Config,), {"hard": True, "top_fraction": 0.02})
    assert Selection.of_model(_Config, None, None) == Selection(None, 0.10)
    assert Selection.of_model(hard, None, None).threshold == 0.5
    assert Selection.of_model(hard, None, 0.2) == Selection(None, 0.2)
    assert Selection.of_model(hard, 0.9, None).threshold == 0.9
    assert Selection.of_model(top, None, None, merge_gap=7) == Selection(None, 0.02, 7)
    with pytest.raises(UserError, match="not both"):
        Selection.of_model(hard, 0.5, 0.1)


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"threshold": 1.2}, {"top_fraction": 0}, {"min_length": 0}])
def test_selection_out_of_range(wrong):
    with pytest.raises(UserError, match=r"must be|at least"):
        Selection(**wrong)


def _locus(start: int = 100, gene: str = "G1", level: float = 1.0, prediction: float = 1.0) -> Locus:
    region = Region("chr2", start + 1, start + 5, gene, f"{gene}_1", 0.65, 0.9, 0.75, -3)
    signals = np.tile(MASK[:, None], (1, 2))
    return Locus(gene, "chr2", start, start + 6, "+", prediction, np.nan, signals, MASK * level, ALL, [region])


def test_bed_and_bigwig_hold_what_was_found(tmp_path):
    import pyBigWig

    loci = [_locus(-4), _locus(100, "G2", 0.5, prediction=3), _locus(106, "G3"), _locus(195, "G4")]
    found = write_discovery(tmp_path, loci, {"chr1": 50, "chr2": 200})
    lines = (tmp_path / "elements.bed").read_text().splitlines()
    assert lines[0] == "#" + "\t".join(BED) and len(lines) == 5
    assert lines[2] == "chr2\t101\t105\tG2_1\t650\t."
    rows = (tmp_path / "elements.csv").read_text().splitlines()
    assert rows[0] == ",".join(COLUMNS) and rows[2] == "chr2,101,105,G2_1,G2,0.6500,0.9000,0.750,-3," and len(rows) == 5
    assert found.genes == 4 and [locus.gene_id for locus in found.loci] == ["G2"]
    assert found.highest == pytest.approx(0.9)
    with pyBigWig.open(str(tmp_path / "mask.bw")) as bigwig:
        assert bigwig.chroms() == {"chr1": 50, "chr2": 200}
        got = np.array(bigwig.values("chr2", 0, 200))
    expected = np.full(200, np.nan)
    expected[0:8] = MASK[4:]  # reaches past the left end
    expected[100:112] = MASK * 0.5
    expected[106:118] = np.fmax(expected[106:118], MASK)  # windows overlap: the largest value
    expected[195:200] = MASK[:5]
    np.testing.assert_allclose(got, expected, atol=6e-5)


def test_nothing_is_left_of_a_bigwig_that_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), MaskBigWig(tmp_path / "mask.bw", {"chr1": 50}) as bigwig:
        bigwig.add("chr1", 0, MASK)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_atomic_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"x": float("nan"), "y": (1.5,)})
    assert path.read_text() == '{\n "x": null,\n "y": [\n  1.5\n ]\n}\n'
    with pytest.raises(KeyError), atomic(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert "half" not in path.read_text() and list(path.parent.iterdir()) == [path]


def test_picture_of_a_locus(tmp_path):
    known = [KnownElement("chr2", 101, 105, "G1", "causal"), KnownElement("chr2", 108, 111, "G1", "peak_only")]
    plot_locus(tmp_path / "a.png", _locus(), ["DNase", "contacts"], 2, Selection(), known)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    import matplotlib.image

    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert picture.shape[1] == 1500 and picture[..., :3].std() > 0.05


def test_elements_of_a_bed_file(tmp_path):
    path = tmp_path / "e.bed"
    path.write_text("#chrom\nchr1\t5\t9\tG1\tcausal\nchr1\t7\t8\nchr2\t1\t2\tG2\t300\t+\n\n")
    assert read_elements(path) == [
        KnownElement("chr1", 5, 9, "G1", "causal"),
        KnownElement("chr1", 7, 8, "", ""),
        KnownElement("chr2", 1, 2, "G2", ""),
    ]
    path.write_text("chr1\t5\t9\nchr1 7 8\n")
    with pytest.raises(UserError, match=r"e.bed: line 2 is not BED"):
        read_elements(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_elements(Path(tmp_path / "absent.bed"))
