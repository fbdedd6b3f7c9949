import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from seq2exp.data_tools import GeneWindows, build_store, collate
from seq2exp.data_tools.bigwig import write_bigwig
from seq2exp.errors import UserError

from .conftest import LENGTHS


def test_item_is_what_the_store_holds(store):
    windows = GeneWindows(store, 512, split="test")
    item = windows[3]
    gene = store.genes.loc[item["row"]]
    assert gene["split"] == "test" and item["gene_id"] == gene["gene_id"] and item["chrom"] == gene["chrom"] == "chr5"
    start, end = gene["tss"] - 256, gene["tss"] + 256
    assert item["start"] == start
    np.testing.assert_array_equal(item["sequence"], store.sequence("chr5", start, end))
    expected = [store.track(name, "chr5", start, end) for name in store.tracks] + [
        store.contacts(item["row"], start, end)
    ]
    np.testing.assert_array_equal(item["signals"], np.stack(expected, axis=1))
    assert item["target"].item() == pytest.approx(gene["target"])
    assert windows.signal_names == ["H3K27ac", "DNase", "contacts"]
    dtypes = {name: value.dtype for name, value in item.items() if isinstance(value, torch.Tensor)}
    assert dtypes == {
        "sequence": torch.uint8,
        "signals": torch.float32,
        "gene_features": torch.float32,
        "target": torch.float32,
        "exclude": torch.bool,
        "include": torch.bool,
    }


def test_contacts_are_those_of_the_simulation(store):
    item = GeneWindows(store, 512)[0]
    distance = np.abs((np.arange(512) + item["start"]) // 16 - store.genes.at[0, "tss"] // 16) * 16
    np.testing.assert_allclose(item["signals"][:, 2], np.log10(1 + np.exp(-distance / 400)), rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 63, 999, 5_001])
def test_any_length_padded_past_the_ends(inputs, length):
    values = {c: np.ones(n) for c, n in LENGTHS.items()}
    values["chr2"][30:40] = np.nan
    write_bigwig(inputs["track"]["DNase"], values)
    store = build_store(**inputs)
    for item in (windows := GeneWindows(store, length, require_target=False)):
        tss, size = store.genes.at[item["row"], "tss"], LENGTHS[item["chrom"]]
        assert item["start"] == tss - length // 2 and item["sequence"].shape == (length,)
        position = np.arange(length) + item["start"]
        inside = (position >= 0) & (position < size)
        np.testing.assert_array_equal(item["sequence"].numpy() < 4, inside)
        missing = (position >= 30) & (position < 40) if item["chrom"] == "chr2" else np.zeros(length, bool)
        np.testing.assert_array_equal(item["signals"][:, 0].numpy(), (inside & ~missing).astype(np.float32))
        if item["row"] == len(windows) - 1:
            break


def test_genes_without_a_target(inputs, caplog):
    store = build_store(**inputs)
    windows = GeneWindows(store, 100, split="train")
    assert windows.rows.tolist() == [0] and windows.genes["gene_id"].tolist() == ["G1"]
    assert "1 of 2 genes of train have no target and are left out" in caplog.text
    everything = GeneWindows(store, 100, split="train", require_target=False)
    assert everything.rows.tolist() == [0, 1] and torch.isnan(everything[1]["target"])


def test_regions_and_features(inputs, tmp_path):
    (tmp_path / "in.bed").write_text("chr1\t490\t495\n")
    (tmp_path / "ex.bed").write_text("chr1\t505\t600\n")
    store = build_store(**inputs, include=tmp_path / "in.bed", exclude=tmp_path / "ex.bed", features=["gc"])
    item = GeneWindows(store, 20)[0]
    assert torch.nonzero(item["include"]).flatten().tolist() == [0, 1, 2, 3, 4]
    assert torch.nonzero(item["exclude"]).flatten().tolist() == [15, 16, 17, 18, 19]
    assert item["gene_features"].tolist() == pytest.approx([0.1])


def test_wrong_windows(store):
    with pytest.raises(UserError, match="no split 'trian'; the splits are test, train, valid"):
        GeneWindows(store, 512, split="trian")
    with pytest.raises(UserError, match="must be at least 1"):
        GeneWindows(store, 0)
    with pytest.raises(UserError, match="cover windows of up to 6,384 bases, not 200,000"):
        GeneWindows(store, 200_000)
    assert GeneWindows(store, 6_384)[0]["signals"].shape == (6_384, 3)


def test_index_past_the_end(store):
    windows = GeneWindows(store, 512, split="test")
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_pickle_holds_genes_but_no_signals(store):
    windows = GeneWindows(store, 512, split="train")
    data = pickle.dumps(windows)
    assert len(data) < 100 * len(windows)
    again = pickle.loads(data)
    assert torch.equal(again[5]["signals"], windows[5]["signals"]) and again.rows.tolist() == windows.rows.tolist()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_items(store, method):
    windows = GeneWindows(store.path, 512, split="test")
    windows[0]  # the parent has read before it forks
    loader = DataLoader(windows, batch_size=8, num_workers=2, multiprocessing_context=method, collate_fn=collate)
    alone = DataLoader(windows, batch_size=8, collate_fn=collate)
    for one, other in zip(loader, alone, strict=True):
        assert one["gene_id"] == other["gene_id"] and one["chrom"] == other["chrom"]
        for name in ("sequence", "signals", "target", "row", "start", "exclude"):
            assert torch.equal(one[name], other[name]), name
    assert one["row"].dtype == torch.int64 and one["signals"].shape[1:] == (512, 3)


def test_reading_opens_no_files_for_good(store):
    windows = GeneWindows(store.path, 512)
    windows[0]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for i in range(len(windows)):
        windows[i]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_small_windows_are_quick(store):
    """Far above what is measured (0.1 ms), so that only a decode for each item would fail it."""
    windows = GeneWindows(store, 512)
    for i in range(len(windows)):
        windows[i]
    began = time.process_time()
    for i in range(len(windows)):
        windows[i]
    assert (time.process_time() - began) / len(windows) < 2e-3
