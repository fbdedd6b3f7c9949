"""Damaged stores are mended from their sources, and stores share the sequence of an assembly."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from seq2exp.cli.data import app
from seq2exp.data_tools import build_store, find_damage, open_store, repair_store
from seq2exp.data_tools import repair as repair_module
from seq2exp.data_tools import workspace as workspace_module
from seq2exp.data_tools.bigwig import write_bigwig
from seq2exp.errors import UserError

from .conftest import LENGTHS


@pytest.fixture
def whole(inputs, tmp_path):
    (tmp_path / "ex.bed").write_text("chr1\t505\t600\n")
    contacts = {"contacts": str(tmp_path / "contacts.tsv"), "contact_reach": 40}
    return build_store(**inputs, **contacts, exclude=tmp_path / "ex.bed", features=["gc"]).path


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def chunk_file(array):
    """The largest file of an array: with its values."""
    return max((file for file in array.rglob("*") if file.is_file() and file.name != "zarr.json"), key=os.path.getsize)


def spoil(file, at=20):
    data = bytearray(file.read_bytes())
    data[at] ^= 255
    file.write_bytes(data)


ARRAYS = ("sequence/chr1", "tracks/DNase/chr2", "contacts", "genes/0", "exclude/chr1")


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("how", ["bit", "cut", "metadata"])
def test_only_the_damaged_array_is_built_again(whole, array, how, monkeypatch):
    before = contents(whole)
    file = whole / array / "zarr.json" if how == "metadata" else chunk_file(whole / array)
    inodes = {f: f.stat().st_ino for f in whole.rglob("*") if f.is_file() and not f.is_relative_to(whole / array)}
    if how == "bit":
        spoil(file)
    else:
        file.write_bytes(file.read_bytes()[:-7])
    damage = find_damage(whole)
    assert list(damage) == [array] and (array not in ARRAYS[:2] or f"data repair {whole}" in damage[array][0])
    monkeypatch.chdir("/")
    assert list(repair_store(whole)) == [array]
    assert contents(whole) == before and find_damage(whole) == {}
    assert {f: f.stat().st_ino for f in inodes} == inodes
    assert [path.name for path in whole.parent.iterdir() if path.name.startswith("store")] == ["store.zarr"]


def test_the_error_names_chunk_and_command(whole):
    spoil(chunk_file(whole / "tracks/DNase/chr1"))
    with pytest.raises(UserError, match=rf"tracks/DNase/chr1/c/0, chunk 0: .* with `seq2exp data repair {whole}`\."):
        open_store(whole).track("DNase", "chr1", 0, 10)
    spoil(chunk_file(whole / "contacts"))
    with pytest.raises(UserError, match=rf"damaged \(contacts: .*\); rebuild .* `seq2exp data repair {whole}`\."):
        open_store(whole)


def test_the_command(whole):
    spoil(chunk_file(whole / "contacts"))
    spoil(chunk_file(whole / "sequence/chr2"))
    done = CliRunner().invoke(app, ["repair", str(whole)])
    assert done.exit_code == 0 and "sequence/chr2: rebuilt" in done.output and "contacts: rebuilt" in done.output
    assert "not damaged" in CliRunner().invoke(app, ["repair", str(whole)]).output


def test_relative_paths_are_those_of_the_build(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = {"fasta": Path("genome.fa"), "track": {"DNase": Path("DNase.bw")}, "out": Path("r.zarr")}
    path = build_store(**{**inputs, **relative}, contacts="contacts.tsv", contact_reach=40).path
    before = contents(path)
    for array in ("sequence/chr1", "tracks/DNase/chr1", "contacts"):
        spoil(chunk_file(path / array))
    monkeypatch.chdir("/")
    assert len(repair_store(path)) == 3 and contents(path).keys() == before.keys() and not find_damage(path)


def test_sources_that_changed_or_went(whole, inputs):
    spoil(chunk_file(whole / "sequence/chr1"))
    damaged = contents(whole)
    values = inputs["track"]["DNase"].read_bytes()
    write_bigwig(inputs["track"]["DNase"], {c: np.ones(n) for c, n in LENGTHS.items()})
    with pytest.raises(UserError, match=r"DNase\.bw: has changed since the store was built"):
        repair_store(whole)
    inputs["track"]["DNase"].unlink()
    with pytest.raises(UserError, match=r"DNase\.bw: is not there any more, .* \(track DNase\)"):
        repair_store(whole)
    assert contents(whole) == damaged
    inputs["track"]["DNase"].write_bytes(values)
    assert list(repair_store(whole)) == ["sequence/chr1"]


def test_a_killed_repair_is_finished_by_the_next(whole, monkeypatch):
    before = contents(whole)
    for array in ("sequence/chr1", "contacts"):
        spoil(chunk_file(whole / array))
    real, calls = repair_module._replace, []

    def killed(made, damaged):
        real(made, damaged)
        calls.append(made)
        raise KeyboardInterrupt

    monkeypatch.setattr(repair_module, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        repair_store(whole)
    monkeypatch.setattr(repair_module, "build", lambda *_, **__: pytest.fail("built twice"))
    monkeypatch.setattr(repair_module, "_replace", real)
    assert len(calls) == 1 and len(repair_store(whole)) == 1
    assert contents(whole) == before


def test_nothing_to_repair_without_a_header(whole, tmp_path):
    with pytest.raises(UserError, match="no such store"):
        repair_store(tmp_path / "none.zarr")
    (whole / "zarr.json").write_text("{")
    with pytest.raises(UserError, match="not a finished seq2exp store"):
        repair_store(whole)


# --- the sequence of an assembly, shared ------------------------------------------------------------------------------


def test_stores_share_a_sequence(whole, inputs):
    other = build_store(**{**inputs, "fasta": whole, "out": whole.with_name("other.zarr")})
    for chrom, length in LENGTHS.items():
        np.testing.assert_array_equal(other.sequence(chrom, 0, length), open_store(whole).sequence(chrom, 0, length))
        assert (other.path / f"sequence/{chrom}/c/0").samefile(whole / f"sequence/{chrom}/c/0")
    assert other.info["sources"]["fasta"] == open_store(whole).info["sources"]["fasta"]
    build_store(**{**inputs, "fasta": whole, "out": other.path})  # already there


def test_a_shared_sequence_is_copied_where_links_fail(whole, inputs, monkeypatch):
    def denied(*_):
        raise OSError

    monkeypatch.setattr(workspace_module, "os", SimpleNamespace(link=denied))  # zarr needs its own
    other = build_store(**{**inputs, "fasta": whole, "out": whole.with_name("other.zarr")})
    assert contents(other.path / "sequence") == contents(whole / "sequence")


def test_a_shared_sequence_is_mended_in_both(whole, inputs):
    other = build_store(**{**inputs, "fasta": whole, "out": whole.with_name("other.zarr")}).path
    before = contents(other)
    spoil(chunk_file(whole / "sequence/chr1"))
    assert list(find_damage(other)) == list(find_damage(whole)) == ["sequence/chr1"]
    repair_store(other)
    assert contents(other) == before and not find_damage(whole)
    assert (other / "sequence/chr1/c/0").samefile(whole / "sequence/chr1/c/0")


def test_a_store_without_the_chromosome_is_no_source(whole, inputs):
    inputs["genes"].write_text("gene_id,chrom,tss,strand,target,split\nG,chr9,1,+,1,a\n")
    with pytest.raises(UserError, match=r"'chr9' .* which has chr1, chr2"):
        build_store(**{**inputs, "fasta": whole, "out": whole.with_name("other.zarr")})
