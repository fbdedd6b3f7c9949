import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seq2exp.data_tools import GeneWindows, Store, simulate
from seq2exp.data_tools.fasta import read_codes
from seq2exp.data_tools.simulate import find_motif
from seq2exp.errors import UserError

BED = ["chrom", "start", "end", "gene_id", "kind"]


def average_precision(truth: np.ndarray, score: np.ndarray) -> float:
    """Area under the precision-recall steps, ties counted together."""
    order = np.argsort(-score, kind="stable")
    truth, score = truth[order], score[order]
    last = np.flatnonzero(np.diff(score, append=-np.inf))
    hits = np.cumsum(truth)[last]
    precision, recall = hits / (last + 1), hits / truth.sum()
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def elements_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "elements.bed", sep="\t", names=BED)


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


def test_same_seed_same_files(tmp_path):
    first = digests(simulate(tmp_path / "a", seed=5, genes=20))
    assert digests(simulate(tmp_path / "b", seed=5, genes=20)) == first
    other = digests(simulate(tmp_path / "c", seed=6, genes=20))
    assert all(other[name] != first[name] for name in first if name not in ("genome.fa.fai", "contacts.tsv"))


def test_elements_lie_in_windows_outside_centre_without_overlap(simulated):
    genes = pd.read_csv(simulated / "genes.csv")
    elements = elements_of(simulated).merge(genes[["gene_id", "tss"]], on="gene_id")
    start, end = elements["start"] - elements["tss"], elements["end"] - elements["tss"]
    assert (start >= -256).all() and (end <= 256).all()
    assert ((end <= -16) | (start >= 16)).all()
    ordered = elements.sort_values(["chrom", "start"])
    same = ordered["chrom"].eq(ordered["chrom"].shift())
    assert (ordered["start"] >= ordered["end"].shift())[same].all()
    counts = elements.groupby(["gene_id", "kind"]).size().unstack(fill_value=0).reindex(genes["gene_id"], fill_value=0)
    assert counts["causal"].isin([0, 1, 2]).all() and counts["peak_only"].isin([1, 2, 3]).all()
    assert counts["motif_only"].isin([1, 2]).all()
    assert counts["peak_only"].sum() >= counts["causal"].sum()


def test_windows_of_neighbours_and_splits_are_apart(simulated):
    genes = pd.read_csv(simulated / "genes.csv")
    assert (genes.groupby("chrom")["tss"].diff().dropna() >= 2 * 512).all()
    assert (genes.groupby("chrom")["split"].nunique() == 1).all()
    assert set(genes["split"]) == {"train", "valid", "test"}


def test_motifs_are_where_they_should_be(simulated):
    codes = dict(read_codes(simulated / "genome.fa", {f"chr{i}" for i in range(1, 6)}))
    sites = {chrom: find_motif(sequence, "TGACTC") for chrom, sequence in codes.items()}
    planted = {chrom: np.zeros(len(sequence), dtype=bool) for chrom, sequence in codes.items()}
    for element in elements_of(simulated).itertuples():
        inside = sites[element.chrom]
        count = ((inside >= element.start - 5) & (inside < element.end)).sum()
        assert (count == 0) if element.kind == "peak_only" else (count >= 4), element
        if element.kind != "peak_only":
            planted[element.chrom][element.start : element.end] = True
    for chrom, positions in sites.items():
        background = ~planted[chrom][positions]
        close = (np.diff(positions) <= 48) & background[1:] & background[:-1]
        assert not close.any()
        assert 0 < background.sum() < len(codes[chrom]) / 1_000


def test_decoy_peaks_are_as_high_as_causal_ones(simulated, store):
    """Two-sample Kolmogorov-Smirnov distance below its 1 % critical value."""
    elements = elements_of(simulated)
    for track in ("H3K27ac", "DNase"):
        top = {kind: [] for kind in ("causal", "peak_only", "motif_only")}
        for element in elements.itertuples():
            middle = (element.start + element.end) // 2
            top[element.kind].append(store.track(track, element.chrom, middle - 8, middle + 8).mean())
        true, decoy = np.sort(top["causal"]), np.sort(top["peak_only"])
        at = np.concatenate([true, decoy])
        distance = np.abs(
            np.searchsorted(true, at, "right") / len(true) - np.searchsorted(decoy, at, "right") / len(decoy)
        ).max()
        assert distance < 1.63 * np.sqrt(1 / len(true) + 1 / len(decoy))
        assert max(top["motif_only"]) < 0.3 < min(true)


def test_expression_follows_the_causal_elements(simulated):
    genes = pd.read_csv(simulated / "genes.csv").set_index("gene_id")
    truth = pd.read_csv(
        simulated / "truth.bed", sep="\t", names=["chrom", "start", "end", "gene_id", "effect", "strand"]
    )
    assert set(zip(truth.chrom, truth.start, strict=True)) == {
        (e.chrom, e.start) for e in elements_of(simulated).itertuples() if e.kind == "causal"
    }
    peaks = pd.read_csv(simulated / "peaks.bed", sep="\t", names=["chrom", "start", "end"])
    assert set(zip(peaks.chrom, peaks.start, peaks.end, strict=True)) == {
        (e.chrom, e.start, e.end) for e in elements_of(simulated).itertuples() if e.kind != "motif_only"
    }
    total = truth.groupby("gene_id")["effect"].sum().reindex(genes.index, fill_value=0.0)
    noise = genes["target"] - np.log10(1 + total)
    assert 0.04 < noise.std() < 0.06 and abs(noise.mean()) < 0.015
    assert genes["target"].std() > 0.3


