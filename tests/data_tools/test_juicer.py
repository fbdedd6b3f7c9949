"""RAWobserved and KRnorm files."""

import gzip
import weakref
from pathlib import Path

import numpy as np
import pytest

from seq2exp.data_tools import contacts
from seq2exp.data_tools.contacts import JuicerSource, open_contacts
from seq2exp.data_tools.juicer import find_juicer_files
from seq2exp.errors import UserError

LENGTHS = {"chr1": 22_000, "chr2": 9_000}
RAW = "0\t0\t50.0\n0\t5000\t10.0\n5000\t5000\t40.0\n5000\t15000\t4.0\n10000\t15000\t9.0\n15000\t15000\t8.0\n"
FACTORS = "0.5\n2.0\nNaN\n4.0\n1.0\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "K562_chr1_5kb.RAWobserved").write_text(RAW)
    (tmp_path / "K562_chr1_5kb.KRnorm").write_text(FACTORS)
    return tmp_path / "K562_chr1_5kb.RAWobserved"


def rows(source: JuicerSource) -> np.ndarray:
    return source.rows(np.array(["chr1", "chr1", "chr2"]), np.array([7_400, 12_000, 0]), reach=2)


def test_rows_by_hand(raw):
    source = open_contacts(str(raw), lengths=LENGTHS)
    # count / (factor * factor); bin 2 failed to normalise; bin -1 is outside
    np.testing.assert_array_equal(rows(source)[0], [np.nan, 10 / (0.5 * 2), 40 / 4, np.nan, 4 / (2 * 4)])
    assert isinstance(source, JuicerSource) and (source.resolution, source.value) == (5_000, "KR")
    assert np.isnan(rows(source)[1:]).all()


def test_raw_counts_and_other_normalisations(raw):
    source = open_contacts(str(raw), value="NONE", lengths=LENGTHS)
    np.testing.assert_array_equal(rows(source)[0], [np.nan, 10, 40, 0, 4])
    with pytest.raises(UserError, match=r"no normalisation 'VC': K562_chr1_5kb\.VCnorm is not .*; it has NONE, KR"):
        open_contacts(str(raw), value="VC", lengths=LENGTHS)
    raw.with_name("K562_chr1_5kb.VCnorm.gz").write_bytes(gzip.compress(b"1\n" * 5))
    assert rows(open_contacts(str(raw), value="VC", lengths=LENGTHS))[0, 2] == 40
    assert find_juicer_files(str(raw))[0] == "KR"  # before VC


def test_a_path_with_the_chromosome_left_open(raw, tmp_path):
    for chrom in LENGTHS:
        (tmp_path / "[hic]" / chrom).mkdir(parents=True)
        (tmp_path / "[hic]" / chrom / f"{chrom}.RAWobserved").write_text("0\t0\t2\n0\t5000\t3\n")
    source = open_contacts(str(tmp_path / "[hic]" / "{chrom}" / "{chrom}.RAWobserved"), lengths=LENGTHS)
    np.testing.assert_array_equal(rows(source)[2], [np.nan, np.nan, 2, 3, np.nan])
    _, files = find_juicer_files(str(tmp_path / "K562_{chrom}_5kb.RAWobserved"))
    assert list(files) == ["chr1"] and files["chr1"].raw == raw
    with pytest.raises(UserError, match="no such file for any chromosome"):
        find_juicer_files(str(tmp_path / "GM_{chrom}.RAWobserved"))
    with pytest.raises(UserError, match=r"no gene is on its chromosome 'chr1', which calls it '1'"):
        open_contacts(str(raw), lengths={"1": 22_000})
    with pytest.raises(UserError, match=r"no chromosome .* in the file's name"):
        find_juicer_files(str(tmp_path / "map.RAWobserved"))


def test_one_chromosome_is_held_at_a_time(tmp_path, monkeypatch):
    for chrom in LENGTHS:
        (tmp_path / f"{chrom}.RAWobserved").write_text("0\t0\t2\n0\t5000\t3\n")
    read, before = contacts.read_juicer, []

    def watched(files, length):
        assert not [values for values in before if values() is not None]
        found = read(files, length)
        before.append(weakref.ref(found[2]))
        return found

    monkeypatch.setattr(contacts, "read_juicer", watched)
    rows(open_contacts(str(tmp_path / "{chrom}.RAWobserved"), lengths=LENGTHS))
    assert len(before) == 2
    (tmp_path / "chr2.RAWobserved").write_text("0\t0\t2\n0\t2500\t3\n")
    with pytest.raises(UserError, match=r"different resolutions \(chr1 5,000, chr2 2,500\)"):
        rows(open_contacts(str(tmp_path / "{chrom}.RAWobserved"), lengths=LENGTHS))


@pytest.mark.parametrize(
    ("counts", "factors", "said"),
    [
        ("0\t0\n", FACTORS, r"RAWobserved: line 1 is not bin start, bin start, count: '0\\t0'"),
        (RAW + "5000\tx\t3\n", FACTORS, r"RAWobserved: line 7 is not bin start.*x"),
        (RAW + "5000\t5000\t3\t4\n", FACTORS, "RAWobserved: line 7 is not bin start"),
        (RAW + "5000\t5000\n", FACTORS, "RAWobserved: line 7 is not two positions and a count"),
        (RAW + "5000\t5000\t-1\n", FACTORS, "RAWobserved: line 7 is not two positions and a count of at least 0"),
        (RAW + "1\t3\t1\n", FACTORS, "multiples of one size"),
        (RAW + "5000\t25000\t1\n", FACTORS, "line 7: position 25,000 is outside .* 22,000 .*different assemblies"),
        (RAW, FACTORS[:-8], r"KRnorm: has 3 lines, but the chromosome has 5 bins of 5,000 bases; it is of another res"),
        (RAW, FACTORS + "1\n" * 11, "KRnorm: has 16 lines, but"),
        (RAW, FACTORS.replace("NaN", "no"), "KRnorm: line 3 is not a number or NaN: 'no'"),
        ("", FACTORS, "RAWobserved: cannot be read"),
    ],
)
def test_wrong_files(raw, counts, factors, said):
    raw.write_text(counts)
    raw.with_name("K562_chr1_5kb.KRnorm").write_text(factors)
    with pytest.raises(UserError, match=said) as error:
        rows(open_contacts(str(raw), lengths=LENGTHS))
    assert "\n" not in str(error.value)
