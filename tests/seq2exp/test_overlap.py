"""Sets of known elements, their overlap with called ones, and the enrichment, on planted elements."""

from __future__ import annotations

import gzip
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from seq2exp.errors import UserError
from seq2exp.inference.discover import Locus, Region, Selection, called
from seq2exp.inference.enrichment import Enrichment, activity, comparison, shuffled_starts
from seq2exp.inference.overlap import Cover, ElementSet, marked, read_set, read_sets
from seq2exp.inference.pairs import PairScores
from seq2exp.inference.report import overlap_rows
from seq2exp.inference.survey import notes_of

CHROMOSOMES = {"chr1": 1_000_000, "chr2": 5_000, "chr11": 135_086_622}
GENES = pd.DataFrame(
    {
        "gene_id": ["ENSG01.3", "ENSG02", "ENSG00000213931.7", "ENSG00000196565"],
        "gene_name": ["TP53", "MYC", "HBE1", "HBG2"],
    }
)
SIGNALS = ["H3K27ac", "DNase", "contacts"]
LENGTH, CENTER = 10_000, 400


def _read(tmp_path, text: str, name: str = "set.bed") -> ElementSet:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return read_set("S", path, CHROMOSOMES, GENES)


def _rows(elements: ElementSet) -> list[tuple]:
    return list(elements.table.itertuples(index=False, name=None))


def test_a_plain_set(tmp_path):
    text = "track name=x\n# a comment\nchr1\t5\t9\tEH38E1\nchr2\t0\t5000\nchrX\t1\t2\n\n"
    for name in ("set.bed", "set.bed.gz"):
        elements = _read(tmp_path, text, name)
        assert _rows(elements) == [("chr1", 5, 9, "", True), ("chr2", 0, 5000, "", True)]
        assert not elements.by_gene and not elements.flagged and elements.key == "chrom"
        assert elements.notes == ["1 of 3 elements on chromosomes that the store lacks are left out"]


def test_a_set_named_without_chr(tmp_path):
    elements = _read(tmp_path, "1\t5\t9\nMT\t1\t2\n")
    assert _rows(elements) == [("chr1", 5, 9, "", True)]
    assert elements.notes[0] == "its 1 is taken for chr1, and so on" and "1 of 2 elements on" in elements.notes[1]


# The header and lines of EPCrisprBenchmark_Fulco2019_K562_GRCh38.tsv (EngreitzLab/CRISPR_comparison on GitHub); a field
# with spaces is shortened.
CRISPRI = """
chrom chromStart chromEnd name EffectSize chrTSS startTSS endTSS measuredGeneSymbol Significant pValueAdjusted
 PowerAtEffectSize25 ValidConnection CellType Reference Regulated
chr11 3307615 3308115 HBE1|chr11:3328845-3329345:* 0.01896726 chr11 5505651 5505652 HBE1 FALSE 0.846461063242
 1 TRUE K562 Klann2017 FALSE
chr11 5249607 5250415 HBE1|chr11:5270837-5271645:* 0.44069824 chr11 5505651 5505652 HBE1 TRUE 1.36823302383e-33
 0.999999993372 PromoterElement K562 Klann2017 FALSE
chr11 5275735 5276235 HBE1|chr11:5296965-5297465:* -0.32358968 chr11 5505651 5505652 HBE1 TRUE 3.07477010334e-13
 0.993058229513 TRUE K562 Klann2017 TRUE
chr11 5275754 5276060 HBG2|chr11:5296984-5297290:* -0.499976039 chr11 5505604 5505605 HBG2 TRUE 1.9603e-5
 NA TRUE K562 Xie2017 TRUE
chr11 5280370 5281170 HBBP1|chr11:5301600-5302400:* -0.81438 chr11 5243536 5243537 HBBP1 TRUE 3.95e-25
 0.25 Non-protein-coding-gene K562 Thakore2015 TRUE
"""


def test_the_published_table_of_crispri_experiments(tmp_path):
    text = CRISPRI.strip().replace("\n ", " ").replace(" ", "\t") + "\n"
    elements = _read(tmp_path, text, "EPCrisprBenchmark.tsv.gz")
    assert _rows(elements) == [
        ("chr11", 3307615, 3308115, "ENSG00000213931.7", False),
        ("chr11", 5275735, 5276235, "ENSG00000213931.7", True),
        ("chr11", 5275754, 5276060, "ENSG00000196565", True),
    ]
    assert elements.by_gene and elements.flagged
    assert elements.notes == [
        "1 of 5 elements of genes that are not looked at are left out",
        "1 of 4 elements whose pair is no valid connection are left out",
    ]


