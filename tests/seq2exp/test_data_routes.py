"""Soft and hard models train from a store made by each route: built, imported, and fetched from a server."""

from __future__ import annotations

import csv
import gzip
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from contact_maps import write_map
from file_server import mirrored, serving
from official_layout import GENES, INTER, LENGTHS, write_layout
from safetensors.torch import load_file

from seq2exp.data_tools import open_store
from seq2exp.data_tools.fetch import MIRROR, PRESETS
from seq2exp.data_tools.official import MRNA_FEATURES

pytest.importorskip("h5py")

MODEL = {"length": 2_000, "center": 200, "d_model": 8, "generator_layers": 1, "predictor_layers": 1, "d_state": 2}


def built(seq2exp, folder: Path, monkeypatch) -> Path:
    """The commands of the README: simulate, then the build command that it prints."""
    code, out, err = seq2exp("data", "simulate", folder / "sim", "--genes", 40, "--length", 2_000, "--center", 200)
    assert code == 0, err
    return run_printed(seq2exp, out)


def imported(seq2exp, folder: Path, monkeypatch) -> Path:
    root = write_layout(folder / "published")
    store = folder / "imported.zarr"
    code, _, err = seq2exp("data", "import-official", root, "--cell-type", "K562", "--out", store)
    assert code == 0, err
    return store


def fetched(seq2exp, folder: Path, monkeypatch) -> Path:
    """From a server that cuts one connection and says 503 once; then the build command that is printed."""
    bodies = public_files(folder)
    with serving() as server:
        server.files, files = mirrored("k562", bodies)
        server.faults = ["cut", "", "503"]
        monkeypatch.setitem(PRESETS, "k562", files)
        monkeypatch.setattr("seq2exp.data_tools.download._PAUSE", 0.0)
        monkeypatch.setenv(MIRROR, server.url)
        code, out, err = seq2exp("data", "fetch", "--preset", "k562", "--out", folder / "k562")
        assert code == 0, err
    return run_printed(seq2exp, out)


def run_printed(seq2exp, printed: str) -> Path:
    """Runs the last line, a `seq2exp data build` command; the store."""
    words = shlex.split(printed.strip().splitlines()[-1])
    assert words[:3] == ["seq2exp", "data", "build"]
    code, _, err = seq2exp(*words[1:])
    assert code == 0, err
    return Path(words[words.index("--out") + 1])


def public_files(folder: Path) -> dict[str, bytes]:
    """The public files of K562 in small, by role: those of the published layout, a .hic and CAGE tags."""
    root = write_layout(folder / "published")
    bins = {chrom: length // 5_000 for chrom, length in LENGTHS.items()}
    pairs = [(i, j) for i in range(sum(bins.values())) for j in range(i, bins["chr1"] if i < bins["chr1"] else 20)]
    pixels = {"bin1_id": [i for i, _ in pairs], "bin2_id": [j for _, j in pairs]}
    pixels["count"] = [100 // (1 + j - i) for i, j in pairs]
    norms = {"VC": {chrom: [2.0] * count for chrom, count in bins.items()}}
    hic = write_map(folder / "map.hic", LENGTHS, 5_000, pixels, norms)
    tags = "".join(
        f"{gene[2]}\t{gene[3] + 7}\t{gene[3] + 8}\tt\t{number + 1}\t+\n" for number, gene in enumerate(GENES)
    )
    header = ["gene_id", "Gene name", "chrom", "TSS", *MRNA_FEATURES]
    rows = [[g[0], g[1], g[2].removeprefix("chr"), g[3], *np.arange(8) / 10] for g in GENES]
    return {
        "fasta": gzip.compress((root / "hg38" / "hg38.ml.fa").read_bytes()),
        "H3K27ac": (root / INTER / "H3K27ac/K562/ENCFF465GBD.bigWig").read_bytes(),
        "DNase": (root / INTER / "DNase-seq/K562/ENCFF414OGC.bigWig").read_bytes(),
        "contacts": hic.read_bytes(),
        "CAGE": gzip.compress(tags.encode()),
        "splits": (root / INTER / "leave_chrom_out_crossvalidation_split_18377genes.csv").read_bytes(),
        "mRNA features": "\n".join(",".join(map(str, row)) for row in [header, *rows]).encode(),
    }


@pytest.mark.parametrize("route", [built, imported, fetched])
def test_models_train_from_it(route, seq2exp, tmp_path, write_yaml, monkeypatch):
    path = route(seq2exp, tmp_path, monkeypatch)
    store = open_store(path)
    assert store.tracks == ["H3K27ac", "DNase"] and store.has_contacts
    features = [] if route is built else [*MRNA_FEATURES, "PromoterActivity"]
    assert store.feature_names == features
    if route is fetched:
        assert store.info["contacts"]["value"] == "VC" and store.info["contacts"]["power_law_chromosomes"] == []
        np.testing.assert_allclose(store.genes["target"], np.log10(1 + np.arange(1.0, 6.0)))
        np.testing.assert_allclose(store.contacts(0, 20_123, 20_124), np.log10(1 + 100 / 4), rtol=1e-6)
    for preset in ("soft", "hard"):
        fields = {
            "data": {"store": str(path), "batch_size": 2},
            "model": MODEL | {"preset": preset},
            "schedule": {"warmup_fraction": 0.0},
            "precision": "fp32",
            "steps": 2,
            "log_every": 1,
            "evaluate_every": 1,
            "checkpoint_every": 1,
        }
        run = tmp_path / preset
        code, _, err = seq2exp("train", write_yaml(fields), "--out", run)
        assert code == 0, err
        with (run / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == [1, 2]
        assert all(np.isfinite([float(row["loss"]), float(row["valid_mse"])]).all() for row in rows)
        inputs = json.loads((run / "best" / "inputs.json").read_text())
        assert inputs["signals"] == ["H3K27ac", "DNase", "contacts"] and len(load_file(run / "best/model.safetensors"))
