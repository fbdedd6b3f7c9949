"""One-dimensional chunked arrays of a store: written through zarr, read by decoding their chunks directly.

The layout is that of Zarr v3 with the sharding codec and crc32c on each inner chunk, so any Zarr v3 reader opens them.
``ChunkedArray`` reads the same files without zarr's event loop, which costs milliseconds a read; it keeps no file open,
so it survives fork and spawn. Sizes and codecs were chosen by bench/store_study.py.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc, Zstd
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from seq2exp.errors import UserError

CACHE_BYTES = 64 * 2**20
_NEVER_WRITTEN = 2**64 - 1
_DECODERS = {"zstd": Zstd(), "blosc": Blosc()}


class Layout(NamedTuple):
    """How an array is cut: values in a chunk, chunks in a shard (a file), and what packs a chunk."""

    chunk: int
    chunks_per_shard: int
    codec: BytesBytesCodec


# Base codes are split into their bits, of which two are random and six almost always 0.
CODES = Layout(65_536, 256, BloscCodec(cname="lz4hc", clevel=9, shuffle="bitshuffle", typesize=1))
# Tracks of few long runs are best left as they are, others have their bytes split: ``track_layout`` tries.
RUNS = Layout(131_072, 128, ZstdCodec(level=9))
VALUES = RUNS._replace(codec=BloscCodec(cname="zstd", clevel=9, shuffle="shuffle"))
_TRIED = 16  # chunks


def track_layout(values: np.ndarray) -> Layout:
    """``RUNS`` or ``VALUES``, whichever packs some of the chunks of a track smaller."""
    chunks = [values[i : i + RUNS.chunk] for i in range(0, len(values), RUNS.chunk)]
    chunks = [chunk for chunk in chunks if chunk.any()]
    tried = chunks[:: max(1, len(chunks) // _TRIED)]
    runs = sum(len(Zstd(level=9).encode(chunk)) for chunk in tried)
    split = sum(len(Blosc("zstd", 9, Blosc.SHUFFLE).encode(chunk)) for chunk in tried)
    return RUNS if runs <= split else VALUES


def write_array(group: zarr.Group, name: str, values: np.ndarray, layout: Layout | None = None) -> None:
    """Writes values (n,) as ``name`` below ``group``, replacing an unfinished attempt. All-zero chunks take no room.

    layout: by default ``CODES`` for uint8, else what ``track_layout`` chooses.
    """
    layout = layout or (CODES if values.dtype == np.uint8 else track_layout(values))
    needed = -(-max(len(values), 1) // layout.chunk)
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(layout.chunk,),
        shards=(min(layout.chunks_per_shard, needed) * layout.chunk,),
        compressors=(layout.codec, Crc32cCodec()),
        fill_value=0,
        overwrite=True,
    )
    array[:] = values


def write_small_array(
    group: zarr.Group, name: str, values: np.ndarray, chunks: tuple[int, ...] | None = None
) -> zarr.Array:
    """Writes an array that is read as a whole, of any dtype and shape, with a checksum on each chunk."""
    codecs: tuple[BytesBytesCodec, ...] = (ZstdCodec(level=9), Crc32cCodec())
    return group.create_array(name, data=values, chunks=chunks or "auto", compressors=codecs, overwrite=True)


class ChunkCache:
    """The most recently used decoded chunks of a process, at most `limit` bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.size = 0
        self._chunks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> np.ndarray | None:
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._chunks.move_to_end(key)
            return chunk

    def put(self, key: tuple[str, int], chunk: np.ndarray) -> None:
        with self._lock:
            if key in self._chunks or chunk.nbytes > self.limit:
                return
            self._chunks[key] = chunk
            self.size += chunk.nbytes
            while self.size > self.limit:
                self.size -= self._chunks.popitem(last=False)[1].nbytes


