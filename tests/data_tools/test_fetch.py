"""Fetching public files, from a local server that cuts connections, stalls, lies and refuses."""

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from file_server import Server, mirrored, serving
from typer.testing import CliRunner

from seq2exp.cli.data import app
from seq2exp.data_tools import download as download_module
from seq2exp.data_tools import fetch as fetch_module
from seq2exp.data_tools.download import Remote, download
from seq2exp.data_tools.fetch import PRESETS, fetch
from seq2exp.data_tools.public_genes import tag_sums
from seq2exp.errors import UserError

BODY = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
GENES = "chrom,TSS,gene_id,Gene name,UTR5GC\nX,1000,E1,A,0.5\n20,5000,E2,B,0.5\n20,9000,E3,C,0.5\n"
SPLITS = "ENSID,chrom,fold_1,fold_11,Gene name\nE1,X,train,test,A\nE2,20,train,train,B\nE9,20,train,train,Z\n"
TAGS = b"chrX\t807\t808\ta\t100\t+\nchrX\t808\t809\ta\t2\t+\nchrX\t1191\t1192\ta\t3\t-\nchrX\t1192\t1193\ta\t100\t-\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download_module, "_PAUSE", 0.0)
    with serving() as server:
        server.files = {"/file": BODY}
        yield server


def remote(server: Server, **fields: object) -> Remote:
    return Remote(**({"url": f"{server.url}/file", "size": len(BODY), "md5": MD5} | fields))  # type: ignore[arg-type]


# --- one file ---------------------------------------------------------------------------------------------------------


def test_download(server, tmp_path):
    seen: list[tuple[int, int | None]] = []
    sha256 = download(remote(server), tmp_path / "a", report=lambda *there: seen.append(there))
    assert (tmp_path / "a").read_bytes() == BODY and sha256 == hashlib.sha256(BODY).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and seen[0] == (0, len(BODY)) and seen[-1] == (len(BODY),) * 2


@pytest.mark.parametrize("fault", ["cut", "stall", "503", "429", "no length"])
def test_broken_connections_are_taken_up_where_they_broke(server, tmp_path, fault):
    server.faults = [fault, fault]
    download(remote(server), tmp_path / "a", timeout=0.3)
    assert (tmp_path / "a").read_bytes() == BODY
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for _, asked in server.asked if asked]
    assert starts == ([] if fault.isdigit() else sorted(starts)) and len(starts) == (0 if fault.isdigit() else 2)


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges, server.faults = False, ["cut"]
    download(remote(server), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY and len(server.asked) == 2


def test_it_gives_up_but_keeps_what_is_there(server, tmp_path):
    server.ranges, server.faults = False, ["cut"] * 99
    with pytest.raises(UserError, match="connection was cut, 150,000 bytes are missing; what is there is kept"):
        download(remote(server), tmp_path / "a")
    assert len(server.asked) == download_module.ATTEMPTS and not (tmp_path / "a").exists()
    assert (tmp_path / "a.partial").read_bytes() == BODY[:150_000]
    server.faults, server.ranges, server.asked = [], True, []
    download(remote(server), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY and server.asked == [("/file", "bytes=150000-")]


def test_a_stalled_server_gives_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "ATTEMPTS", 1)
    server.faults = ["stall"]
    with pytest.raises(UserError, match="timed out; what is there is kept"):
        download(remote(server), tmp_path / "a", timeout=0.2)


@pytest.mark.parametrize(("code", "said"), [(404, "the server says 404 Not Found"), (403, "403 Forbidden; it wants a")])
def test_refusals_are_not_repeated(server, tmp_path, code, said):
    server.faults = [str(code)] * 9
    with pytest.raises(UserError, match=said):
        download(remote(server), tmp_path / "a")
    assert len(server.asked) == 1 and not list(tmp_path.iterdir())


def test_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "_PAUSE", 0.0)
    with pytest.raises(UserError, match="refused; what is there is kept"):
        download(Remote("http://127.0.0.1:9/file"), tmp_path / "a")


