"""The published dataset's layout, written here in small: what its import gives, and what it refuses."""

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from official_layout import (
    GENES,
    HALF,
    INTER,
    LENGTHS,
    base_contacts,
    bins_of,
    masks,
    write,
    write_contacts,
    write_layout,
)

from seq2exp.data_tools import Store, import_official
from seq2exp.data_tools import build as build_module
from seq2exp.data_tools.bigwig import write_bigwig
from seq2exp.data_tools.official import MRNA_FEATURES
from seq2exp.data_tools.pickles import read_masks
from seq2exp.errors import UserError

h5py = pytest.importorskip("h5py")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "data")


def imported(root: Path, cell: str = "K562", **options: Any) -> Store:
    return import_official(root, cell, root.parent / "store.zarr", **options)


def refused(root: Path, said: str, **options: Any) -> None:
    """The import ends in one sentence that matches `said`, and leaves nothing."""
    with pytest.raises(UserError, match=said) as error:
        imported(root, **options)
    assert "\n" not in str(error.value)
    assert not list(root.parent.glob("store.zarr*"))


# --- what it gives ----------------------------------------------------------------------------------------------------


def test_genes_features_and_targets(root, caplog):
    store = imported(root)
    assert store.tracks == ["H3K27ac", "DNase"] and store.chromosomes == LENGTHS
    for column, at in (("gene_id", 0), ("gene_name", 1), ("chrom", 2), ("tss", 3), ("strand", 4), ("split", 5)):
        assert store.genes[column].tolist() == [gene[at] for gene in GENES]
    np.testing.assert_allclose(store.genes["target"], np.log10(1 + np.array([0, 0.1, 0.2, 0.3, 0.4]) * 1_000))
    assert store.feature_names == [*MRNA_FEATURES, "PromoterActivity"]
    np.testing.assert_allclose(store.genes["PromoterActivity"], np.sqrt(4.0 * np.arange(1, 6)))
    np.testing.assert_allclose(store.genes["CDSGC"], np.arange(5) + 0.5)
    assert "1 genes are in not all of the three gene tables" in caplog.text


def test_contacts_are_those_of_the_files(root):
    store = imported(root)
    for row, gene in enumerate(GENES):
        low, high = max(gene[3] - HALF, 0), min(gene[3] + HALF, LENGTHS[gene[2]])
        np.testing.assert_allclose(store.contacts(row, low, high), np.log10(1 + base_contacts(gene)), rtol=1e-6)
        assert not store.contacts(row, -500, 0).any()
    assert store.info["contacts"]["power_law_chromosomes"] == []


def test_intervals(root):
    store = imported(root)
    for role, arrays in masks().items():
        for chrom, mask in arrays.items():
            np.testing.assert_array_equal(store.regions(role, chrom, 0, len(mask)), mask)
    assert np.flatnonzero(store.regions("peaks", "chr1", 0, 60_000)).tolist() == list(range(20_050, 20_150))
    assert store.info["regions"] == ["exclude", "include", "peaks"]
    assert set(store.info["sources"]) >= {"contacts chr1", "contacts chrX", "exclude", "expression", "splits", "peaks"}


def test_missing_values_count_as_zero_and_padded_rows_are_cut(root):
    def padded(gene: str, values: np.ndarray) -> np.ndarray:
        if gene == "ENSG04":  # its window begins 7,000 bases before chrX
            return np.concatenate([np.zeros(7_000), values])
        values[:5_000] = np.nan
        return values

    write_contacts(root, "K562", padded)
    store = imported(root)
    np.testing.assert_allclose(store.contacts(3, 0, 13_000), np.log10(1 + base_contacts(GENES[3])), rtol=1e-6)
    assert not store.contacts(4, 10_000, 15_000).any() and store.contacts(4, 15_000, 30_000).all()


def test_uneven_bins_take_the_mean_and_say_so(root, caplog):
    def shifted(_: str, values: np.ndarray) -> np.ndarray:
        values[::2] *= 3
        return values

    write_contacts(root, "K562", shifted)
    store = imported(root)
    np.testing.assert_allclose(store.contacts(4, 10_000, 15_000), np.log10(1 + 2 * bins_of(GENES[4])[2]), rtol=1e-6)
    assert "5 genes are not constant over bins of 5000 bases" in caplog.text


