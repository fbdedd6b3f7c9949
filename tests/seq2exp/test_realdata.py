"""The main job on real hg38 input, with windows of 200,000 bases and a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyBigWig
import pytest
import yaml

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


def built(seq2exp, realdata: Path, folder: Path) -> Path:
    """The store of the real input, built once."""
    hg38, store = realdata / "hg38", folder / "k562.zarr"
    if store.exists():
        return store
    tracks = [f"{name}={hg38 / 'signal' / f'K562_{name}.element_density.bw'}" for name in ("H3K27ac", "DNase")]
    code, _, err = seq2exp(
        "data", "build", "--fasta", hg38 / "genome" / "hg38.subset.fa", "--track", tracks[0], "--track", tracks[1],
        "--contacts", hg38 / "hic" / "K562_HiC.chr22.5kb.hg38.tsv.gz",
        "--genes", hg38 / "genes" / "genes_usable_in_subset.csv",
        "--target", "K562_RNA_log10", "--split", "split_small", "--out", store,
    )  # fmt: skip
    assert code == 0, err
    return store


def test_build_train_evaluate_discover(seq2exp, realdata, folder, tmp_path, caplog):
    store = built(seq2exp, realdata, folder)
    settings = {
        "data": {"store": str(store), "batch_size": 1},
        "model": {
            "preset": "discovery", "length": 200_000, "center": 2_000, "d_model": 8, "generator_layers": 1,
            "predictor_layers": 1, "d_state": 2,
        },
        "schedule": {"warmup_fraction": 0.0},
        "precision": "fp32",
        "steps": 2,
        "evaluate_every": 2,
    }  # fmt: skip
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    run = tmp_path / "run"
    code, _, err = seq2exp("train", tmp_path / "train.yaml", "--out", run)
    assert code == 0, err
    assert "2 of 79 genes of train have no target" in caplog.text

    code, _, err = seq2exp("evaluate", run, "--split", "test", "--batch-size", 1)
    assert code == 0, err
    result = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert result["test"]["genes"] == 9 and result["test"]["without_target"] == 2
    assert 0 < result["test"]["mse"] < 100 and 0 < result["test"]["mask_ratio"] < 1

    with pyBigWig.open(str(realdata / "hg38" / "signal" / "K562_DNase.element_density.bw")) as track:
        spans = [(chrom, *span) for chrom in ("chr20", "chr22") for span in track.intervals(chrom)]
    bed = tmp_path / "candidates.bed"
    bed.write_text("".join(f"{chrom[3:]}\t{start}\t{end}\n" for chrom, start, end, value in spans if value > 0))
    gene = "ENSG00000040608"
    code, said, err = seq2exp(
        "discover", run, "--split", "test", "--gene", gene, "--report", "--overlap", f"candidates={bed}",
        "--shuffles", 50,
    )  # fmt: skip
    assert code == 0, err
    assert "candidates: its 20 is taken for chr20" in said and "have no candidate base in the windows" in said
    found = run / "discovery"
    assert (found / f"{gene}.png").stat().st_size > 10_000 and (found / "mask.bw").stat().st_size > 10_000
    assert (found / "reports" / f"{gene}.html").stat().st_size > 50_000
    regions = pd.read_csv(found / "elements.csv")
    assert set(regions["chrom"]) == {"chr22"} and (regions["end"] - regions["start"] >= 20).all()
    assert regions["gene_id"].nunique() == 11 and regions["name"].is_unique
    known = 20_012_477, 20_645_713  # the rest of chr22 is N here
    assert regions["start"].min() >= known[0] and regions["end"].max() <= known[1]
    overlap = pd.read_csv(found / "overlap.csv")
    assert set(overlap["calls"]) == {"mask", "tracks"} and overlap["p"].between(0.0196, 1).all()
    tracks = overlap[(overlap["calls"] == "tracks") & (overlap["measure"] == "elements")].iloc[0]
    assert tracks["fraction"] == 1 and tracks["fold"] > 1  # the tracks are 0 elsewhere


@pytest.mark.slow
def test_a_table_of_the_paper(seq2exp, realdata, folder, tmp_path):
    """Small models on windows of 200,000 bases: a row of Table 2 that needs another."""
    small = {"d_model": 8, "generator_layers": 1, "predictor_layers": 1, "d_state": 2}
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"data": {"batch_size": 1}, "model": small, "precision": "fp32"}))
    code, printed, err = seq2exp(
        "reproduce", "table2", "--store", built(seq2exp, realdata, folder), "--cell-type", "K562",
        "--out", tmp_path / "tables", "--settings", settings, "--steps", 2, "--rows", "Seq2Exp-retrain",
        "--seeds", "22", "--devices", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "2 of 2 runs to do" in printed and (tmp_path / "tables" / "table.md").read_text().strip() in printed
    for part in ("| Seq2Exp-retrain | 1 of 1 |", "| 10.00 %    | 10.00 % |", "is the column 'K562_RNA_log10', in the"):
        assert part in printed, part
