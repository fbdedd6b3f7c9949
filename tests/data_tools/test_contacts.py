import sys
from pathlib import Path

import numpy as np
import pytest
from contact_maps import write_map, write_mcool

from seq2exp.data_tools.contacts import (
    MapSource,
    PowerLaw,
    TableSource,
    abc_contacts,
    fill_with_power_law,
    open_contacts,
    power_law_factor,
    pseudocount,
    too_little_coverage,
)
from seq2exp.errors import UserError

PIXELS = {"bin1_id": [0, 0, 1, 1, 2, 4], "bin2_id": [0, 1, 1, 3, 3, 5], "count": [50, 10, 40, 4, 9, 7]}


def table(tmp_path: Path, text: str, name: str = "contacts.tsv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_power_law_is_the_abc_model_s():
    law = PowerLaw()
    assert law.contact(np.array([1e6])) == pytest.approx(np.exp(-4.80 + 11.63 * 0.87) * (1e6 + 1) ** -0.87)
    assert law.contact(np.array([0.0, 5_000.0])).tolist() == [law.contact(np.array([5_000.0]))[0]] * 2


def test_table_rows_by_hand(tmp_path):
    path = table(
        tmp_path,
        "chrom\tbin1\tbin2\tvalue\nchr1\t5000\t5000\t9\nchr1\t5000\t0\t4\nchr1\t5000\t10000\t\n"
        "chr1\t10000\t10000\t6\nchr1\t20000\t20000\t2\nchr1\t15000\t15000\tNaN\n",
    )
    source = TableSource(path)
    assert source.resolution == 5_000 and source.value == "value"
    rows = source.rows(np.array(["chr1", "chr1", "chr2"]), np.array([7_400, 17_000, 0]), reach=3)
    # bins -2 .. 4 around bin 1: outside, outside, 4, 9, empty, bin 3 was never measured, bin 4 measured but not listed
    np.testing.assert_array_equal(rows[0], [np.nan, np.nan, 4, 9, np.nan, np.nan, 0])
    assert np.isnan(rows[1:]).all()


def test_bin_columns_follow_the_assembly_of_the_file_name(tmp_path):
    text = "chrom\tbin1_hg19\tbin2_hg19\tbin1_hg38\tbin2_hg38\traw_count\tKR_norm\nchr1\t0\t0\t5000\t10000\t7\t3.5\n"
    source = TableSource(table(tmp_path, text, "map.hg38.tsv"))
    assert source.value == "KR_norm"
    assert source.rows(np.array(["chr1"]), np.array([5_000]), 1)[0].tolist()[1:] == [0, 3.5]
    assert TableSource(table(tmp_path, text, "map.tsv"), hint="hg38.fa").value == "KR_norm"
    with pytest.raises(UserError, match="contact_bins"):
        TableSource(table(tmp_path, text, "map.tsv"))
    raw = TableSource(table(tmp_path, text, "map.tsv"), columns=("bin1_hg38", "bin2_hg38"), value="raw_count")
    assert raw.rows(np.array(["chr1"]), np.array([5_000]), 1)[0].tolist()[1:] == [0, 7]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chrom\tbin1\tbin2\n", "no contact column"),
        ("chrom\tx\ty\tvalue\n", "bin columns are not clear"),
        ("bin1\tbin2\tvalue\n0\t0\t1\n", "no column 'chrom'; the columns are bin1, bin2, value"),
        ("chrom\tbin1\tbin2\tvalue\n", "no contact"),
        ("chrom\tbin1\tbin2\tvalue\nchr1\t0\t-5000\t1\n", "line 2: bin2 is '-5000'"),
        ("chrom\tbin1\tbin2\tvalue\nchr1\t0\t5000\t-1\n", "line 2: value is '-1'"),
        ("chrom\tbin1\tbin2\tvalue\nchr1\t0\t5000\tinf\n", "line 2: value is 'inf'"),
        ("chrom\tbin1\tbin2\tvalue\nchr1\t0\t5000\tmany\n", "line 2: value is 'many'"),
        ("chrom\tbin1\tbin2\tvalue\nchr1\t0\t5003\t1\nchr1\t4\t5\t1\n", "do not start at multiples"),
    ],
)
def test_wrong_tables(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        TableSource(table(tmp_path, text))


def test_power_law_takes_the_units_of_the_measurement():
    law = PowerLaw()
    expected = law.contact(np.abs(np.arange(-4, 5)) * 5_000.0)
    rows = np.stack([expected * 300, np.full(9, np.nan)])
    rows[0, 6:] = np.nan
    rows[0, 4] = 1e6  # the TSS's own bin does not count
    factor = power_law_factor(rows, law, 4, 5_000)
    assert factor == pytest.approx(300)
    filled = fill_with_power_law(rows, law, factor, 5_000)
    assert filled.dtype == np.float32
    np.testing.assert_allclose(filled[1], expected * 300, rtol=1e-6)
    np.testing.assert_allclose(filled[0, 6:], expected[6:] * 300, rtol=1e-6)
    assert filled[0, 4] == 1e6
    assert power_law_factor(rows[1:], law, 4, 5_000) == 1


def small_map(path: Path, **norms: dict[str, list[float]]) -> Path:
    return write_map(path, {"chr1": 28_000, "chr2": 10_000}, 5_000, PIXELS, norms)


@pytest.mark.parametrize("suffix", ["cool", "hic"])
def test_maps_through_hictkpy(tmp_path, suffix):
    path = small_map(tmp_path / f"map.{suffix}")
    source = open_contacts(str(path))
    assert isinstance(source, MapSource) and source.resolution == 5_000 and source.value == "NONE"
    chroms = np.array(["chr1", "chr1", "1", "chr2", "chr7"])
    rows = source.rows(chroms, np.array([7_000, 26_000, 7_000, 100, 100]), reach=3)
    np.testing.assert_array_equal(rows[0], [np.nan, np.nan, 10, 40, 0, 4, 0])
    np.testing.assert_array_equal(rows[1], [0, 0, 7, 0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(rows[2], rows[0])
    assert np.isnan(rows[3:]).all()
    with pytest.raises(UserError, match="no normalisation 'KR'; it has NONE"):
        open_contacts(str(path), value="KR")
    if suffix == "hic":
        with pytest.raises(UserError, match="no resolution 1000; it has 5000"):
            open_contacts(str(path), resolution=1_000)


def test_normalised_hic(tmp_path):
    factors = {"chr1": [0.5, 2.0, float("nan"), 4.0, 1.0, 1.0], "chr2": [1.0, 1.0]}
    ones = {"chr1": [1.0] * 6, "chr2": [1.0] * 2}
    path = small_map(tmp_path / "map.hic", VC=factors, SCALE=ones)
    source = open_contacts(str(path))
    assert source.value == "VC"  # KR is not there
    rows = source.rows(np.array(["chr1", "chr1"]), np.array([7_000, 12_000]), reach=2)
    # count / (factor * factor); bin 2 failed to normalise; bin -1 is outside
    np.testing.assert_array_equal(rows[0], [np.nan, 10 / (0.5 * 2), 40 / 4, np.nan, 4 / (2 * 4)])
    assert np.isnan(rows[1]).all()
    raw = open_contacts(str(path), value="NONE").rows(np.array(["chr1"]), np.array([7_000]), reach=2)[0]
    np.testing.assert_array_equal(raw[1:], [10, 40, 0, 4])
    with pytest.raises(UserError, match=r"map\.hic: no normalisation 'KR'; it has NONE, (VC, SCALE|SCALE, VC)\."):
        open_contacts(str(path), value="KR")


def test_mcool(tmp_path):
    pytest.importorskip("h5py")
    cools = {5_000: small_map(tmp_path / "5.cool")}
    cools[10_000] = write_map(
        tmp_path / "10.cool", {"chr1": 28_000}, 10_000, {"bin1_id": [0], "bin2_id": [1], "count": [3]}
    )
    path = write_mcool(tmp_path / "map.mcool", cools)
    row = open_contacts(str(path)).rows(np.array(["chr1"]), np.array([7_000]), reach=2)[0]
    np.testing.assert_array_equal(row[1:], [10, 40, 0, 4])
    coarse = open_contacts(str(path), resolution=10_000)
    np.testing.assert_array_equal(coarse.rows(np.array(["chr1"]), np.array([7_000]), reach=1)[0], [np.nan, 0, 3])
    with pytest.raises(UserError, match=r"map\.mcool: no resolution 1000; it has 5000, 10000"):
        open_contacts(str(path), resolution=1_000)


def test_hictkpy_stays_out_of_this_process(tmp_path):
    open_contacts(str(small_map(tmp_path / "map.cool")))
    assert "hictkpy" not in sys.modules


@pytest.mark.parametrize("name", ["map.hic", "map.mcool"])
def test_damaged_map(tmp_path, name):
    (tmp_path / name).write_bytes(b"HIC\0" + bytes(40))
    with pytest.raises(UserError, match=name):
        open_contacts(str(tmp_path / name))


def test_a_map_of_another_assembly(tmp_path):
    path = small_map(tmp_path / "map.hic")
    with pytest.raises(UserError, match=r"map\.hic: chr1 has 28,000 bases, but 27,000 in the FASTA"):
        open_contacts(str(path), lengths={"chr1": 27_000})
    text = "chrom\tbin1\tbin2\tvalue\nchr1\t0\t5000\t1\nchr1\t5000\t30000\t2\n"
    with pytest.raises(UserError, match=r"line 3: the bin at chr1:30,000 is outside chr1, which has 28,000 bases"):
        open_contacts(str(table(tmp_path, text)), lengths={"chr1": 28_000})


# --- the recipe of the ABC model -----------------------------------------------------------------------------------


def test_too_little_coverage_is_a_promoter_s_contact_with_itself():
    rows = np.array([[9.0, 0.9, 9.0], [0.0, 1.1, 0.0], [9.0, np.nan, 9.0], [np.nan] * 3])
    assert too_little_coverage(rows, factor=100).tolist() == [True, False, False, False]
    assert not too_little_coverage(rows, factor=1).any()


def test_pseudocount_is_the_power_law_s_at_1_mb_or_beyond():
    law = PowerLaw()
    distance = np.array([0.0, 1e4, 1e6, 4e6])
    at_1_mb, at_4_mb = law.contact(distance[2:])
    np.testing.assert_allclose(pseudocount(law, distance), [at_1_mb, at_1_mb, at_1_mb, at_4_mb])


def test_abc_contacts_by_hand():
    law, expected = PowerLaw(), PowerLaw().contact(np.array([5e3, 0.0, 5e3]))
    rows = np.array([[4.0, 30.0, np.nan], [7.0, 0.0, 7.0], [np.nan] * 3])
    added = 20 * law.contact(np.array(1e6))
    found = abc_contacts(rows, law, factor=20, resolution=5_000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], np.array([4.0, 30.0, 20 * expected[2]]) + added, rtol=1e-6)
    np.testing.assert_allclose(found[1:], [20 * expected + added] * 2, rtol=1e-6)
