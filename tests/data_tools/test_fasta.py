import gzip

import numpy as np
import pytest

from seq2exp.data_tools import fasta
from seq2exp.data_tools.fasta import read_codes, scan_fasta, write_fasta
from seq2exp.errors import UserError


def test_codes_of_every_letter(tmp_path):
    path = tmp_path / "a.fa"
    path.write_bytes(b">one some words\r\nACGT\r\nacgt\r\nNnRy\r\n>two\nTT\n\nA")
    index = scan_fasta(path)
    assert index.lengths == {"one": 12, "two": 3} and index.ambiguous == {"one": 2, "two": 0}
    codes = dict(read_codes(path, {"one", "two"}))
    assert codes["one"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 4, 4, 4] and codes["one"].dtype == np.uint8
    assert codes["two"].tolist() == [3, 3, 0]
    assert list(dict(read_codes(path, {"two"}))) == ["two"]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
def test_block_borders_do_not_matter(tmp_path, monkeypatch, block, packed):
    records = {"chr1": np.arange(250, dtype=np.uint8) % 5, "chr2": np.arange(61, dtype=np.uint8) % 3}
    path = tmp_path / "a.fa"
    write_fasta(path, records)
    if packed:
        path = tmp_path / "a.fa.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.fa").read_bytes()))
    monkeypatch.setattr(fasta, "_BLOCK", block)
    assert scan_fasta(path).lengths == {"chr1": 250, "chr2": 61}
    for name, codes in read_codes(path, set(records)):
        np.testing.assert_array_equal(codes, records[name])


def test_written_index_agrees(tmp_path):
    write_fasta(tmp_path / "a.fa", {"x": np.zeros(130, np.uint8), "y": np.ones(60, np.uint8)})
    text = (tmp_path / "a.fa").read_bytes()
    for line in (tmp_path / "a.fa.fai").read_text().splitlines():
        name, length, offset, width, stride = line.split("\t")
        first = text[int(offset) : int(offset) + int(width)]
        assert first == (b"A" if name == "x" else b"C") * int(width) and int(stride) == int(width) + 1
        assert int(length) == {"x": 130, "y": 60}[name]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"ACGT\n", "does not begin with"),
        (b"\n\n", "no FASTA record"),
        (b">a\nAC\n>b\n>c\nAC\n", "record b has a header but no sequence"),
        (b">a\nAC\n>b", "record b has a header but no sequence"),
        (b">a\nAC\n>a\nAC\n", "record a occurs twice"),
        (b">a\nACGE\n", "record a contains 'E'"),
        (b">a\nAC-GT\n", "contains '-'"),
        (b">\nACG\n", "has no name"),
    ],
)
def test_wrong_text(tmp_path, text, said):
    path = tmp_path / "a.fa"
    path.write_bytes(text)
    with pytest.raises(UserError, match=said) as error:
        scan_fasta(path)
    assert str(path) in str(error.value)


def test_truncated_plain_file_is_seen_through_its_index(tmp_path):
    path = tmp_path / "a.fa"
    write_fasta(path, {"chr1": np.zeros(600, np.uint8)})
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match=r"chr1 has 388 bases where a\.fa\.fai says 600"):
        scan_fasta(path)


def test_truncated_gzip(tmp_path):
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(b">a\n" + bytes(np.random.default_rng(0).choice(list(b"ACGT"), 5_000)))[:-200])
    with pytest.raises(UserError, match="truncated or damaged"):
        scan_fasta(path)


def test_bgzip_without_its_end_marker(tmp_path):
    """Two bgzip blocks: a gzip member with the BC extra field, and the empty one that ends the file."""
    body = gzip.compress(b">a\nACGTACGT\n")
    block = body[:3] + b"\x04" + body[4:10] + b"\x06\x00BC\x02\x00\x00\x00" + body[10:]
    path = tmp_path / "a.fa.gz"
    path.write_bytes(block + fasta._BGZF_END)
    assert scan_fasta(path).lengths == {"a": 8}
    path.write_bytes(block)
    with pytest.raises(UserError, match="end marker is missing"):
        scan_fasta(path)