class ChunkedArray:
    """Reads a one-dimensional array that ``write_array`` wrote.

    Args:
        path: its folder.
        cache: where decoded chunks are kept.
        remedy: what an error about damage tells the user to do.

    Raises:
        UserError: metadata missing or of another layout; a chunk whose checksum is wrong (named).
    """

    def __init__(self, path: Path, cache: ChunkCache, remedy: str = "build the store again") -> None:
        self.path = path
        self._cache = cache
        self._remedy = remedy
        try:
            meta = json.loads((path / "zarr.json").read_text())
            codec = meta["codecs"][0]
            self.length = int(meta["shape"][0])
            self.dtype = np.dtype(meta["data_type"]).newbyteorder("<")
            self._shard = int(meta["chunk_grid"]["configuration"]["chunk_shape"][0])
            self._chunk = int(codec["configuration"]["chunk_shape"][0])
            inner = [c["name"] for c in codec["configuration"]["codecs"]]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{path}: not an array of a seq2exp store ({error}); {remedy}.") from error
        if codec["name"] != "sharding_indexed" or inner[::2] != ["bytes", "crc32c"] or inner[1] not in _DECODERS:
            raise UserError(f"{path}: its codecs {inner} are not those of a seq2exp store; {remedy}.")
        self._decode = _DECODERS[inner[1]].decode
        self._indices: dict[int, np.ndarray | None] = {}

    def read(self, start: int, end: int, out: np.ndarray) -> None:
        """Puts the values of [start, end) into out (end - start,), casting; positions outside stay as they are."""
        low, high = max(start, 0), min(end, self.length)
        while low < high:
            stop = min(high, (low // self._shard + 1) * self._shard)
            self._read_shard(low, stop, out[low - start : stop - start])
            low = stop

    def forget(self) -> None:
        """Reads the shards' indices anew from here on."""
        self._indices.clear()

    def damage(self) -> Iterator[str]:
        """What is wrong, a sentence for each chunk and shard that cannot be read."""
        for first in range(0, self.length, self._shard):
            try:
                self._index(first // self._shard)
            except UserError as error:
                yield str(error)
                continue
            for low in range(first, min(first + self._shard, self.length), self._chunk):
                try:
                    high = min(low + self._chunk, self.length)
                    self._read_shard(low, high, np.empty(high - low, self.dtype))
                except UserError as error:
                    yield str(error)

    def _read_shard(self, low: int, high: int, out: np.ndarray) -> None:
        """As ``read``, where [low, high) lies in one shard."""
        shard = low // self._shard
        first, last = low // self._chunk, (high - 1) // self._chunk
        before = shard * (self._shard // self._chunk)
        index = self._index(shard)
        places = [] if index is None else index[first - before : last - before + 1].tolist()
        if all(offset == _NEVER_WRITTEN for offset, _ in places):
            out[:] = 0
            return
        file = os.open(self._file(shard), os.O_RDONLY)
        try:
            for number, (offset, size) in enumerate(places, first):
                begin = number * self._chunk
                from_, to = max(low, begin), min(high, begin + self._chunk)
                part = out[from_ - low : to - low]
                if offset == _NEVER_WRITTEN:
                    part[:] = 0
                    continue
                key = (str(self.path), number)
                chunk = self._cache.get(key)
                if chunk is None:
                    raw = self._checked(os.pread(file, size, offset), shard, number - before)
                    chunk = np.frombuffer(self._decode(raw), dtype=self.dtype)
                    self._cache.put(key, chunk)
                part[:] = chunk[from_ - begin : to - begin]
        finally:
            os.close(file)

    def _index(self, shard: int) -> np.ndarray | None:
        """uint64 (chunks of a shard, 2): offset and size of each in its file; None where all are zeros."""
        if shard not in self._indices:
            self._indices[shard] = self._read_index(shard)
        return self._indices[shard]

    def _read_index(self, shard: int) -> np.ndarray | None:
        size = 16 * (self._shard // self._chunk) + 4
        file = self._file(shard)
        try:
            with Path(file).open("rb") as handle:
                handle.seek(-size, os.SEEK_END)
                raw = handle.read(size)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{file}: damaged ({error}); {self._remedy}.") from error
        return np.frombuffer(self._checked(raw, shard), dtype="<u8").reshape(-1, 2)

    def _file(self, shard: int) -> str:
        return f"{self.path}/c/{shard}"

    def _checked(self, raw: bytes, shard: int, chunk: int | None = None) -> bytes:
        body, checksum = raw[:-4], raw[-4:]
        if google_crc32c.value(body).to_bytes(4, "little") != checksum:
            where = self._file(shard) + ("" if chunk is None else f", chunk {chunk}")
            raise UserError(f"{where}: the checksum does not agree, the file is damaged; {self._remedy}.")
        return body
