"""The builder: what it writes, what it refuses, and what a kill or a full disk leaves behind."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from seq2exp.data_tools import BuildConfig, build_store, open_store
from seq2exp.data_tools import workspace as workspace_module
from seq2exp.data_tools.bigwig import BigWig, storage_dtype, write_bigwig
from seq2exp.data_tools.contacts import PowerLaw
from seq2exp.data_tools.fasta import read_codes, write_fasta
from seq2exp.data_tools.tables import read_table
from seq2exp.errors import UserError

from .conftest import LENGTHS

Inputs = dict[str, Any]


def refused(inputs: Inputs, said: str, **changes: Any) -> None:
    """The build ends in one sentence that matches `said`, and leaves nothing."""
    with pytest.raises(UserError, match=said) as error:
        build_store(**{**inputs, **changes})
    assert "\n" not in str(error.value)
    assert not inputs["out"].exists()
    assert not inputs["out"].with_name("store.zarr.partial").exists()


def genes(inputs: Inputs, text: str) -> Inputs:
    inputs["genes"].write_text(text)
    return inputs


# --- what it writes ---------------------------------------------------------------------------------------------------


def test_store_equals_its_sources(inputs):
    store = build_store(**inputs)
    sequence = dict(read_codes(inputs["fasta"], set(LENGTHS)))
    with BigWig(inputs["track"]["DNase"]) as file:
        for chrom, length in LENGTHS.items():
            np.testing.assert_array_equal(store.sequence(chrom, 0, length), sequence[chrom])
            np.testing.assert_allclose(store.track("DNase", chrom, 0, length), file.values(chrom), rtol=1e-3)
    assert store.chromosomes == LENGTHS and store.tracks == ["DNase"] and not store.has_contacts
    assert store.genes["gene_id"].tolist() == ["G1", "G2", "G3"]
    assert store.genes["tss"].tolist() == [500, 2900, 20] and store.genes["tss"].dtype == np.int64
    assert store.genes["split"].tolist() == ["train", "train", "test"]
    np.testing.assert_array_equal(store.genes["target"], [0.5, np.nan, 1.5])


def test_any_zarr_reader_opens_it(inputs):
    build_store(**inputs)
    group = zarr.open_group(inputs["out"], mode="r")
    store = open_store(inputs["out"])
    np.testing.assert_array_equal(group["sequence/chr1"][:], store.sequence("chr1", 0, 3_000))
    np.testing.assert_array_equal(group["tracks/DNase/chr2"][:], store.track("DNase", "chr2", 0, 1_500))
    assert group["genes/0"].attrs["name"] == "gene_id" and list(group["genes/0"][:]) == ["G1", "G2", "G3"]


def test_provenance_and_notes(inputs):
    info = build_store(**inputs).info
    assert info["sources"]["genes"]["bytes"] == inputs["genes"].stat().st_size
    assert len(info["sources"]["track DNase"]["sha256"]) == 64 and "zarr" in info["versions"]
    assert any("1 of 3 genes have no target" in note for note in info["notes"])


def test_features_regions_and_contacts(inputs, tmp_path):
    (tmp_path / "exclude.bed").write_text("track name=x\nchr1\t10\t20\nchr1\t15\t30\nchr9\t0\t5\nchr2\t0\t1\n")
    store = build_store(
        **inputs,
        features=["gc"],
        exclude=tmp_path / "exclude.bed",
        contacts=str(tmp_path / "contacts.tsv"),
        contact_reach=3,
    )
    assert store.feature_names == ["gc"] and store.genes["gc"].tolist() == [0.1, 0.2, 0.3]
    assert np.flatnonzero(store.regions("exclude", "chr1", 5, 100)).tolist() == list(range(5, 25))
    assert store.region_size("exclude") == (2, 21) and not store.regions("include", "chr1", 0, 50).any()
    np.testing.assert_allclose(store.contacts(0, 0, 1_500), np.log10(1 + np.repeat([4.0, 9.0, 2.0], 500)), rtol=1e-6)
    factor = store.info["contacts"]["power_law"]["factor"]
    beyond = np.log10(1 + factor * np.exp(-4.80 + 11.63 * 0.87) * 5_001**-0.87)
    np.testing.assert_allclose(store.contacts(0, 1_500, 2_500), beyond, rtol=1e-5)
    np.testing.assert_allclose(store.contacts(2, 0, 1_500), beyond, rtol=1e-5)
    assert store.info["contacts"]["power_law_chromosomes"] == ["chr2"]


def test_the_abc_recipe_and_genes_without_contacts(inputs, tmp_path, caplog):
    fields = {**inputs, "contacts": str(tmp_path / "contacts.tsv"), "contact_reach": 3}
    genes(inputs, inputs["genes"].read_text().replace("G2,chr1,2900", "G2,chr1,1700"))
    plain = build_store(**fields)
    assert "no contacts of chr2" in caplog.text and "1 genes have no contacts, or too few (G2, ...)" in caplog.text
    store = build_store(**{**fields, "out": tmp_path / "abc.zarr"}, contact_recipe="abc")
    added = plain.info["contacts"]["power_law"]["factor"] * PowerLaw().contact(np.array(1e6))
    for row in range(3):
        np.testing.assert_allclose(
            10 ** store.contacts(row, 0, 1_500), 10 ** plain.contacts(row, 0, 1_500) + added, rtol=1e-5
        )
    assert store.info["contacts"]["recipe"] == "abc" and plain.info["contacts"]["recipe"] == "measured"


def test_contacts_of_another_resolution_than_asked(inputs, tmp_path):
    contacts = {"contacts": str(tmp_path / "contacts.tsv"), "contact_reach": 3}
    refused(inputs, r"contacts\.tsv: its bins have 500 bases, not 1,000 as asked", contact_resolution=1_000, **contacts)
    assert build_store(**inputs, contact_resolution=500, **contacts).contact_resolution == 500


def test_power_law_alone(inputs):
    store = build_store(**inputs, contacts="powerlaw", powerlaw_gamma=1.0, powerlaw_scale=9.0)
    np.testing.assert_allclose(store.contacts(0, 0, 10), np.log10(1 + np.exp(9.0) / 5_001), rtol=1e-6)


def test_float16_only_where_it_is_exact_enough():
    assert storage_dtype(np.array([0, 1.001, 60_000], np.float32)) == np.float16
    assert storage_dtype(np.array([0, 70_000], np.float32)) == np.float32
    assert storage_dtype(np.array([1e-7], np.float32)) == np.float32


def test_track_dtype_is_kept_apart_by_chromosome(inputs):
    values = {c: np.ones(n) for c, n in LENGTHS.items()}
    values["chr2"][7] = 1e6
    write_bigwig(inputs["track"]["DNase"], values)
    store = build_store(**inputs)
    assert (store.track_dtype("DNase", "chr1"), store.track_dtype("DNase", "chr2")) == ("float16", "float32")
    assert store.track("DNase", "chr2", 6, 9).tolist() == [1, 1e6, 1]


def test_soft_masked_and_iupac_letters(inputs, caplog):
    inputs["fasta"].write_text(">chr1\n" + "acgtRYn" + "A" * 2_993 + "\n>chr2\n" + "C" * 1_500 + "\n")
    Path(f"{inputs['fasta']}.fai").unlink()
    store = build_store(**inputs)
    assert store.sequence("chr1", 0, 8).tolist() == [0, 1, 2, 3, 4, 4, 4, 0]
    assert "chr1: 2 IUPAC ambiguity letters became N" in caplog.text


def test_table_dialects(inputs):
    header = "Symbol\tENSID\tChromosome\tTSS\tStrand\tK562\tfold\n"
    rows = "A\tE1\tchr1\t5.0\t+\t1.25\ttrain\nB\tE2\tchr2\t6\t-\t\ttest\n"
    store = build_store(**{**genes(inputs, header + rows), "target": "K562", "split": "fold"})
    assert store.genes["gene_name"].tolist() == ["A", "B"] and store.genes["tss"].tolist() == [5, 6]
    named = {**inputs, "out": inputs["out"].with_name("b.zarr"), "target": "K562", "split": None}
    store = build_store(**named, columns={"gene_id": "Symbol", "strand": "Strand"})
    assert store.genes["gene_id"].tolist() == ["A", "B"] and store.genes["split"].tolist() == ["", ""]


def test_yaml_holds_the_same_fields(inputs, tmp_path):
    path = tmp_path / "build.yaml"
    path.write_text(
        f"fasta: {inputs['fasta']}\ntrack:\n  DNase: {inputs['track']['DNase']}\ngenes: {inputs['genes']}\n"
        f"target: other\nsplit: split\nout: {inputs['out']}\nfeatures: [gc]\n"
    )
    assert BuildConfig.from_yaml(path, target="target") == BuildConfig.parse(**inputs, features=["gc"])


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["fasta", "genes", "track", "contacts", "exclude"])
@pytest.mark.parametrize("kind", ["missing", "empty", "folder"])
def test_missing_or_empty_file(inputs, tmp_path, field, kind):
    path = tmp_path / "nothing"
    if kind == "empty":
        path.touch()
    if kind == "folder":
        path.mkdir()
    said = {"missing": "nothing: no such file", "empty": "is empty", "folder": "a folder"}[kind]
    refused(inputs, said, **{field: {"DNase": path} if field == "track" else str(path)})


def test_bigwig_of_another_assembly(inputs):
    write_bigwig(inputs["track"]["DNase"], {"chr1": np.ones(3_001), "chr2": np.ones(1_500)})
    refused(inputs, r"DNase\.bw: chr1 has 3,001 bases, but 3,000 in .*genome\.fa")


def test_bigwig_with_other_names(inputs):
    write_bigwig(inputs["track"]["DNase"], {"1": np.ones(3_000), "2": np.ones(1_500)})
    refused(inputs, "no chromosome 'chr1', which calls it '1'")


def test_bigwig_without_one_chromosome_is_zero_there(inputs, caplog):
    write_bigwig(inputs["track"]["DNase"], {"chr1": np.ones(3_000)})
    store = build_store(**inputs)
    assert not store.track("DNase", "chr2", 0, 1_500).any() and "has no chr2; it is 0 there" in caplog.text


def test_negative_signal(inputs):
    values = {c: np.ones(n) for c, n in LENGTHS.items()}
    values["chr2"][1_234] = -0.5
    write_bigwig(inputs["track"]["DNase"], values)
    refused(inputs, "chr2:1,234 is -0.5")


def test_infinite_signal(inputs, monkeypatch):
    """pyBigWig does not write infinities, other programs do."""

    class Infinite:
        def values(self, chrom: str, start: int, end: int, numpy: bool) -> np.ndarray:
            out = np.full(end - start, np.nan, dtype=np.float32)
            out[20] = np.inf
            return out

        def chroms(self) -> dict[str, int]:
            return LENGTHS

        def close(self) -> None:
            pass

    monkeypatch.setattr("pyBigWig.open", lambda _: Infinite())
    refused(inputs, "chr1:20 is inf")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_bigwig(inputs, share):
    path = inputs["track"]["DNase"]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(inputs, r"DNase\.bw: .*(truncated|not a bigWig)")


def test_text_in_place_of_a_bigwig(inputs):
    refused(inputs, "not a bigWig file", track={"DNase": inputs["genes"]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gene_id,chrom,tss,strand,target,split\n", "no gene"),
        ("gene_id,chrom,strand,target,split\nG,chr1,+,1,a\n", "no tss column .*columns are gene_id, chrom, strand, t"),
        (
            "gene_id,chrom,tss,strand,y,split\nG,chr1,1,+,1,a\n",
            "no target column 'target'; the columns are gene_id, ch",
        ),
        ("gene_id,chrom,tss,strand,target\nG,chr1,1,+,1\n", "no split column 'split'"),
        ("gene_id,chrom,tss,strand,target,split\nG,chr7,1,+,1,a\n", r"'chr7' \(1 genes\) .* which has chr1, chr2"),
        ("gene_id,chrom,tss,strand,target,split\nG,1,1,+,1,a\n", "'1' .* which calls it 'chr1'"),
        (
            "gene_id,chrom,tss,strand,target,split\nG,chr1,3000,+,1,a\n",
            "TSS of G, 3000, is outside chr1, .* 3,000 bases",
        ),
        ("gene_id,chrom,tss,strand,target,split\nG,chr1,-1,+,1,a\n", "is outside chr1"),
        ("gene_id,chrom,tss,strand,target,split\nG,chr1,1.5,+,1,a\n", "not a whole position"),
        ("gene_id,chrom,tss,strand,target,split\nG,chr1,,+,1,a\n", "line 2: tss is empty"),
        ("gene_id,chrom,tss,strand,target,split\nG,chr1,x,+,1,a\n", "line 2: tss is 'x'"),
        ("gene_id,chrom,tss,strand,target,split\nG,chr1,1,?,1,a\n", "line 2: strand is '\\?'"),
        ("gene_id,chrom,tss,strand,target,split\nG,chr1,1,+,high,a\n", "line 2: target is 'high', not a finite number"),
        ("gene_id,chrom,tss,strand,target,split\nG,chr1,1,+,inf,a\n", "line 2: target is 'inf'"),
        ("gene_id,chrom,tss,strand,target,split\nG,chr1,1,+,,a\nH,chr1,1,+,NA,a\n", "target is empty for all 2 genes"),
        ("gene_id,chrom,tss,strand,target,split\nG,chr1,1,+,1,a\nG,chr1,2,+,1,a\n", "more than once, the first is G"),
        ("gene_id,chrom,tss,strand,target,split\n,chr1,1,+,1,a\n", "line 2 has no gene id"),
        ("gene_id,chrom,tss,tss,target,split\nG,chr1,1,1,1,a\n", "column 'tss' occurs more than once"),
        ("gene_id,chrom,tss,strand,target,split\nG,chr1,1,+,1,a,b\n", "not a readable CSV or TSV"),
        ("\x00\x01\x02", "no gene|no gene_id|not a readable"),
    ],
)
def test_wrong_gene_table(inputs, text, said):
    refused(genes(inputs, text), said)


def test_lines_are_those_of_the_file(inputs, tmp_path):
    """Blank lines and line ends within quotes count too."""
    head, good = "\n\ngene_id,chrom,tss,strand,target,split\n", 'G,chr1,1,+,1,a\n\n"H\n\nI",chr1,2,+,1,a\n   \n'
    table = read_table(genes(inputs, head + good + "J,chr1,3,+,1,a\n,,,,,\n")["genes"])
    assert table.index.tolist() == [4, 6, 10] and table["gene_id"].tolist() == ["G", "H\n\nI", "J"]
    refused(genes(inputs, head + good + "J,chr1,x,+,1,a\n"), "line 10: tss is 'x'")
    refused(genes(inputs, head + good + "J,chr1,3,?,1,a\n"), "line 10: strand is")
    refused(genes(inputs, head + good + "J,chr1,3,+,1,a\n,,,,,b\n"), "line 11 has no gene id")
    (tmp_path / "c.tsv").write_text("chrom\tbin1\tbin2\tvalue\n\nchr1\t0\t500\t1\n\nchr1\t500\t3500\t2\n")
    refused(genes(inputs, head + good), "line 5: the bin at chr1:3,500 is outside", contacts=str(tmp_path / "c.tsv"))


def test_gene_table_that_is_no_text(inputs):
    inputs["genes"].write_bytes(bytes(range(128, 256)) * 4)
    refused(inputs, "not a readable CSV or TSV")


def test_wrong_feature_columns(inputs):
    refused(inputs, "no feature column 'gcc'; the columns are gene_id", features=["gcc"])
    refused(inputs, "may not be called target", features=["target"])
    text = inputs["genes"].read_text().replace(",0.2", ",")
    refused(genes(inputs, text), r"line 3: gc is empty \(1 such", features=["gc"])


def test_wrong_letters_and_truncated_fasta(inputs):
    text = inputs["fasta"].read_text()
    inputs["fasta"].write_text(text[:-300])
    refused(inputs, "chr2 has .* bases where genome.fa.fai says 1,500")
    inputs["fasta"].write_text(text.replace("A", "J", 1))
    refused(inputs, "record chr1 contains 'J'")


@pytest.mark.parametrize(
    ("line", "said"),
    [("chr1\t5\n", "line 1 is not BED"), ("chr1\t5\t4\n", "not an interval"), ("chr1\t0\t3001\n", "3,000 bases")],
)
def test_wrong_bed(inputs, tmp_path, line, said):
    (tmp_path / "a.bed").write_text(line)
    refused(inputs, said, include=tmp_path / "a.bed")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tracks": {}}, "tracks: Extra inputs"),
        ({"contact_reach": 0}, "contact_reach: Input should be greater than 0"),
        ({"columns": {"start": "x"}}, "'start' is none of gene_id"),
        ({"track": {"a/b": "x"}}, "'a/b' must not"),
        ({"track": {"contacts": "x"}}, "may not be called contacts"),
    ],
)
def test_wrong_fields(inputs, fields, said):
    refused(inputs, said, **fields)


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "1: 2\n", "nothing: here\n"])
def test_wrong_yaml(tmp_path, text):
    path = tmp_path / "b.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"b\.yaml|Field required|nothing"):
        BuildConfig.from_yaml(path)


# --- several processes ------------------------------------------------------------------------------------------------


def test_workers_write_the_same_store(inputs):
    one = build_store(**inputs)
    two = build_store(**{**inputs, "out": inputs["out"].with_name("two.zarr")}, workers=2)
    files = {file.relative_to(one.path): file for file in one.path.rglob("*") if "c" in file.parts and file.is_file()}
    assert len(files) > 4
    for name, file in files.items():
        assert (two.path / name).read_bytes() == file.read_bytes(), name
    assert two.info["build"] == one.info["build"]  # the number of workers is no property of a store


def test_workers_and_relative_paths(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = {"fasta": Path("genome.fa"), "track": {"DNase": Path("DNase.bw")}, "out": Path("r.zarr")}
    assert build_store(**{**inputs, **relative}, workers=2).tracks == ["DNase"]


def test_a_mistake_in_a_worker_is_the_same_sentence(inputs):
    values = {c: np.ones(n) for c, n in LENGTHS.items()}
    values["chr2"][1_234] = -0.5
    write_bigwig(inputs["track"]["DNase"], values)
    refused(inputs, "chr2:1,234 is -0.5", workers=2)


def test_a_killed_worker_keeps_the_finished_parts(tmp_path):
    work = workspace_module.Workspace(tmp_path / "a.partial", {})
    with pytest.raises(OSError, match="worker process was killed"):
        work.write([workspace_module.Job("sequence/chr1", os.abort)], 2, lambda _: None)
    assert work.path.exists()


# --- full disks, existing stores --------------------------------------------------------------------------------------


def test_the_same_command_again_changes_nothing(inputs):
    build_store(**inputs)
    before = {file: file.stat().st_mtime_ns for file in inputs["out"].rglob("*")}
    build_store(**inputs)
    assert {file: file.stat().st_mtime_ns for file in inputs["out"].rglob("*")} == before


def test_an_existing_store_is_not_overwritten(inputs):
    build_store(**inputs)
    with pytest.raises(UserError, match="built from other inputs or options"):
        build_store(**inputs, features=["gc"])
    genes(inputs, inputs["genes"].read_text().replace("0.5", "0.6"))
    with pytest.raises(UserError, match="built from other inputs or options"):
        build_store(**inputs)
    other = inputs["out"].with_name("notes")
    other.mkdir()
    with pytest.raises(UserError, match="no finished store"):
        build_store(**{**inputs, "out": other})


def test_full_disk_keeps_finished_parts_and_goes_on(inputs, monkeypatch):
    written: list[str] = []
    real = workspace_module.write_array

    def full(group: zarr.Group, name: str, values: np.ndarray) -> None:
        if name.startswith("tracks"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(group, name, values)

    monkeypatch.setattr(workspace_module, "write_array", full)
    with pytest.raises(UserError, match=r"No space left on device; .* run the same command again"):
        build_store(**inputs)
    with pytest.raises(UserError, match="run the command that began it again"):
        open_store(inputs["out"])
    with pytest.raises(UserError, match="an unfinished store"):
        open_store(inputs["out"].with_name("store.zarr.partial"))

    def note(group: zarr.Group, name: str, values: np.ndarray) -> None:
        written.append(name)
        real(group, name, values)

    monkeypatch.setattr(workspace_module, "write_array", note)
    store = build_store(**inputs)
    assert written == ["tracks/DNase/chr1", "tracks/DNase/chr2"]
    assert not inputs["out"].with_name("store.zarr.partial").exists() and len(store.genes) == 3


def test_changed_inputs_begin_again(inputs, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(workspace_module, "write_array", full)
    with pytest.raises(UserError, match="full"):
        build_store(**inputs)
    write_fasta(inputs["fasta"], {c: np.zeros(n, np.uint8) for c, n in LENGTHS.items()})
    monkeypatch.undo()
    store = build_store(**inputs)
    assert "begun again" in caplog.text and not store.sequence("chr1", 0, 3_000).any()


def test_out_below_a_file_and_without_permission(inputs, monkeypatch):
    with pytest.raises(UserError, match="Not a directory"):
        build_store(**{**inputs, "out": inputs["genes"] / "store.zarr"})

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match="Permission denied"):
        build_store(**inputs)
