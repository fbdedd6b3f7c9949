"""The benchmarks of the data: three routes, one answer; what the report holds; and no figure for other values."""

from __future__ import annotations

import data
import harness
import numpy as np
import pyBigWig
import pytest
import run
import torch

from seq2exp.data_tools import collate, open_store
from seq2exp.data_tools.bigwig import write_bigwig
from seq2exp.data_tools.fasta import write_fasta

LENGTHS = {"chr20": 40_000, "chr22": 20_000}
ROUTES = [
    f"data_{rival}_{place}{form}"
    for rival in ("numpy", "published")
    for place in ("alone", "workers")
    for form in ("", "_complete")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small chromosomes with lower case, N and IUPAC letters, and three tracks with gaps."""
    folder, rng = tmp_path_factory.mktemp("bench_data"), np.random.default_rng(0)
    codes = {chrom: rng.integers(0, 5, length, dtype=np.uint8) for chrom, length in LENGTHS.items()}
    codes["chr22"][:15_000] = 4
    write_fasta(folder / "genome.fa", codes)
    text = (folder / "genome.fa").read_text()
    at = text.index("\n") + 1 + 20_000
    (folder / "genome.fa").write_text(text[:at] + text[at : at + 5_000].lower() + text[at + 5_000 :])
    for name in data.TRACKS:
        values = {chrom: rng.gamma(1.0, 3.0, length).round(2) for chrom, length in LENGTHS.items()}
        values["chr20"][100:9_000] = 0
        values["chr20"][25_000:25_500] = np.nan
        write_bigwig(folder / f"{name}.bw", values)
    return folder


@pytest.fixture
def tiny(folder, tmp_path, monkeypatch):
    small = {
        "FASTA": folder / "genome.fa",
        "TRACKS": {name: folder / f"{name}.bw" for name in data.TRACKS},
        "LENGTH": 2_000,
        "GENES": 6,
        "FEW": 3,
        "BATCH": 2,
        "PLACES": (1_000, 39_000),
        "OTHER_TSS": 17_000,
        "_FOLDER": type("Folder", (), {"name": str(tmp_path)}),
    }
    for name, value in small.items():
        monkeypatch.setattr(data, name, value)
    data.store_path.cache_clear()
    yield folder
    data.store_path.cache_clear()


def quick(name: str) -> harness.Result:
    """As `measure`, one round."""
    bench = harness.REGISTRY[name]
    return harness.measure(harness.Benchmark(**vars(bench) | {"rounds": 1, "unavailable": lambda: None}))


def test_three_routes_give_the_same(tiny):
    store = open_store(data.store_path())
    ours, arrays, lists = data.windows(), data.NumpyFiles(store), data.PublishedFiles(store)
    assert len(ours) == len(arrays) == len(lists) == data.GENES
    for i in range(data.GENES):
        full = {name: values[0] for name, values in collate([ours[i]]).items()}
        assert torch.equal(full["signals"], data.windows(compact=False)[i]["signals"])
        np.testing.assert_array_equal(full["sequence"], arrays[i]["sequence"])
        np.testing.assert_array_equal(np.eye(5, 4)[full["sequence"]], lists[i]["sequence"])
        signals = np.stack([*arrays[i]["tracks"], arrays[i]["contacts"]], 1)
        np.testing.assert_array_equal(signals, lists[i]["signals"])
        np.testing.assert_allclose(full["signals"], signals, rtol=1e-3)
        assert full["signals"].shape == (data.LENGTH, 4) and (full["signals"][:, -1] > 0).all()
    with pyBigWig.open(str(data.TRACKS["DNase"])) as file:
        start = arrays.place(0)[0]
        expected = np.nan_to_num(file.values("chr20", start, start + data.LENGTH, numpy=True))
    np.testing.assert_array_equal(arrays[0]["tracks"][list(data.TRACKS).index("DNase")], expected)


@pytest.mark.parametrize("rivals", [data.NumpyFiles, data.PublishedFiles])
@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("spoiled", "said"), [("sequence", "another sequence"), ("DNase", "other signals"), ("contacts", "other contacts")]
)
def test_the_check_sees_another_value(tiny, monkeypatch, rivals, complete, spoiled, said):
    data.check(data.FEW, complete, rivals)
    right = data.GeneWindows._read

    def wrong(self, *where):
        item = right(self, *where)
        if spoiled == "sequence":
            item["sequence"][77] = (item["sequence"][77] + 1) % 5
        elif spoiled == "DNase":
            item["tracks"][1, 77] = item["tracks"][1, 77] * 1.01 + 1
        else:
            item["contact_bins"] *= 1 + 1e-5
        return item

    monkeypatch.setattr(data.GeneWindows, "_read", wrong)
    with pytest.raises(AssertionError, match=f"{said} in window"):
        data.check(data.FEW, complete, rivals)


def test_no_figure_for_other_values(tiny, monkeypatch):
    right = data.NumpyFiles.__getitem__
    monkeypatch.setattr(
        data.NumpyFiles, "__getitem__", lambda self, row: right(self, row) | {"sequence": np.zeros(data.LENGTH)}
    )
    result = quick("data_numpy_alone")
    assert result.note.startswith("WRONG, no figure: another sequence in window") and result.ratio is None


@pytest.mark.parametrize("name", ["data_numpy_alone", "data_published_workers_complete", "data_cache"])
def test_rates(tiny, name):
    """Samples per second of both sides and their ratio, in the report and in the table."""
    result = quick(name)
    assert not result.note and result.samples == (data.FEW if "published" in name else data.GENES)
    row = run.row(harness.REGISTRY[name], result)
    for side, cost in (("ours", result.ours), ("other", result.other)):
        assert row[f"{side}_per_s"] == pytest.approx(result.samples / cost.seconds, rel=1e-3, abs=0.1)
    assert row["ratio"] == pytest.approx(result.other.seconds / result.ours.seconds, abs=1e-3)
    head, _, line = run.table({name: row}).splitlines()
    assert "ours a second" in head and f"{row['other_per_s']:,.1f}" in line


def test_every_setting_is_registered():
    there = harness.REGISTRY
    assert set(ROUTES) <= set(there)
    goals = {name: there[name].goal for name in ROUTES}
    assert {goal for name, goal in goals.items() if "published" in name} == {20}
    assert goals["data_numpy_alone"] == goals["data_numpy_workers"] == 1
    assert all("no cache" in there[name].setting for name in ROUTES)
    assert {bench.name for bench in run.named("data_")} == {name for name in there if name.startswith("data_")}
    assert [bench.name for bench in run.named("data_numpy_alone")] == ["data_numpy_alone"]


def test_the_contests_keep_no_chunk(tiny):
    assert data.windows().store._cache.limit == 0


def test_sizes(tiny):
    bases = sum(LENGTHS.values())
    over = quick("data_handed_over")
    assert over.amounts[0] < 8 == over.amounts[1]
    for name, array, source in (
        ("sequence", "sequence", data.FASTA),
        ("DNase", "tracks/DNase", data.TRACKS["DNase"]),
    ):
        store = data.store_path() / array
        there = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        result = quick(f"data_size_{name}")
        assert result.amounts == pytest.approx((there / bases, source.stat().st_size / bases))
    row = run.row(harness.REGISTRY["data_size_DNase"], result)
    assert row["ours_amount"] == pytest.approx(there / bases, rel=1e-4) and row["unit"] == "bytes a base"


def test_hg38_is_extrapolated_from_known_bases_and_n(tiny, monkeypatch):
    store = open_store(data.store_path())
    known = {chrom: int((store.sequence(chrom, 0, n) < 4).sum()) for chrom, n in LENGTHS.items()}
    a = data.held("sequence/chr20") / known["chr20"]
    monkeypatch.setattr(data, "HG38", {"all": 3_000, "known": 2_000})
    assert 2_000 * a <= 1e9 * data.hg38_gigabytes() < 2_000 * a + 1_000 * a
    assert harness.REGISTRY["data_size_hg38"].unit == "GB" and data.HG38_LIMIT == 0.9