def test_a_gene_without_contacts_takes_the_power_law(root, caplog):
    with h5py.File(root / INTER / "HiC" / "K562" / "hic_feat_chr1.h5", "a") as file:
        del file["chr1_20123"]
    store = imported(root)
    assert "1 genes have no contacts, or too few (ENSG01" in caplog.text
    assert store.contacts(0, 15_000, 25_000).min() > 0


@pytest.mark.parametrize("cell", ["GM12878", "H1"])
def test_other_cell_types(tmp_path, cell):
    root = write_layout(tmp_path / "data", cell)
    if cell == "H1":
        signal = {c: np.zeros(n) for c, n in LENGTHS.items()}
        signal["chr1"][20_123 - 192] = 5
        signal["chr1"][20_123 + 191] = 4
        signal["chr1"][20_123 + 192] = 100
        (root / INTER / "CAGE" / "H1").mkdir(parents=True)
        write_bigwig(root / INTER / "CAGE" / "H1" / "H1_CAGE_CNhs13964.bw", signal)
    store = imported(root, cell)
    assert store.genes["gene_id"].tolist() == [gene[0] for gene in GENES]
    expected = [1, 0, 0, 0, 0] if cell == "H1" else np.log10(1 + np.arange(5) / 10)
    np.testing.assert_allclose(store.genes["target"], expected)
    assert imported(root, cell).path == store.path  # the same again changes nothing


def test_workers_import_the_same(root):
    one = imported(root)
    two = import_official(root, "K562", root.parent / "two.zarr", workers=2)
    assert two.info["build"] == one.info["build"] and two.genes.equals(one.genes)
    for chrom, length in LENGTHS.items():
        np.testing.assert_array_equal(two.track("DNase", chrom, 0, length), one.track("DNase", chrom, 0, length))
    with pytest.raises(UserError, match="workers is 0"):
        import_official(root, "K562", root.parent / "none.zarr", workers=0)


def test_rna_and_another_fold(root):
    store = imported(root, target="rna", fold="fold_1")
    np.testing.assert_allclose(store.genes["target"], np.arange(5) / 20)
    assert set(store.genes["split"]) == {"train"}


def test_an_interrupted_import_goes_on(root, monkeypatch, caplog):
    caplog.set_level("INFO")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(build_module, "_write_header", full)
        with pytest.raises(UserError, match=r"full; .* finished parts are kept"):
            imported(root)
    assert not (root.parent / "store.zarr").exists()
    assert len(imported(root).genes) == 5 and "6 finished arrays are kept" in caplog.text


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_every_missing_file_is_named_with_its_purpose(root):
    for path in (
        "hg38/hg38.ml.fa",
        "chr_length.json",
        "hg38_includelist_dict.pkl",
        f"{INTER}/HiC/K562/hic_feat_chrX.h5",
    ):
        (root / path).unlink()
    (root / INTER / "DNase-seq" / "K562" / "ENCFF414OGC.bigWig").unlink()
    with pytest.raises(UserError) as error:
        imported(root)
    said = str(error.value)
    assert "5 files" in said and "hic_feat_chr1" not in said
    for part in (
        "hg38/hg38.ml.fa (the genome)", "chr_length.json (the chromosome lengths", "DNase-seq/K562/*.bigWig (the DNase",
        "hg38_includelist_dict.pkl (bases the mask always selects)", "hic_feat_chrX.h5 (contacts around each TSS)",
    ):  # fmt: skip
        assert part in said


def test_wrong_roots_and_choices(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="10 files of the published dataset are missing"):
        import_official(tmp_path / "empty", "K562", tmp_path / "s.zarr")
    with pytest.raises(UserError, match="11 files"):
        import_official(tmp_path / "empty", "H1", tmp_path / "s.zarr")
    with pytest.raises(UserError, match="no such folder"):
        import_official(tmp_path / "nowhere", "K562", tmp_path / "s.zarr")
    refused(root, "cell type 'K563' is unknown: one of K562, GM12878, H1", cell="K563")
    refused(root, "no column 'fold_99'; the columns are ENSID, chrom, fold_1", fold="fold_99")
    refused(root, "target 'x' is unknown", target="x")
    (root / INTER / "H3K27ac" / "K562" / "ENCFF465GBD.bigWig").rename(root / INTER / "H3K27ac" / "K562" / "a.bigWig")
    (root / INTER / "H3K27ac" / "K562" / "b.bigWig").write_text("x")
    refused(root, r"must be one file, but there are .*a\.bigWig, .*b\.bigWig")