def test_the_published_table_of_several_cell_types(tmp_path):
    """The columns that matter of EPCrisprBenchmark_combined_data.heldout_5_cell_types.GRCh38.tsv, as its README
    describes them: genes by id too, and reasons with spaces."""
    columns = ["chrom", "chromStart", "chromEnd", "name", "EffectSize", "measuredGeneSymbol", "measuredGeneEnsemblId"]
    lines = [
        [*columns, "Significant", "ValidConnection", "CellType", "Regulated"],
        ["chr11", "500", "900", "a", "-0.2", "HBE1-alias", "ENSG00000213931", "TRUE", "TRUE", "GM12878", "TRUE"],
        ["chr11", "950", "990", "b", "0.3", "NA", "ENSG00000213931", "TRUE", "TRUE", "K562", "FALSE"],
        ["chr11", "10", "90", "c", "-0.1", "MYC", "NA", "TRUE", "overlaps potential promoter", "K562", "TRUE"],
        ["chr11", "10", "90", "d", "-0.1", "MYC", "NA", "TRUE", "overlaps target gene exon", "WTC11", "TRUE"],
    ]
    elements = _read(tmp_path, "".join("\t".join(line) + "\n" for line in lines))
    assert [row[1:] for row in _rows(elements)] == [
        (500, 900, "ENSG00000213931.7", True),
        (950, 990, "ENSG00000213931.7", False),
    ]
    assert elements.notes == [
        "2 of 4 elements whose pair is no valid connection are left out",
        "its elements were tested in GM12878, K562; for one of these alone, keep its lines of the file",
    ]


