"""mRNA features, promoter activity, and what the builder makes of them."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from seq2exp.data_tools import build_store
from seq2exp.data_tools.bigwig import BigWig, write_bigwig
from seq2exp.data_tools.features import MRNA_FEATURES, promoter_activity, read_mrna_features, reads_per_million
from seq2exp.errors import UserError

from .conftest import LENGTHS

IDS = pd.Series(["G1", "G2", "G3"])


def mrna(rows: dict[str, float]) -> str:
    lines = [",".join(["gene_id", "Gene name", *MRNA_FEATURES])]
    lines += [",".join([gene, "x", *(f"{value + n}" for n in range(8))]) for gene, value in rows.items()]
    return "\n".join(lines) + "\n"


def test_mrna_features_are_joined_by_gene_id(tmp_path, caplog):
    (tmp_path / "mrna.csv").write_text(mrna({"G3.2": 3, "G1": 1, "G8": 8}))
    found = read_mrna_features(tmp_path / "mrna.csv", IDS)
    assert list(found.columns) == list(MRNA_FEATURES) and found.index.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found.to_numpy(), np.array([[1], [4], [3]]) + np.arange(8.0))  # 4: the column's mean
    assert "1 of 3 genes are not in it (G2, ...); they take its column means" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (mrna({"G1": 1}).replace("UTR3GC", "gc"), "no column 'UTR3GC'; the mRNA features are UTR5LEN_log10zscore"),
        (mrna({"G7": 1}), r"holds none of the genes \(G1, ...\)"),
        (mrna({"G1": 1, "G1.2": 1}), "the gene G1 occurs more than once"),
        (mrna({"G1": 1}).replace("1.0", "x").replace(",1,", ",x,"), "line 2: UTR5LEN_log10zscore is 'x'"),
    ],
)
def test_wrong_mrna_tables(tmp_path, text, said):
    (tmp_path / "mrna.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_mrna_features(tmp_path / "mrna.csv", IDS)


def test_reads_per_million_of_known_reads(tmp_path):
    """100 reads of 30 bases: 25 around one TSS, 5 around another, cut off by the chromosome's start."""
    coverage = {chrom: np.zeros(length) for chrom, length in LENGTHS.items()}
    for chrom, start, count in (("chr1", 2_000, 25), ("chr2", 10, 5), ("chr1", 100, 70)):
        coverage[chrom][start : start + 30] += count
    write_bigwig(tmp_path / "a.bw", coverage)
    write_bigwig(tmp_path / "b.bw", {chrom: 0.25 * values for chrom, values in coverage.items()})
    with BigWig(tmp_path / "a.bw") as file:
        assert file.total() == 3_000
    genes = pd.DataFrame({"chrom": ["chr1", "chr2", "chr1"], "tss": [2_400, 100, 1_000]})
    np.testing.assert_allclose(reads_per_million(tmp_path / "a.bw", genes), [250_000, 50_000, 0], rtol=1e-6)
    np.testing.assert_allclose(promoter_activity(tmp_path / "a.bw", tmp_path / "b.bw", genes), [250_000, 50_000, 0])
    edge = pd.DataFrame({"chrom": ["chr1", "chr1"], "tss": [2_500, 2_529]})  # 30 bases, then 1, within 500 upstream
    np.testing.assert_allclose(reads_per_million(tmp_path / "a.bw", edge), [250_000, 250_000 / 30], rtol=1e-6)
    write_bigwig(tmp_path / "b.bw", {chrom: 0 * values for chrom, values in coverage.items()})
    with pytest.raises(UserError, match=r"b\.bw: its signal adds up to 0"):
        reads_per_million(tmp_path / "b.bw", genes)


def test_the_store_has_the_published_features_in_order(inputs: dict[str, Any], tmp_path):
    (tmp_path / "mrna.csv").write_text(mrna({"G1": 1, "G2": 2, "G3": 3}))
    fields = {**inputs, "mrna": tmp_path / "mrna.csv", "promoter_activity": ("DNase", "DNase"), "features": ["gc"]}
    store = build_store(**fields, log_target=True)
    assert store.feature_names == [*MRNA_FEATURES, "gc", "PromoterActivity"]
    np.testing.assert_array_equal(store.genes["UTR3GC"], [7, 8, 9])
    np.testing.assert_allclose(
        store.genes["PromoterActivity"], reads_per_million(inputs["track"]["DNase"], store.genes)
    )
    np.testing.assert_allclose(store.genes["target"], np.log10([1.5, np.nan, 2.5]))
    assert store.target_name == "log10(1 + target)"


def test_wrong_combinations(inputs):
    for fields, said in (
        ({"gtf": "a.gtf"}, "either genes, or gtf and expression"),
        ({"genes": None}, "either genes, or gtf and expression"),
        ({"gtf": "a.gtf", "expression": "e.tsv"}, "either genes, or gtf and expression"),
        ({"promoter_activity": ("DNase", "H3K27ac")}, "no track 'H3K27ac'; the tracks are DNase"),
        ({"contact_recipe": "ABC"}, "contact_recipe: Input should be 'measured' or 'abc'"),
    ):
        with pytest.raises(UserError, match=said):
            build_store(**{**inputs, **fields})