def test_peaks_are_optional(root):
    (root / INTER / "DNase-seq/K562/peaks/peaks_bigWig/macs3.bigWig").unlink()
    store = imported(root)
    assert store.info["regions"] == ["exclude", "include"] and any("no peaks" in note for note in store.info["notes"])


@pytest.mark.parametrize(
    ("gene", "change", "said"),
    [
        ("ENSG01", lambda v: v[:-1], r"chr1_20123 has 19,999 values; one for each .* \+- 10,000 is 20,000\."),
        ("ENSG03", lambda v: v[1:], r"chr1_57001 has 12,998 values; .* or 12,999 on the chromosome"),
        ("ENSG01", lambda v: np.repeat(v, 2), "chr1_20123 has 40,000 values"),
        ("ENSG01", lambda v: v[:0], "chr1_20123 has 0 values"),
        ("ENSG01", lambda v: v[:, None], "is no row of values, its shape is"),
        ("ENSG01", lambda v: -v, "chr1_20123 holds negative or infinite values"),
    ],
)
def test_contacts_of_the_wrong_form(root, gene, change, said):
    write_contacts(root, "K562", lambda name, values: change(values) if name == gene else values)
    refused(root, said)


def test_damaged_hdf5(root):
    path = root / INTER / "HiC" / "K562" / "hic_feat_chr1.h5"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(root, "hic_feat_chr1.h5: cannot be read as HDF5")
    path.write_text("no such thing")
    refused(root, "hic_feat_chr1.h5: cannot be read as HDF5")
    for chrom in LENGTHS:
        with h5py.File(path.with_name(f"hic_feat_{chrom}.h5"), "w") as file:
            file["ENSG01"] = np.zeros(20_000)
    refused(root, "no dataset of any gene; they must be <chrom>_<tss>, not ENSG01")


def test_another_assembly(root):
    write(root / "chr_length.json", json.dumps({"hg38": LENGTHS | {"chr1": 59_999}}))
    refused(root, "chr1 has 60,000 bases, but 59,999 in chr_length.json")
    write(root / "chr_length.json", "[1]")
    refused(root, "chr_length.json: must be JSON")


def test_masks_of_another_length(root):
    (root / "hg38_blacklist_dict_v1.pkl").write_bytes(pickle.dumps({"chr1": np.zeros(59_000, bool)}))
    refused(root, "blacklist_dict_v1.pkl: chr1 has 59,000 values, one for each of its 60,000 bases")


# --- pickles ----------------------------------------------------------------------------------------------------------


class Canary:
    """Unpickled by pickle.load, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_with_code_inside_does_not_run(root, tmp_path, protocol):
    path = root / "hg38_includelist_dict.pkl"
    path.write_bytes(pickle.dumps({"chr1": Canary(tmp_path / "canary")}, protocol=protocol))
    refused(root, "hg38_includelist_dict.pkl: refused, it asks to load (posix|nt).mkdir")
    assert not (tmp_path / "canary").exists()
    pickle.loads(path.read_bytes())  # it is armed
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_mask_pickles(tmp_path, protocol):
    arrays = {"a": np.array([True, False, True]), "b": np.zeros(0, bool), "c": np.arange(9)[::2] > 3}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    found = read_masks(tmp_path / "a.pkl", "the test")
    assert list(found) == list(arrays) and all(found[n].dtype == bool for n in found)
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": np.zeros(3)}, "dtype f8, not bool"),
        ({"a": np.zeros((2, 2), bool)}, "not one-dimensional"),
        ({"a": np.array([print], dtype=object)}, "asks to load|dtype O8"),
        ({"a": [True]}, "'a' is no boolean array"),
        ({1: np.zeros(2, bool)}, "1 is no boolean array"),
        ([np.zeros(2, bool)], "holds a list"),
        ({"a": np.ndarray}, "'a' is no boolean array"),
        ({"a": Path("x")}, "asks to load pathlib"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, said):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=said):
        read_masks(tmp_path / "a.pkl", "the test")


def test_damaged_pickles(tmp_path):
    data = pickle.dumps({"a": np.ones(50, bool)})
    path = tmp_path / "a.pkl"
    rng = np.random.default_rng(0)
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(UserError):
            read_masks(path, "the test")
    for _ in range(300):
        spoiled = bytearray(data)
        spoiled[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(spoiled)
        try:
            read_masks(path, "the test")
        except UserError as error:
            assert "\n" not in str(error)
