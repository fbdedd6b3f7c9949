"""Whatever is in a file, a reader parses it or says in one sentence what is wrong."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seq2exp.data_tools.fasta import read_codes, scan_fasta
from seq2exp.data_tools.genes import read_genes
from seq2exp.data_tools.gtf import read_gtf
from seq2exp.data_tools.tables import read_bed
from seq2exp.errors import UserError

LENGTHS = {"chr1": 3_000, "chr2": 1_500}
few = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def spoiled(text: str) -> st.SearchStrategy[bytes]:
    """The text with a stretch replaced by something else, plain or compressed, cut or whole; or anything at all."""
    data = text.encode()
    pieces = st.one_of(
        st.binary(max_size=8),
        st.sampled_from(
            [b"\t", b",", b"\n", b"\r\n", b'"', b">", b"-1", b"1e9", b"nan", b"\x00", b"chr1", "é".encode()]
        ),
    )
    at = st.integers(0, len(data))
    changed = st.builds(lambda a, b, piece: data[: min(a, b)] + piece + data[max(a, b) :], at, at, pieces)
    packed = st.builds(lambda raw, cut: gzip.compress(raw, mtime=0)[: -cut or None], changed, st.integers(0, 12))
    return st.one_of(st.just(data), changed, changed, packed, st.binary(max_size=60))


def parsed_or_said(path: Path, data: bytes, read: Callable[[], object]) -> object | None:
    """What was read, or None after one clear error."""
    path.write_bytes(data)
    try:
        return read()
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None


FASTA = ">chr1 some words\nACGTNacgtn\nRYACGT\n>chr2\nTTTT\n"
GENES = "gene_id,chrom,tss,strand,target,split\nG1,chr1,500,+,0.5,train\nG2,chr2,29,-,,test\n"
BED = "track name=x\nchr1\t10\t20\tname\nchr1\t15\t30\nchr2\t0\t1500\n"
PEAKS = "chr1\t100\t400\tp1\t50\t.\t7.5\t-1\t-1\t120\nchr2\t100\t400\tp2\t50\t.\t7.5\t-1\t-1\t-1\n"
GTF = 'chr1\ta\tgene\t1\t5\t.\t+\t.\tgene_id "G1"; gene_name "A";\nchr2\ta\ttranscript\t1\t5\t.\t-\t.\tgene_id "G2";\n'


@few
@given(data=spoiled(FASTA))
def test_fasta(tmp_path, data):
    path = tmp_path / "a.fa"
    index = parsed_or_said(path, data, lambda: scan_fasta(path))
    if index is not None:
        codes = dict(read_codes(path, set(index.lengths)))
        assert {name: len(values) for name, values in codes.items()} == index.lengths
        assert all(len(values) and values.max() <= 4 for values in codes.values())


@few
@given(data=spoiled(GENES))
def test_gene_table(tmp_path, data):
    path = tmp_path / "genes.csv"
    genes = parsed_or_said(path, data, lambda: read_genes(path, LENGTHS, target="target", split="split"))
    if genes is not None:
        assert genes["gene_id"].is_unique and (genes["gene_id"] != "").all()
        assert all(0 <= tss < LENGTHS[chrom] for chrom, tss in zip(genes["chrom"], genes["tss"], strict=True))
        assert not np.isinf(genes["target"]).any() and genes["strand"].isin(["+", "-", "."]).all()


@few
@given(data=spoiled(BED), name=st.just("a.bed") | st.just("a.narrowPeak"))
def test_bed(tmp_path, data, name):
    path = tmp_path / name
    check_intervals(parsed_or_said(path, data, lambda: read_bed(path, LENGTHS)))


@few
@given(data=spoiled(PEAKS))
def test_narrow_peaks(tmp_path, data):
    path = tmp_path / "a.narrowPeak"
    check_intervals(parsed_or_said(path, data, lambda: read_bed(path, LENGTHS)))


def check_intervals(found: dict[str, np.ndarray] | None) -> None:
    for chrom, intervals in (found or {}).items():
        assert (intervals[:, 0] < intervals[:, 1]).all() and (intervals[1:, 0] > intervals[:-1, 1]).all()
        assert intervals.min() >= 0 and intervals.max() <= LENGTHS[chrom]


@few
@given(data=spoiled(GTF))
def test_gtf(tmp_path, data):
    path = tmp_path / "a.gtf"
    genes = parsed_or_said(path, data, lambda: read_gtf(path))
    if genes is not None:
        assert genes.index.is_unique and (genes["tss"] >= 0).all() and genes["strand"].isin(["+", "-"]).all()


def test_the_plain_texts_are_read(tmp_path):
    """The starting points of the fuzzing are good files."""
    for text, read in (
        (FASTA, scan_fasta),
        (GENES, lambda path: read_genes(path, LENGTHS, target="target", split="split")),
        (BED, lambda path: read_bed(path, LENGTHS)),
        (GTF, read_gtf),
    ):
        assert parsed_or_said(tmp_path / "file", text.encode(), lambda read=read: read(tmp_path / "file")) is not None
    with pytest.raises(AssertionError):
        parsed_or_said(tmp_path / "file", b"", lambda: (_ for _ in ()).throw(UserError("no name")))