@pytest.mark.parametrize("fields", [{"md5": "0" * 32}, {"md5": None, "sha256": "0" * 64}, {"size": 7, "md5": None}])
def test_wrong_checksum_or_size_leaves_nothing(server, tmp_path, fields):
    with pytest.raises(UserError, match=r"a\.partial has .* instead of .*; nothing was kept"):
        download(remote(server, **fields), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_partial_file_of_another_version_is_begun_again(server, tmp_path):
    for there in (b"x" * 1_000, b"x" * len(BODY), b"x" * (len(BODY) + 5)):
        (tmp_path / "a.partial").write_bytes(there)
        download(remote(server), tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == BODY
        (tmp_path / "a.partial").write_bytes(there)
        download(remote(server, size=None), tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == BODY


def test_a_complete_partial_file_is_only_checked(server, tmp_path):
    (tmp_path / "a.partial").write_bytes(BODY)
    download(remote(server, size=None), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY and len(server.asked) == 1
    (tmp_path / "b.partial").write_bytes(BODY)
    download(remote(server), tmp_path / "b")
    assert len(server.asked) == 1


def test_without_a_checksum_nothing_is_continued(server, tmp_path):
    (tmp_path / "a.partial").write_bytes(b"x" * 1_000)
    download(remote(server, md5=None, size=None), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY and server.asked == [("/file", None)]


def test_full_disk(server, tmp_path):
    (tmp_path / "a.partial").mkdir()
    with pytest.raises(UserError, match=r"a\.partial: Is a directory; what is there is kept"):
        download(remote(server, size=None), tmp_path / "a")


# --- a preset ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Every file of the k562 preset below <server>/<host>/, small."""
    bodies = {file.role: file.name.encode() * 999 for file in PRESETS["k562"]}
    bodies |= {"splits": SPLITS.encode(), "mRNA features": GENES.encode(), "CAGE": gzip.compress(TAGS)}
    server.files, files = mirrored("k562", bodies)
    monkeypatch.setitem(PRESETS, "k562", files)
    return server


def test_fetch_ends_with_a_command_that_parses(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv(fetch_module.MIRROR, f"{mirror.url}/")
    runner = CliRunner(env={"COLUMNS": "200"})
    result = runner.invoke(app, ["fetch", "--preset", "k562", "--out", str(tmp_path / "k")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    words = result.stdout.splitlines()[-1].split()
    assert words[:3] == ["seq2exp", "data", "build"]
    for word in words[3:]:
        path = Path(word.rpartition("=")[2])
        assert not path.is_absolute() or path.suffix == ".zarr" or path.is_file(), word
    said: list[object] = []
    monkeypatch.setattr("seq2exp.cli.data.build", lambda config, progress: said.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.invoke(app, words[2:], catch_exceptions=False)
    assert said[0].track == {"H3K27ac": tmp_path / "k/ENCFF465GBD.bigWig", "DNase": tmp_path / "k/ENCFF414OGC.bigWig"}
    assert said[0].log_target and said[0].mrna == tmp_path / "k/mRNA_halflife_features.csv"
    sums = dict(reversed(line.split()) for line in (tmp_path / "k" / "SHA256SUMS").read_text().splitlines())
    for file in PRESETS["k562"]:
        assert sums[file.name] == hashlib.sha256((tmp_path / "k" / file.name).read_bytes()).hexdigest()


def test_gene_table(mirror, tmp_path):
    fetch("k562", tmp_path / "k", mirror=mirror.url)
    genes = pd.read_csv(tmp_path / "k" / "genes_k562.csv")
    assert genes.to_dict("list") == {
        "gene_id": ["E1", "E2"], "gene_name": ["A", "B"], "chrom": ["chrX", "chr20"], "tss": [1_000, 5_000],
        "CAGE": [5.0, 0.0], "split": ["test", "train"],
    }  # fmt: skip


def test_a_second_fetch_asks_for_nothing(mirror, tmp_path):
    fetch("k562", tmp_path, mirror=mirror.url)
    mirror.asked.clear()
    fetch("k562", tmp_path, mirror=mirror.url)
    assert not mirror.asked
    (tmp_path / "ENCFF414OGC.bigWig").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"ENCFF414OGC\.bigWig: is there, but .* instead of .*; remove it"):
        fetch("k562", tmp_path, mirror=mirror.url)


def test_an_interrupted_fetch_goes_on(mirror, tmp_path):
    page = next(path for path in mirror.files if "4dn" in path)
    kept = mirror.files.pop(page)
    with pytest.raises(UserError, match=r"4DNFITUOMFUQ/\?format=json: the server says 404"):
        fetch("k562", tmp_path, mirror=mirror.url)
    assert not (tmp_path / "genes_k562.csv").exists() and (tmp_path / "hg38.fa.gz").exists()
    mirror.files[page] = kept
    mirror.asked.clear()
    fetch("k562", tmp_path, mirror=mirror.url)
    assert len(mirror.asked) == 5 and (tmp_path / "genes_k562.csv").exists()


def test_a_file_put_there_by_hand_is_checked(mirror, tmp_path):
    (tmp_path / "ENCFF465GBD.bigWig").write_bytes(b"ENCFF465GBD.bigWig" * 999)
    (tmp_path / "hg38.fa.gz").write_bytes(b"another genome")
    with pytest.raises(UserError, match=r"hg38\.fa\.gz: is there, but .* has the md5 .* instead of"):
        fetch("k562", tmp_path, mirror=mirror.url)
    (tmp_path / "hg38.fa.gz").unlink()
    fetch("k562", tmp_path, mirror=mirror.url)
    assert not any("@@download/ENCFF465GBD" in path for path, _ in mirror.asked)


def test_without_a_published_checksum_the_first_download_counts(mirror, tmp_path):
    fetch("k562", tmp_path, mirror=mirror.url)
    (tmp_path / "CNhs11250.ctss.bed.gz").unlink()
    path = next(path for path in mirror.files if "CNhs11250" in path)
    mirror.files[path] = b"another"
    with pytest.raises(UserError, match=r"has the sha256 .* instead of"):
        fetch("k562", tmp_path, mirror=mirror.url)
    assert not (tmp_path / "CNhs11250.ctss.bed.gz").exists()


def test_answers_that_describe_no_file(mirror, tmp_path):
    for page in (b"<html>", b"[]", b"{}"):
        mirror.files["/www.encodeproject.org/files/ENCFF465GBD/?format=json"] = page
        with pytest.raises(UserError, match="does not describe a file"):
            fetch("k562", tmp_path, mirror=mirror.url)


def test_wrong_preset_and_sums(tmp_path):
    with pytest.raises(UserError, match="preset 'hepg2' is unknown: one of k562, gm12878"):
        fetch("hepg2", tmp_path)
    (tmp_path / "SHA256SUMS").write_text("only-one-word\n")
    with pytest.raises(UserError, match="is no list of checksums"):
        fetch("k562", tmp_path)


def test_presets_name_the_accessions():
    names = {preset: [file.name for file in files] for preset, files in PRESETS.items()}
    assert names["gm12878"][1:5] == [
        "ENCFF798KYP.bigWig", "ENCFF960FMM.bigWig", "4DNFI1UEG1HD.hic", "CNhs12333.ctss.bed.gz"
    ]  # fmt: skip
    for files in PRESETS.values():
        cage = next(file for file in files if file.role == "CAGE")
        assert unquote(unquote(cage.url)).endswith(".hg38.nobarcode.ctss.bed.gz") and cage.name[:9] in cage.url


def test_tags_that_are_no_bed(tmp_path):
    genes = pd.DataFrame({"chrom": ["chrX"], "tss": [5]})
    for text in ("a b c\n", "chrX\t1\n", "chrX\tone\t2\tn\t3\t+\n"):
        (tmp_path / "a.bed").write_text(text)
        with pytest.raises(UserError, match="not a readable CTSS file"):
            tag_sums(tmp_path / "a.bed", genes)
