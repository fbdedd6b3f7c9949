"""FASTA, plain, gzip or bgzip: lengths, checks and base codes in streaming passes; nothing is written beside it."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seq2exp.errors import UserError

BASES = "ACGTN"  # code = position
_IUPAC = b"RYSWKMBDHV"
_BLOCK = 16 * 2**20
_KNOWN = b"ACGTNacgtn"
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")

CODES = np.full(256, 4, dtype=np.uint8)
for _code, _base in enumerate("ACGT"):
    CODES[ord(_base)] = CODES[ord(_base.lower())] = _code


@dataclass
class FastaIndex:
    """Records of a FASTA file in file order: length in bases, and how many IUPAC letters become N."""

    path: Path
    lengths: dict[str, int] = field(default_factory=dict)
    ambiguous: dict[str, int] = field(default_factory=dict)


def scan_fasta(path: Path) -> FastaIndex:
    """Reads the whole file once and checks it.

    Raises:
        UserError: missing, empty or truncated file; a record without sequence or named twice; a letter that is no base
            code; a .fai beside the file that says otherwise.
    """
    index = FastaIndex(path)
    name = ""
    for header, bases in _events(path):
        if header is not None:
            if name:
                _check_record(index, name)
            if header in index.lengths:
                raise UserError(f"{path}: the record {header} occurs twice.")
            name = header
            index.lengths[name] = index.ambiguous[name] = 0
            continue
        if not name:
            raise UserError(f"{path}: does not begin with a '>' header, so it is not a FASTA file.")
        index.lengths[name] += len(bases)
        other = bases.translate(None, _KNOWN)
        if other:
            wrong = other.upper().translate(None, _IUPAC)
            if wrong:
                raise UserError(
                    f"{path}: record {name} contains {chr(wrong[0])!r}; only A C G T N and the IUPAC ambiguity codes "
                    "are bases."
                )
            index.ambiguous[name] += len(other)
    if not name:
        raise UserError(f"{path}: holds no FASTA record.")
    _check_record(index, name)
    _check_fai(index)
    return index


def read_codes(path: Path, names: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, codes uint8 (length,)) of the wanted records in file order; A C G T N = 0..4, case ignored."""
    name, parts = "", list[np.ndarray]()
    for header, bases in _events(path):
        if header is not None:
            if name in names:
                yield name, np.concatenate(parts)
            name, parts = header, []
        elif name in names:
            parts.append(CODES[np.frombuffer(bases, dtype=np.uint8)])
    if name in names:
        yield name, np.concatenate(parts)


def write_fasta(path: Path, records: dict[str, np.ndarray], width: int = 60) -> None:
    """Writes codes as a FASTA file with its .fai index."""
    letters = np.frombuffer(BASES.encode(), dtype=np.uint8)
    index = []
    with path.open("wb") as handle:
        for name, codes in records.items():
            handle.write(f">{name}\n".encode())
            index.append(f"{name}\t{len(codes)}\t{handle.tell()}\t{width}\t{width + 1}\n")
            text = letters[codes].tobytes()
            handle.write(b"".join(text[i : i + width] + b"\n" for i in range(0, len(text), width)))
    Path(f"{path}.fai").write_text("".join(index))


def _events(path: Path) -> Iterator[tuple[str | None, bytes]]:
    """(name, b"") at each header, (None, bases) for stretches of sequence without line ends."""
    try:
        with path.open("rb") as handle:
            packed = handle.read(2) == b"\x1f\x8b"
        if packed:
            _check_bgzf_end(path)
        with gzip.open(path, "rb") if packed else path.open("rb") as handle:
            line_start, header = True, None
            while block := handle.read(_BLOCK):
                start = 0
                while start < len(block):
                    if header is not None:
                        end = block.find(b"\n", start)
                        header += block[start : end if end >= 0 else len(block)]
                        if end < 0:
                            break
                        yield _record_name(path, header), b""
                        header, line_start, start = None, True, end + 1
                    elif line_start and block[start : start + 1] == b">":
                        header, start = b"", start + 1
                    else:
                        end = block.find(b"\n>", start)
                        stop = len(block) if end < 0 else end + 1
                        if bases := block[start:stop].translate(None, b"\r\n"):
                            yield None, bases
                        line_start, start = block[stop - 1 : stop] == b"\n", stop
            if header is not None:
                yield _record_name(path, header), b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the compressed FASTA is truncated or damaged ({error}); fetch it again.") from error


def _record_name(path: Path, header: bytes) -> str:
    words = header.decode("utf-8", errors="replace").split()
    if not words:
        raise UserError(f"{path}: a FASTA header has no name.")
    return words[0]


def _check_bgzf_end(path: Path) -> None:
    """A bgzip file ends with an empty block; without it the file was cut between two blocks."""
    with path.open("rb") as handle:
        head = handle.read(18)
        if head[12:14] != b"BC" or not head[3] & 4:
            return
        handle.seek(-min(len(_BGZF_END), path.stat().st_size), 2)
        if handle.read() != _BGZF_END:
            raise UserError(f"{path}: the bgzip end marker is missing, so the file is truncated; fetch it again.")


def _check_record(index: FastaIndex, name: str) -> None:
    if not index.lengths[name]:
        raise UserError(f"{index.path}: record {name} has a header but no sequence; the file may be truncated.")


def _check_fai(index: FastaIndex) -> None:
    fai = Path(f"{index.path}.fai")
    if not fai.exists():
        return
    try:
        listed = {fields[0]: int(fields[1]) for fields in map(str.split, fai.read_text().splitlines()) if fields}
    except (IndexError, ValueError) as error:
        raise UserError(f"{fai}: not a FASTA index; delete it or run samtools faidx.") from error
    for name, length in listed.items():
        found = index.lengths.get(name, 0)
        if found != length:
            raise UserError(
                f"{index.path}: record {name} has {found:,} bases where {fai.name} says {length:,}; the file is "
                "truncated or the index is stale."
            )
