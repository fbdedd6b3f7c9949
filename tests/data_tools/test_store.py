import json

import numpy as np
import pytest
import zarr

from seq2exp.data_tools import open_store
from seq2exp.data_tools.arrays import CODES, RUNS, VALUES, ChunkCache, ChunkedArray, Layout, track_layout, write_array
from seq2exp.errors import UserError

CHUNK = 1_000


@pytest.fixture(scope="module", params=[CODES, RUNS, VALUES], ids=["codes", "runs", "values"])
def array(request, tmp_path_factory):
    """Values over two shards, with a hole of whole zero chunks, and their path."""
    folder = tmp_path_factory.mktemp("arrays")
    values = np.random.default_rng(0).random(66 * CHUNK + 321) * 5
    values[3 * CHUNK : 6 * CHUNK] = 0
    values = values.astype(np.uint8 if request.param is CODES else np.float16)
    write_array(zarr.open_group(folder, mode="w"), "x", values, Layout(CHUNK, 64, request.param.codec))
    return folder / "x", values


@pytest.mark.parametrize("limit", [0, 5_000, 2**30])
def test_reads_equal_the_values(array, limit):
    path, values = array
    reader = ChunkedArray(path, ChunkCache(limit))
    rng = np.random.default_rng(1)
    edges = [
        (0, 1),
        (CHUNK - 1, CHUNK + 1),
        (3 * CHUNK, 6 * CHUNK),
        (2 * CHUNK + 5, 7 * CHUNK),
        (len(values) - 1, len(values)),
    ]
    for start, end in [*edges, *(sorted(rng.integers(0, len(values), 2).tolist()) for _ in range(40))]:
        out = np.full(end - start, -1, dtype=np.float32)
        reader.read(start, end, out)
        np.testing.assert_array_equal(out, values[start:end].astype(np.float32))


def test_positions_outside_stay_as_they_are(array):
    path, values = array
    out = np.full(10, 7, dtype=np.float32)
    ChunkedArray(path, ChunkCache()).read(-4, 6, out)
    assert (out[:4] == 7).all() and np.array_equal(out[4:], values[:6])
    out = np.full(10, 7, dtype=np.float32)
    ChunkedArray(path, ChunkCache()).read(len(values) - 3, len(values) + 7, out)
    assert (out[3:] == 7).all() and np.array_equal(out[:3], values[-3:])
    ChunkedArray(path, ChunkCache()).read(len(values) + 5, len(values) + 15, out)


def test_cache_keeps_its_bound(array):
    path, values = array
    cache = ChunkCache(10 * CHUNK * 2)
    ChunkedArray(path, cache).read(0, len(values), np.empty(len(values), np.float32))
    assert cache.limit - 2 * CHUNK < cache.size <= cache.limit
    assert cache.size == sum(chunk.nbytes for chunk in cache._chunks.values())


def test_zero_chunks_take_no_room(tmp_path):
    write_array(zarr.open_group(tmp_path, mode="w"), "x", np.zeros(300_000, np.float32))
    assert not (tmp_path / "x" / "c").exists()
    out = np.ones(9, np.float32)
    ChunkedArray(tmp_path / "x", ChunkCache()).read(5, 14, out)
    assert not out.any()


def test_the_codec_is_chosen_by_trial():
    rng = np.random.default_rng(0)
    runs = np.repeat(rng.random(200) * (rng.random(200) < 0.1), 5_000).astype(np.float16)
    values = np.cumsum(rng.normal(size=400_000)).astype(np.float32)
    assert (track_layout(runs), track_layout(values)) == (RUNS, VALUES)
    assert track_layout(np.zeros(10, np.float16)) == RUNS


def test_damaged_chunk_is_named(tmp_path):
    chunk = RUNS.chunk
    write_array(zarr.open_group(tmp_path, mode="w"), "x", np.random.default_rng(0).random(chunk * 2).astype(np.float32))
    file = tmp_path / "x" / "c" / "0"
    data = bytearray(file.read_bytes())
    data[1_000] ^= 1
    file.write_bytes(data)
    reader = ChunkedArray(tmp_path / "x", ChunkCache(), "call somebody")
    reader.read(chunk, chunk + 5, np.empty(5, np.float32))
    with pytest.raises(UserError, match=r"x/c/0, chunk 0: the checksum does not agree.*; call somebody\."):
        reader.read(0, 5, np.empty(5, np.float32))
    assert len(list(reader.damage())) == 1
    file.write_bytes(data[:-40])
    with pytest.raises(UserError, match="checksum"):
        ChunkedArray(tmp_path / "x", ChunkCache()).read(0, 5, np.empty(5, np.float32))


def test_outside_the_chromosome_is_n_and_zero(store):
    length = store.chromosomes["chr5"]
    assert (store.sequence("chr5", -5, 0) == 4).all()
    assert (store.sequence("chr5", length - 2, length + 3) == 4).tolist() == [False, False, True, True, True]
    assert not store.track("DNase", "chr5", length, length + 9).any()


def test_wrong_requests(store, tmp_path):
    with pytest.raises(UserError, match="no chromosome 'chr9'; it holds chr1, chr2"):
        store.sequence("chr9", 0, 5)
    with pytest.raises(UserError, match="no track 'ATAC'; the tracks are H3K27ac, DNase"):
        store.track("ATAC", "chr1", 0, 5)
    with pytest.raises(UserError, match="ends before"):
        store.sequence("chr1", 5, 0)
    with pytest.raises(UserError, match="no such store"):
        open_store(tmp_path / "none.zarr")
    with pytest.raises(UserError, match="not a finished seq2exp store"):
        open_store(tmp_path)
    with pytest.raises(UserError, match="larger --contact-reach"):
        store.contacts(40, 0, store.chromosomes["chr1"])


def test_newer_format_is_refused(tmp_path):
    (tmp_path / "zarr.json").write_text(json.dumps({"attributes": {"seq2exp": {"format": 99}}}))
    with pytest.raises(UserError, match="format 99, this version of seq2exp reads up to 2; update seq2exp"):
        open_store(tmp_path)
