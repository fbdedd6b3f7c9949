"""The main job on real hg38 input, with windows of 200,000 bases and a small model."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.realdata


def test_build_train_evaluate_discover(seq2exp, realdata, tmp_path, caplog):
    hg38 = realdata / "hg38"
    tracks = [f"{name}={hg38 / 'signal' / f'K562_{name}.element_density.bw'}" for name in ("H3K27ac", "DNase")]
    store = tmp_path / "k562.zarr"
    code, _, err = seq2exp(
        "data", "build", "--fasta", hg38 / "genome" / "hg38.subset.fa", "--track", tracks[0], "--track", tracks[1],
        "--contacts", hg38 / "hic" / "K562_HiC.chr22.5kb.hg38.tsv.gz",
        "--genes", hg38 / "genes" / "genes_usable_in_subset.csv",
        "--target", "K562_RNA_log10", "--split", "split_small", "--out", store,
    )  # fmt: skip
    assert code == 0, err
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

    code, _, err = seq2exp("discover", run, "--split", "test", "--gene", "ENSG00000040608")
    assert code == 0, err
    assert (run / "discovery" / "ENSG00000040608.png").stat().st_size > 10_000
    assert (run / "discovery" / "mask.bw").stat().st_size > 10_000
    regions = pd.read_csv(run / "discovery" / "elements.bed", sep="\t")
    assert set(regions["#chrom"]) == {"chr22"} and (regions["end"] - regions["start"] >= 20).all()
    assert regions["gene_id"].nunique() == 11 and regions["name"].is_unique