def test_only_signal_and_sequence_together_find_the_causal_bases(simulated, store: Store):
    """Average precision over the bases outside the centre: tracks, their product with contact, motifs, both."""
    windows = GeneWindows(store, 512)
    truth_bed = pd.read_csv(simulated / "truth.bed", sep="\t", usecols=[1, 2, 3], names=["start", "end", "gene_id"])
    by_gene = dict(list(truth_bed.groupby("gene_id")))
    scores: dict[str, list[np.ndarray]] = {name: [] for name in ("H3K27ac", "DNase", "product", "motif", "both")}
    truth = []
    outside = np.abs(np.arange(512) - 255.5) > 16
    for item in (windows[i] for i in range(len(windows))):
        label = np.zeros(512, dtype=bool)
        for element in by_gene.get(item["gene_id"], truth_bed[:0]).itertuples():
            label[element.start - item["start"] : element.end - item["start"]] = True
        acetyl, dnase, contact = item["signals"].numpy().T
        copies = np.zeros(512)
        copies[find_motif(item["sequence"].numpy(), "TGACTC")] = 1
        density = np.convolve(copies, np.ones(49), mode="same")
        element_like = np.convolve(density >= 4, np.ones(49), mode="same") > 0
        peak = np.convolve(np.minimum(acetyl, dnase), np.ones(9) / 9, mode="same")
        found = {
            "H3K27ac": acetyl,
            "DNase": dnase,
            "product": acetyl * dnase * contact,
            "motif": density,
            "both": peak * element_like,
        }
        for name, score in found.items():
            scores[name].append(score[outside])
        truth.append(label[outside])
    flat = np.concatenate(truth)
    precision = {name: average_precision(flat, np.concatenate(parts)) for name, parts in scores.items()}
    for alone in ("H3K27ac", "DNase", "product", "motif"):
        assert flat.mean() < precision[alone] < 0.55, precision
    assert precision["both"] > 0.9, precision


def test_no_element_can_be_told_by_its_distance(simulated):
    """Causal and decoy elements lie equally far from the TSS."""
    genes = pd.read_csv(simulated / "genes.csv")
    elements = elements_of(simulated).merge(genes[["gene_id", "tss"]], on="gene_id")
    elements["distance"] = ((elements["start"] + elements["end"]) / 2 - elements["tss"]).abs()
    means = elements.groupby("kind")["distance"].mean()
    assert abs(means - means.mean()).max() < 12, means


def test_several_motifs(tmp_path):
    """Every element with motifs has copies of one of them; peaks have none of either."""
    motifs = ("TGACTC", "GATAAG")
    folder = simulate(tmp_path, seed=3, genes=40, motif=",".join(motifs), motif_copies=3)
    codes = dict(read_codes(folder / "genome.fa", {f"chr{i}" for i in range(1, 6)}))
    counts = {
        motif: {c: np.isin(np.arange(len(s)), find_motif(s, motif)) for c, s in codes.items()} for motif in motifs
    }
    kinds = dict.fromkeys(motifs, 0)
    for element in elements_of(folder).itertuples():
        inside = [int(counts[m][element.chrom][element.start : element.end - 5].sum()) for m in motifs]
        if element.kind == "peak_only":
            assert inside == [0, 0]
        else:
            assert max(inside) >= 3, element
            kinds[motifs[int(np.argmax(inside))]] += 1
    assert min(kinds.values()) > 0.3 * sum(kinds.values())


def test_contacts_by_wider_bins(tmp_path):
    folder = simulate(tmp_path, seed=3, genes=12, chromosomes=3, contact_bin=64)
    contacts, genes = pd.read_csv(folder / "contacts.tsv", sep="\t"), pd.read_csv(folder / "genes.csv")
    assert ((contacts["bin2"] - contacts["bin1"]) % 64 == 0).all() and (contacts["bin1"] % 64 == 0).all()
    assert len(contacts) == 12 * (2 * 512 // 64 - 1)
    assert (genes["tss"] % 64 == 32).all()


def test_sizes_are_options(tmp_path):
    folder = simulate(
        tmp_path, seed=1, genes=12, chromosomes=4, length=1_024, element_width=64, causal=(1, 1), motif="ACGTTA"
    )
    parameters = json.loads((folder / "params.json").read_text())
    assert parameters["length"] == 1_024 and parameters["motif"] == "ACGTTA"
    elements = elements_of(folder)
    assert (elements["end"] - elements["start"] == 64).all()
    assert (elements[elements["kind"] == "causal"].groupby("gene_id").size() == 1).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"genes": 2}, "chromosomes"),
        ({"length": 128}, "do not fit"),
        ({"causal": (2, 3), "peak_only": (0, 1)}, "at least as many peak_only"),
        ({"causal": (2, 1)}, "low <= high"),
        ({"motif": "TGAN"}, "A C G T"),
        ({"motif": "TGACTC,GATA"}, "of one length"),
        ({"contact_bin": 0}, "contact_bin"),
        ({"windows": 3}, "windows"),
    ],
)
def test_impossible_parameters(tmp_path, wrong, said):
    with pytest.raises(UserError, match=said):
        simulate(tmp_path / "sim", seed=0, **wrong)
    assert not (tmp_path / "sim").exists()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        simulate(tmp_path / "file" / "sim", seed=0, genes=20)
