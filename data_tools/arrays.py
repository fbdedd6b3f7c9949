"""One-dimensional chunked arrays of a store: written through zarr, read by decoding their chunks directly.

The layout is that of Zarr v3 with the sharding codec (inner chunks of ``CHUNK`` values, zstd and crc32c on each), so
any Zarr v3 reader opens them. ``ChunkedArray`` reads the same files without zarr's event loop, which costs
milliseconds a read; it keeps no file open, so it survives fork and spawn.
"""

import json
import threading
from collections import OrderedDict
from pathlib import Path

import google_crc32c
import numpy as np
import zarr
from numcodecs import Zstd
from zarr.codecs import Crc32cCodec, ZstdCodec

from seq2exp.errors import UserError

CHUNK = 65_536  # values; a window of 200 kb touches four or five
SHARD = 64 * CHUNK  # values in one file
CACHE_BYTES = 64 * 2**20
_EMPTY = np.uint64(2**64 - 1)
_ZSTD = Zstd()


def write_array(group: zarr.Group, name: str, values: np.ndarray) -> None:
    """Writes values (n,) as ``name`` below ``group``, replacing an unfinished attempt. All-zero chunks take no room."""
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(CHUNK,),
        shards=(SHARD,),
        compressors=(ZstdCodec(level=9), Crc32cCodec()),
        fill_value=0,
        overwrite=True,
    )
    array[:] = values


class ChunkCache:
    """The most recently used decoded chunks of a process, bounded in bytes."""

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
            if key in self._chunks:
                return
            self._chunks[key] = chunk
            self.size += chunk.nbytes
            while self.size > self.limit and len(self._chunks) > 1:
                self.size -= self._chunks.popitem(last=False)[1].nbytes


class ChunkedArray:
    """Reads a one-dimensional array that ``write_array`` wrote.

    Raises:
        UserError: metadata missing or of another layout; a chunk whose checksum is wrong (named).
    """

    def __init__(self, path: Path, cache: ChunkCache) -> None:
        self.path = path
        self._cache = cache
        try:
            meta = json.loads((path / "zarr.json").read_text())
            codec = meta["codecs"][0]
            self.length = int(meta["shape"][0])
            self.dtype = np.dtype(meta["data_type"]).newbyteorder("<")
            self._shard = int(meta["chunk_grid"]["configuration"]["chunk_shape"][0])
            self._chunk = int(codec["configuration"]["chunk_shape"][0])
            inner = [c["name"] for c in codec["configuration"]["codecs"]]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{path}: not an array of a seq2exp store ({error}); build the store again.") from error
        if codec["name"] != "sharding_indexed" or inner != ["bytes", "zstd", "crc32c"]:
            raise UserError(f"{path}: its codecs {inner} are not those of a seq2exp store; build the store again.")
        self._indices: dict[int, np.ndarray | None] = {}

    def read(self, start: int, end: int, out: np.ndarray) -> None:
        """Puts the values of [start, end) into out (end - start,), casting; positions outside stay as they are."""
        low, high = max(start, 0), min(end, self.length)
        position = low
        while position < high:
            number = position // self._chunk
            first = number * self._chunk
            stop = min(first + self._chunk, high)
            chunk = self._load(number)
            out[position - start : stop - start] = 0 if chunk is None else chunk[position - first : stop - first]
            position = stop

    def _load(self, number: int) -> np.ndarray | None:
        """Chunk `number`, decoded; None where nothing was written: all zeros."""
        key = (str(self.path), number)
        chunk = self._cache.get(key)
        if chunk is not None:
            return chunk
        per_shard = self._shard // self._chunk
        shard, inner = divmod(number, per_shard)
        file = self.path / "c" / str(shard)
        if shard not in self._indices:
            self._indices[shard] = self._read_index(file, per_shard)
        index = self._indices[shard]
        if index is None or index[inner, 0] == _EMPTY:
            return None
        offset, size = (int(v) for v in index[inner])
        with file.open("rb") as handle:
            handle.seek(offset)
            raw = handle.read(size)
        body = self._checked(raw, f"{file}, chunk {inner}")
        chunk = np.frombuffer(_ZSTD.decode(body), dtype=self.dtype)
        self._cache.put(key, chunk)
        return chunk

    def _read_index(self, file: Path, per_shard: int) -> np.ndarray | None:
        """(per_shard, 2) uint64 offsets and sizes at the end of the shard; None where the shard is absent."""
        size = 16 * per_shard + 4
        try:
            with file.open("rb") as handle:
                handle.seek(-size, 2)
                raw = handle.read(size)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{file}: damaged ({error}); build the store again.") from error
        return np.frombuffer(self._checked(raw, str(file)), dtype="<u8").reshape(per_shard, 2)

    @staticmethod
    def _checked(raw: bytes, what: str) -> bytes:
        body, checksum = raw[:-4], raw[-4:]
        if google_crc32c.value(body).to_bytes(4, "little") != checksum:
            raise UserError(f"{what}: the checksum does not agree, the file is damaged; build the store again.")
        return body
