"""Files as bgzip writes them."""

from __future__ import annotations

import struct
import zlib

_BLOCK = 65_280
END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")  # an empty block


def bgzip(data: bytes) -> bytes:
    """A gzip member for each 65,280 bytes, with its own size in the extra field BC (SAM specification, 4.1)."""
    return b"".join(_member(data[start : start + _BLOCK]) for start in range(0, len(data), _BLOCK)) + END


def _member(data: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    head = struct.pack("<4BI2BH2BHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(body) + 25)
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))
