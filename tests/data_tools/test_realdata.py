"""A store from real hg38 input: equal to its sources, and quick enough for 200 kb windows."""

import gzip
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyBigWig
import pytest
from bgzip import bgzip
from contact_maps import write_map
from pyfaidx import Fasta

from seq2exp.data_tools import GeneWindows, Store, build_store
from seq2exp.data_tools.contacts import PowerLaw, open_contacts
from seq2exp.data_tools.features import MRNA_FEATURES, read_mrna_features
from seq2exp.data_tools.gtf import read_gtf
from seq2exp.data_tools.tables import read_bed
from seq2exp.errors import UserError

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def fields(realdata: Path) -> dict[str, Any]:
    hg38 = realdata / "hg38"
    return {
        "fasta": hg38 / "genome" / "hg38.subset.fa",
        "track": {
            "H3K27ac": hg38 / "signal" / "K562_H3K27ac.element_density.bw",
            "DNase": hg38 / "signal" / "K562_DNase.element_density.bw",
            "ATAC": hg38 / "signal" / "ATAC_esATAC.tn5_cuts_151bp.chr20.bw",
        },
        "contacts": str(hg38 / "hic" / "K562_HiC.chr22.5kb.hg38.tsv.gz"),
        "genes": hg38 / "genes" / "genes_usable_in_subset.csv",
        "target": "K562_RNA_log10",
        "split": "split_small",
    }