def test_a_table_of_tested_pairs(tmp_path):
    columns = ["dataset", "chrom", "chromStart", "chromEnd", "name", "measuredGeneSymbol", "measuredEnsemblID"]
    lines = [
        [*columns, "Significant", "Regulated"],
        ["a", "chr1", "5", "9", "x", "TP53", "NA", "TRUE", "FALSE"],
        ["a", "chr1", "7", "19", "x", "unheard", "ENSG02.7", "FALSE", "TRUE"],
        ["a", "chr1", "1", "2", "x", "SOX2", "NA", "FALSE", "FALSE"],
        ["a", "chr1", "1", "2", "x", "MYC", "NA", "FALSE", "NA"],
    ]
    elements = _read(tmp_path, "".join("\t".join(line) + "\n" for line in lines))
    assert _rows(elements) == [("chr1", 5, 9, "ENSG01.3", False), ("chr1", 7, 19, "ENSG02", True)]
    assert elements.by_gene and elements.flagged and elements.key == "gene_id"
    assert elements.notes == [
        "1 of 4 elements of genes that are not looked at are left out",
        "1 of 3 elements not known to regulate or not are left out",
    ]
    assert elements.cover().bases("ENSG02", [0, 10], [8, 12]).tolist() == [1, 2]
    assert elements.cover().bases("ENSG01.3", [0], [100]).tolist() == [0]  # does not regulate


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chr1\t5\n", "line 1 is not BED"),
        ("chr1\t5\t9\nchr1\tfive\t9\n", "line 2 is not BED"),
        ("chr1\t9\t9\n", "line 1: chr1:9-9 is no interval"),
        ("chr1\t-1\t9\n", "is no interval"),
        ("scaffold_7\t5\t9\n", "no chromosome in common with the store"),
        ("chr2\t4999\t5001\n", r"line 1: chr2:4999-5001 ends past the end of chr2 \(5,000 bases\)"),
        ("#chrom\tstart\tend\tgene\tregulated\nchr1\t5\t9\tTP53\tmaybe\n", "line 2: whether it regulates is 'maybe'"),
        ("# nothing\n", "holds no element"),
        ("", "is empty"),
    ],
)
def test_sets_that_cannot_be_used(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        _read(tmp_path, text)


def test_names_of_sets(tmp_path):
    (tmp_path / "a.bed").write_text("chr1\t5\t9\n")
    path = tmp_path / "a.bed"
    assert [s.name for s in read_sets([f"a={path}", f"b-2={path}"], CHROMOSOMES, GENES)] == ["a", "b-2"]
    for wrong in (["a.bed"], [f"={path}"], [f"a,b={path}"], ["a="]):
        with pytest.raises(UserError, match="takes NAME=file"):
            read_sets(wrong, CHROMOSOMES, GENES)
    with pytest.raises(UserError, match="'a' is given twice"):
        read_sets([f"a={path}", f"a={path}"], CHROMOSOMES, GENES)
    with pytest.raises(UserError, match="no such file"):
        read_sets([f"a={tmp_path / 'absent.bed'}"], CHROMOSOMES, GENES)


def test_cover_counts_bases_of_overlapping_intervals_once():
    rng = np.random.default_rng(1)
    starts = rng.integers(0, 900, 40)
    table = pd.DataFrame({"chrom": "chr1", "start": starts, "end": starts + rng.integers(1, 60, 40)})
    bases = np.zeros(2_000, dtype=bool)
    for start, end in table[["start", "end"]].to_numpy():
        bases[start:end] = True
    spans = np.sort(rng.integers(0, 1_500, (500, 2)), axis=1)
    expected = [bases[a:b].sum() for a, b in spans]
    cover = Cover(table, "chrom")
    assert cover.bases("chr1", spans[:, 0], spans[:, 1]).tolist() == expected
    assert cover.bases("chr9", [3], [9]).tolist() == [0]
    assert Cover(table.iloc[:0], "chrom").bases("chr1", [3], [9]).tolist() == [0]


def test_shuffled_spans_keep_their_width_and_stay_on_the_segments():
    segments = np.array([[100, 140], [150, 155], [160, 171]])
    drawn = shuffled_starts(np.random.default_rng(0), segments, 10, 50_000)
    places = [*range(100, 131), 160, 161]  # the segment of 5 is too short
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == places
    assert counts == pytest.approx(np.full(33, 50_000 / 33), rel=0.15)


def _locus(gene: int = 0, elements=(), chrom: str = "chr1", apart: int = 20_000, seed: int = 0) -> Locus:
    """A window without any other mask than at its elements (offsets)."""
    rng = np.random.default_rng(seed + gene)
    mask = np.full(LENGTH, 0.01, dtype=np.float32)
    for start, end in elements:
        mask[start:end] = 0.9
    candidates = np.ones(LENGTH, dtype=bool)
    candidates[(LENGTH - CENTER) // 2 : (LENGTH + CENTER) // 2] = False
    signals = rng.gamma(1.0, 1.0, (LENGTH, 3)).astype(np.float32)
    locus = Locus(
        f"G{gene}", chrom, gene * apart, gene * apart + LENGTH // 2, "+", 1.0, 1.0, signals, mask, candidates, []
    )
    return replace(locus, regions=called(locus, Selection(0.5)))


def _planted(genes: int = 40, width: int = 100, seed: int = 3) -> tuple[list[Locus], np.ndarray]:
    """Windows with four elements each, and their genome spans (n, 2)."""
    rng = np.random.default_rng(seed)
    loci, spans = [], []
    for gene in range(genes):
        starts = rng.choice([*range(200, 4_600, 400), *range(5_400, 9_600, 400)], 4, replace=False) + rng.integers(100)
        loci.append(_locus(gene, [(int(s), int(s) + width) for s in starts]))
        spans += [(gene * 20_000 + int(s), gene * 20_000 + int(s) + width) for s in starts]
    return loci, np.array(spans)


def _set(spans, **fields) -> ElementSet:
    table = pd.DataFrame(spans, columns=["start", "end"])
    return ElementSet("S", table.assign(chrom="chr1", gene_id="", regulated=True, **fields))


def _row(enrichment: Enrichment, elements: ElementSet, calls: str = "mask", measure: str = "elements") -> pd.Series:
    table = enrichment.table([elements])
    return table[(table["calls"] == calls) & (table["measure"] == measure)].iloc[0]


def _enriched(loci, shuffles: int = 400) -> Enrichment:
    enrichment = Enrichment(Selection(0.5), SIGNALS, shuffles=shuffles, seed=5)
    for locus in loci:
        enrichment.add(locus)
    return enrichment


def test_planted_elements_are_enriched_by_the_known_fold():
    loci, spans = _planted()
    half = _set(spans[::2])  # half of the called elements, and nothing else
    enrichment = _enriched(loci)
    row = _row(enrichment, half)
    assert (row["called"], row["overlapping"], row["fraction"]) == (160, 80, 0.5)
    # A span of 100 shares a base with one of 100 for 199 of the starts in a window: of 2 sides x (4,800 - 99).
    # Two elements a window on average; their neighbourhoods never overlap, as starts are 400 apart.
    expected = 2 * 199 / (2 * (4_800 - 99))
    assert row["shuffled_fraction"] == pytest.approx(expected, rel=0.1)
    assert row["fold"] == pytest.approx(0.5 / expected, rel=0.1)
    assert row["p"] == 1 / 401 and row["z"] > 10
    assert (row["set_in_windows"], row["set_called"]) == (80, 80)
    bases = _row(enrichment, half, measure="bases")
    assert (bases["called"], bases["overlapping"]) == (16_000, 8_000) and bases["p"] == 1 / 401
    assert bases["shuffled_fraction"] == pytest.approx(2 * 100 / 9_600, rel=0.1)
    assert _row(enrichment, half, "tracks", "bases")["called"] == pytest.approx(16_000, rel=0.1)
    tracks = _row(enrichment, half, "tracks")  # noise
    assert tracks["fold"] == pytest.approx(1, abs=0.5)


def test_unrelated_elements_are_not_enriched():
    sides = np.array([[0, 4_800], [5_200, LENGTH]])
    folds, values = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        places = [shuffled_starts(rng, sides, 100, 4) for _ in range(40)]
        loci = [_locus(gene, [(s, s + 100) for s in starts]) for gene, starts in enumerate(places)]
        starts = (np.arange(40)[:, None] * 20_000 + rng.integers(-200, LENGTH + 200, (40, 15))).ravel().clip(0)
        row = _row(_enriched(loci, shuffles=99), _set(np.stack([starts, starts + 150], 1)))
        folds.append(row["fold"])
        values.append(row["p"])
    assert np.mean(folds) == pytest.approx(1, abs=0.1)
    assert 0.25 < np.mean(values) < 0.75 and min(values) > 0.01


def test_the_same_seed_gives_the_same_table():
    loci, spans = _planted(10)
    first, again = (_enriched(loci).table([_set(spans[::3])]) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)


def test_a_place_called_for_two_genes_counts_once():
    a = _locus(0, [(100, 200), (1_000, 1_100)])
    b = replace(_locus(1, [(50, 150), (3_000, 3_100)]), start=50)  # the same window, 50 bases on; called at 100-200
    b = replace(b, regions=[replace(r, mask=0.95) for r in called(b, Selection(0.5))])
    enrichment = _enriched([a, b])
    calls = enrichment.calls("mask")
    assert calls[["start", "gene_id"]].to_numpy().tolist() == [[1_000, "G0"], [100, "G1"], [3_050, "G1"]]
    by_gene = ElementSet("S", _set([(0, 10)]).table.assign(gene_id=["G0"]), by_gene=True)
    assert enrichment.calls("mask", by_gene)["start"].tolist() == [100, 1_000]


def test_elements_of_other_genes_are_no_overlap():
    loci = [_locus(0, [(100, 200)]), replace(_locus(1, [(100, 200)]), start=0)]
    loci = [replace(locus, regions=called(locus, Selection(0.5))) for locus in loci]
    table = _set([(120, 130)]).table.assign(gene_id="G1")
    marks = {
        by_gene: [locus.regions[0].overlaps for locus in marked(loci, [ElementSet("S", table, by_gene=by_gene)])]
        for by_gene in (False, True)
    }
    assert marks == {False: [("S",), ("S",)], True: [(), ("S",)]}


def test_empty_overlaps_and_elements_outside_are_said():
    loci, _ = _planted(4)
    elements = _set([(15_000, 15_100), (500_000, 500_100), (4_900, 5_000)])  # between windows, nowhere, a centre
    table = _enriched(loci).table([elements])
    row = table.iloc[0]
    assert (row["overlapping"], row["set_in_windows"]) == (0, 0) and np.isnan(row["fold"]) and row["p"] == 1
    notes = notes_of([elements], [], table)
    assert "S: 3 of 3 elements have no candidate base in the windows" in notes
    assert "S: no called element overlaps it" in notes


def test_comparison_by_hand():
    got = comparison(6, np.array([1.0, 2, 3, 6]), 10)
    assert got == pytest.approx(
        {"fraction": 0.6, "shuffles": 4, "shuffled_fraction": 0.3, "shuffled_sd": np.std([1, 2, 3, 6], ddof=1) / 10,
         "fold": 2, "z": 3 / np.std([1, 2, 3, 6], ddof=1), "p": 2 / 5}
    )  # fmt: skip
    assert comparison(1, np.zeros(4), 10)["fold"] == float("inf")
    assert np.isnan(comparison(0, np.zeros(4), 0)["p"])


def test_the_smallest_p_is_printed_as_a_bound():
    counts = {"set": "S", "calls": "mask", "set_in_windows": 2_000, "set_called": 1_000}
    seen = [comparison(seen, np.array([1.0, 2, 3, 6]), total) for seen, total in ((7, 10), (6, 10), (0, 0))]
    rows = [
        counts | row | {"measure": measure, "called": called}
        for row in seen
        for measure, called in (("elements", 10), ("bases", 12_345))
    ]
    printed = overlap_rows(pd.DataFrame(rows))
    assert [row["p"] for row in printed] == ["≤ 0.2", "0.4", "–"]
    assert [printed[0][name] for name in ("elements", "bases", "overlapping", "fold", "of the set, called")] == [
        "10", "12,345", "70.0%", "2.33", "1,000 of 2,000"
    ]  # fmt: skip


def test_scores_of_tested_pairs_by_hand():
    locus = _locus(0, [(1_000, 1_100), (2_000, 2_100)])
    signals = np.zeros((LENGTH, 3), dtype=np.float32)
    signals[:, 2] = np.log10(1 + 3)  # contact 3 everywhere
    signals[1_000:1_050, :2] = [4, 9]  # activity 6
    signals[8_000:8_100, :2] = [1, 16]  # activity 4
    locus = replace(locus, signals=signals)
    assert activity(locus, SIGNALS)[[1_000, 8_000, 5]].tolist() == pytest.approx([6, 4, 0])
    spans = [(1_000, 1_100), (2_050, 2_150), (8_000, 8_100), (4_950, 5_050), (30_000, 30_100)]
    table = _set(spans).table.assign(gene_id="G0", regulated=[True, True, False, False, False])
    scores = PairScores(ElementSet("S", table, by_gene=True, flagged=True), SIGNALS)
    scores.add(_locus(7, [(1_000, 1_100)]))  # of another gene
    scores.add(locus)
    pairs = scores.pairs()
    assert scores.without_scores() == 2  # in the centre, outside the window
    assert pairs["mean_mask"].tolist() == pytest.approx([0.9, (0.9 + 0.01) / 2, 0.01])
    assert pairs["called"].tolist() == [True, True, False]
    assert pairs["activity"].tolist() == pytest.approx([3, 0, 4])
    assert pairs["abc"].tolist() == pytest.approx([300 / 700, 0, 400 / 700])
    assert pairs["tss_distance"].tolist() == [-3_950, -2_900, 3_050]
    areas = scores.summary().set_index("score")["auprc"]
    assert areas["mean_mask"] == 1 and areas["nearness"] == pytest.approx((1 + 2 / 3) / 2)
    assert areas["abc"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (scores.summary()["prevalence"] == 2 / 3).all()


def test_tested_pairs_of_one_kind_have_no_area():
    table = _set([(1_000, 1_100)]).table.assign(gene_id="G0")
    scores = PairScores(ElementSet("S", table, by_gene=True, flagged=True), SIGNALS)
    assert scores.summary()["auprc"].isna().all() and scores.summary()["pairs"].eq(0).all()
    scores.add(_locus(0))
    assert scores.summary()["auprc"].isna().all() and scores.summary()["pairs"].eq(1).all()


def test_regions_keep_their_fields_when_marked():
    locus = _locus(0, [(100, 200)])
    (marked_locus,) = marked([locus], [])
    assert marked_locus.regions == locus.regions and isinstance(locus.regions[0], Region)