@pytest.fixture(scope="module")
def store(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build_store(out=tmp_path_factory.mktemp("real") / "store.zarr", **fields)


def test_sequence_equals_the_fasta(store, fields):
    fasta = Fasta(str(fields["fasta"]), sequence_always_upper=True, build_index=False)
    rng = np.random.default_rng(0)
    for chrom, length in store.chromosomes.items():
        for start in rng.integers(0, length - 50, 100).tolist():
            text = fasta[chrom][start : start + 50].seq
            assert "".join("ACGTN"[c] for c in store.sequence(chrom, start, start + 50)) == text
    known = np.flatnonzero(store.sequence("chr22", 0, 21_000_000) < 4)
    assert known[0] == 20_012_477 and known[-1] == 20_645_712 and len(known) > 633_000


def test_tracks_equal_the_bigwigs_at_random_positions(store, fields):
    rng = np.random.default_rng(1)
    for name, path in fields["track"].items():
        file = pyBigWig.open(str(path))
        for chrom in ("chr20", "chr22"):
            covered = [p for s, e, _ in (file.intervals(chrom) or ())[:2_000] for p in (s, e - 1)]
            positions = [
                *rng.integers(0, store.chromosomes[chrom], 600).tolist(),
                *rng.permutation(covered)[:400].tolist(),
            ]
            source = [file.values(chrom, p, p + 1)[0] for p in positions]
            found = [store.track(name, chrom, p, p + 1)[0] for p in positions]
            np.testing.assert_allclose(found, np.nan_to_num(source), rtol=1e-3)
            assert chrom == "chr22" or np.count_nonzero(found) > 150


def test_contacts_equal_the_table_and_the_power_law(store, fields):
    with gzip.open(fields["contacts"], "rt") as text:
        table = pd.read_csv(text, sep="\t")
    pairs = {(a, b): v for a, b, v in zip(table.bin1_hg38, table.bin2_hg38, table.KR_norm, strict=True)}
    covered = {b for pair, v in pairs.items() if np.isfinite(v) for b in pair}
    checked = 0
    for row, gene in store.genes[store.genes["chrom"] == "chr22"].iterrows():
        own = gene["tss"] // 5_000 * 5_000
        assert own in covered
        for other in range(own - 100_000, own + 100_001, 5_000):
            found = store.contacts(row, other, other + 5_000)
            assert (found == found[0]).all()
            value = pairs.get((min(own, other), max(own, other)), 0.0 if other in covered else np.nan)
            if np.isfinite(value):
                assert found[0] == pytest.approx(np.log10(1 + value), rel=1e-5)
                checked += 1
    assert checked > 300
    row = store.genes.index[store.genes["chrom"] == "chr20"][0]
    own = int(store.genes.at[row, "tss"]) // 5_000 * 5_000
    law = store.info["contacts"]["power_law"]
    expected = law["factor"] * PowerLaw().contact(np.array([0.0, 5e3, 5e4]))
    found = [store.contacts(row, own + d, own + d + 1)[0] for d in (0, 5_000, 50_000)]
    np.testing.assert_allclose(found, np.log10(1 + expected), rtol=1e-5)
    near = table[(table.bin2_hg38 - table.bin1_hg38) == 50_000]["KR_norm"].mean()
    assert 0.4 < expected[2] / near < 2.5  # the units are those of the measured map


def test_genes_and_splits(store):
    assert len(store.genes) == 106 and int(store.genes["target"].isna().sum()) == 4
    assert {split: len(GeneWindows(store, split=split)) for split in ("train", "valid", "test")} == {
        "train": 77,
        "valid": 16,
        "test": 9,
    }
    assert set(GeneWindows(store, split="test").genes["chrom"]) == {"chr22"}


def test_windows_of_200_kb_read_quickly(store):
    windows = GeneWindows(store, 200_000)
    item = windows[0]
    assert item["sequence"].shape == (200_000,) and item["signals"].shape == (200_000, 4)
    for i in range(len(windows)):
        assert (windows[i]["sequence"] < 4).float().mean() > 0.98 or windows[i]["chrom"] == "chr22"
    windows.store._cache.limit = 0
    times = []
    for i in range(40):
        began = time.process_time()
        windows[i]
        times.append(time.process_time() - began)
    assert np.median(times) < 0.05  # measured: 10 ms


def test_the_whole_gene_table_names_the_first_missing_chromosome(fields, realdata, tmp_path):
    table = realdata / "hg38" / "genes" / "genes_18413_tss_expression.csv"
    with pytest.raises(UserError, match="chromosome 'chrX'"):
        build_store(**{**fields, "out": tmp_path / "s.zarr", "genes": table, "split": "split_paper"})


def test_tracks_of_another_assembly(fields, realdata, tmp_path):
    other = realdata / "extra_hg19" / "CoolBox_chr9_4-6Mb_K562_H3K27ac.bigwig"
    with pytest.raises(UserError, match=r"chr20 has 63,025,520 bases, but 10,000,000|no chromosome 'chr20'"):
        build_store(**{**fields, "out": tmp_path / "s.zarr", "track": {"H3K27ac": other}})


# --- other forms of the same input: bgzip, the other tracks, peaks, the ABC recipe, maps ------------------------------


@pytest.fixture(scope="module")
def other(fields: dict[str, Any], realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A second store, of the other real tracks, from a bgzip FASTA."""
    folder, signal = tmp_path_factory.mktemp("other"), realdata / "hg38" / "signal"
    (folder / "hg38.subset.fa.gz").write_bytes(bgzip(fields["fasta"].read_bytes()))
    with pyBigWig.open(str(fields["track"]["DNase"])) as file, (folder / "elements.narrowPeak").open("w") as peaks:
        for chrom in ("chr20", "chr22"):
            for start, end, value in file.intervals(chrom):
                print(chrom, start, end, ".", 0, ".", value, -1, -1, (end - start) // 2, sep="\t", file=peaks)
    tracks = {
        "H3K27ac": signal / "GM18526_H3K27ac.chr22.bw",
        "ATAC": signal / "ATAC_esATAC.fragment_coverage.chr20.bw",
    }
    changed = {
        "fasta": folder / "hg38.subset.fa.gz",
        "track": tracks,
        "peaks": folder / "elements.narrowPeak",
        "contact_recipe": "abc",
        "promoter_activity": ("H3K27ac", "ATAC"),
    }
    return build_store(out=folder / "store.zarr", **(fields | changed))


def test_a_bgzip_fasta_gives_the_same_sequence(store, other):
    for chrom, length in store.chromosomes.items():
        np.testing.assert_array_equal(other.sequence(chrom, 0, length), store.sequence(chrom, 0, length))


def test_the_other_tracks_at_random_positions(other):
    rng = np.random.default_rng(4)
    for name, chrom in (("H3K27ac", "chr22"), ("ATAC", "chr20")):
        file = pyBigWig.open(other.info["sources"][f"track {name}"]["path"])
        covered = [p for s, e, _ in file.intervals(chrom)[::40] for p in (s, e - 1)]
        positions = [*rng.integers(0, other.chromosomes[chrom], 500).tolist(), *rng.permutation(covered)[:500].tolist()]
        source = np.nan_to_num([file.values(chrom, p, p + 1)[0] for p in positions])
        found = [other.track(name, chrom, p, p + 1)[0] for p in positions]
        np.testing.assert_allclose(found, source, rtol=1e-3)
        assert len(positions) == 1_000 and np.count_nonzero(found) > 300


def test_elements_as_narrow_peaks(store, other):
    for chrom, length in store.chromosomes.items():
        covered = store.track("DNase", chrom, 0, length) > 0
        np.testing.assert_array_equal(other.regions("peaks", chrom, 0, length) & covered, covered)
    assert other.region_size("peaks")[1] >= 400_000


def test_the_abc_recipe_on_the_real_map(store, other):
    """What was measured is raised by the pseudocount; promoters with hardly any contact take the power law."""
    plain, law = store.info["contacts"], PowerLaw()
    added = other.info["contacts"]["power_law"]["factor"] * law.contact(np.array(1e6))
    assert (other.info["contacts"]["recipe"], plain["value"]) == ("abc", "KR_norm")
    same = 0
    for row, gene in store.genes.iterrows():
        low, high = gene["tss"] - 100_000, gene["tss"] + 100_000
        before, after = (10.0 ** s.contacts(row, low, high) - 1 for s in (store, other))
        own = before[100_000]
        if gene["chrom"] == "chr20" or own >= 0.01 * plain["power_law"]["factor"]:
            np.testing.assert_allclose(after, before + added, rtol=1e-4, atol=1e-4)
            same += 1
    assert same > 95


@pytest.mark.parametrize("suffix", ["hic", "cool"])
def test_the_real_contacts_as_a_map(suffix, realdata, tmp_path):
    """The raw counts of the table, written as a map, and read as one."""
    path = realdata / "hg38" / "hic" / "K562_HiC.chr22.5kb.hg38.tsv.gz"
    table = pd.read_csv(path, sep="\t").groupby(["bin1_hg38", "bin2_hg38"], as_index=False)["raw_count"].sum()
    table = table[table["bin1_hg38"] <= table["bin2_hg38"]]
    pixels = {"count": table["raw_count"].tolist()}
    pixels |= {f"bin{i}_id": (table[f"bin{i}_hg38"] // 5_000).tolist() for i in (1, 2)}
    written = write_map(tmp_path / f"map.{suffix}", {"chr22": 21_000_000}, 5_000, pixels)
    tss = np.arange(20_102_500, 20_600_000, 50_000)
    chroms, lengths = np.full(len(tss), "chr22"), {"chr22": 21_000_000}
    found = open_contacts(str(written), lengths=lengths).rows(chroms, tss, 20)
    listed = open_contacts(str(path), value="raw_count", columns=("bin1_hg38", "bin2_hg38")).rows(chroms, tss, 20)
    assert (listed > 0).sum() > 300
    np.testing.assert_array_equal(np.nan_to_num(found), np.nan_to_num(listed))


# --- the other real files: hg19, and formats that the store above has none of -------------------------------------


@pytest.fixture(scope="module")
def hg19(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """chr9 without its sequence, which is not at hand: the two bigWigs, and the genes of the GTF."""
    folder, extra = tmp_path_factory.mktemp("hg19"), realdata / "extra_hg19"
    length = pyBigWig.open(str(extra / "CoolBox_chr9_4-6Mb_K562_RNA.bigwig")).chroms()["chr9"]
    (folder / "chr9.fa").write_bytes(b">chr9\n" + b"N" * length + b"\n")
    annotated = read_gtf(extra / "CoolBox_chr9_4-6Mb.hg19.gtf.gz")
    table = pd.DataFrame({"gene_id": annotated.index, "TPM": np.arange(float(len(annotated)))})
    table.to_csv(folder / "expression.tsv", sep="\t", index=False)
    return build_store(
        out=folder / "store.zarr",
        fasta=folder / "chr9.fa",
        track={name: extra / f"CoolBox_chr9_4-6Mb_K562_{name}.bigwig" for name in ("H3K27ac", "RNA")},
        gtf=extra / "CoolBox_chr9_4-6Mb.hg19.gtf.gz",
        expression=folder / "expression.tsv",
        target="TPM",
        log_target=True,
        promoter_activity=("H3K27ac", "RNA"),
    )


def test_other_bigwigs_at_random_positions(hg19, realdata):
    rng = np.random.default_rng(2)
    for name in hg19.tracks:
        file = pyBigWig.open(str(realdata / "extra_hg19" / f"CoolBox_chr9_4-6Mb_K562_{name}.bigwig"))
        positions = rng.integers(4_000_000, 6_000_000, 1_000).tolist()
        source = np.nan_to_num([file.values("chr9", p, p + 1)[0] for p in positions])
        found = [hg19.track(name, "chr9", p, p + 1)[0] for p in positions]
        np.testing.assert_allclose(found, source, rtol=1e-3)
        assert np.count_nonzero(found) > 100


def test_genes_of_the_gtf(hg19, realdata):
    with gzip.open(realdata / "extra_hg19" / "CoolBox_chr9_4-6Mb.hg19.gtf.gz", "rt") as text:
        lines = [line.split("\t") for line in text if line.split("\t")[2] == "gene"]
    assert len(hg19.genes) == len(lines) == 55
    for (_, gene), fields in zip(hg19.genes.iterrows(), lines, strict=True):
        assert f'gene_id "{gene["gene_id"]}"' in fields[8] and f'gene_name "{gene["gene_name"]}"' in fields[8]
        end = int(fields[3]) if fields[6] == "+" else int(fields[4])
        assert (gene["tss"], gene["strand"]) == (end - 1, fields[6])
    np.testing.assert_allclose(hg19.genes["target"], np.log10(1 + np.arange(55.0)))
    assert hg19.genes["PromoterActivity"].max() > 100 and (hg19.genes["PromoterActivity"] >= 0).all()


def test_juicer_files_give_the_published_normalised_contacts(realdata):
    """RAWobserved and KRnorm of hg19 against the table of the same map, normalised elsewhere."""
    source = open_contacts(
        str(realdata / "extra_hg19" / "K562.chr22.5kb.RAWobserved.gz"), lengths={"chr22": 51_304_566}
    )
    table = pd.read_csv(realdata / "hg38" / "hic" / "K562_HiC.chr22.5kb.hg38.tsv.gz", sep="\t")
    table = table[np.isfinite(table["KR_norm"])].sample(1_000, random_state=0)
    rows = source.rows(np.full(1_000, "chr22"), table["bin1_hg19"].to_numpy() + 2_500, reach=200)
    assert (source.value, source.resolution) == ("KR", 5_000)
    apart = (table["bin2_hg19"] - table["bin1_hg19"]).to_numpy() // 5_000
    near = apart <= 200
    assert near.sum() > 900
    found = rows[np.arange(1_000)[near], 200 + apart[near]]
    np.testing.assert_allclose(found, table["KR_norm"].to_numpy()[near], rtol=2e-3, atol=0.01)


def test_juicer_files_of_another_assembly(realdata):
    with pytest.raises(UserError, match=r"KRnorm\.gz: has 10,263 lines, but the chromosome has 10,361 bins"):
        source = open_contacts(
            str(realdata / "extra_hg19" / "K562.chr22.5kb.RAWobserved.gz"), lengths={"chr22": 51_804_566}
        )
        source.rows(np.array(["chr22"]), np.array([20_000_000]), reach=2)


def test_mrna_features_of_the_public_table(realdata):
    path = realdata / "formats" / "EPInformer_mRNA_halflife_features.SAMPLE.csv"
    table = pd.read_csv(path)
    found = read_mrna_features(path, table["gene_id"] + ".7")
    np.testing.assert_array_equal(found, table[list(MRNA_FEATURES)])


def test_fragments_serve_as_bed(store, realdata):
    path = realdata / "hg38" / "signal" / "ATAC_esATAC.fragments.chr20.hg38.bed.gz"
    found = read_bed(path, store.chromosomes)["chr20"]
    table = pd.read_csv(path, sep="\t", header=None)
    covered = np.zeros(store.chromosomes["chr20"], dtype=bool)
    for start, end in zip(table[1], table[2], strict=True):
        covered[start:end] = True
    assert (found[:, 1] - found[:, 0]).sum() == covered.sum()
    assert all(covered[start:end].all() for start, end in found.tolist())
