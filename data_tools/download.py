"""Downloading a file over HTTP: resumable, checked, and never half-written under its final name."""

import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seq2exp.errors import UserError

TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 5  # in a row without a new byte
_PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
_BLOCK = 2**20
_BROKEN = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)

Report = Callable[[int, int | None], None]  # bytes there, bytes in all (None: not known)


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes:
        url: where it is.
        size: bytes; None: not known.
        md5: hexadecimal, as the server publishes it; None: not known.
        sha256: hexadecimal, of an earlier download; None: not known.
    """

    url: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None

    @property
    def checked(self) -> bool:
        """Whether a checksum tells that a download is right."""
        return bool(self.md5 or self.sha256)


def download(remote: Remote, path: Path, *, timeout: float = TIMEOUT, report: Report = lambda there, size: None) -> str:
    """Downloads to ``<path>.partial`` and gives it its name once its size and checksum agree.

    A broken connection is taken up where it broke, and a partial file of an earlier call is continued where a checksum
    will tell whether the two halves belong together.

    Args:
        timeout: seconds without a byte after which a connection counts as broken.

    Returns:
        The sha256 of the file.

    Raises:
        UserError: the server refuses the file, the connection breaks ``ATTEMPTS`` times without a new byte, the
            checksum is wrong, or the disk is full; the partial file is kept unless it is wrong.
    """
    partial = path.with_name(f"{path.name}.partial")
    if not remote.checked:
        partial.unlink(missing_ok=True)
    resumed = partial.exists()
    _transfer(remote, partial, timeout, report)
    wrong, sha256 = check(remote, partial)
    if wrong and resumed:  # what was there before may be of another version
        partial.unlink()
        _transfer(remote, partial, timeout, report)
        wrong, sha256 = check(remote, partial)
    if wrong:
        partial.unlink()
        raise UserError(f"{remote.url}: {wrong}; nothing was kept, run the same command again.")
    partial.replace(path)
    return sha256


def check(remote: Remote, path: Path) -> tuple[str, str]:
    """What is wrong with a file that should be the remote one, in words, empty when nothing is; and its sha256."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"{path.name} has {size:,} bytes instead of {remote.size:,}", ""
    digests = _digests(path)
    for name, found, expected in zip(("md5", "sha256"), digests, (remote.md5, remote.sha256), strict=True):
        if expected is not None and found != expected:
            return f"{path.name} has the {name} {found} instead of {expected}", digests[1]
    return "", digests[1]


def get(url: str, *, timeout: float = TIMEOUT) -> bytes:
    """The body of a small document. Raises UserError as ``download`` does."""
    for attempt in range(ATTEMPTS):
        _wait(attempt)
        try:
            with urllib.request.urlopen(_request(url), timeout=timeout) as response:
                body: bytes = response.read()
                return body
        except _BROKEN as error:
            last: Exception = error
            _check_final(url, error)
    raise _gave_up(url, last)


def _transfer(remote: Remote, partial: Path, timeout: float, report: Report) -> None:
    """Gets what is missing of the partial file, over as many connections as it takes."""
    failures = 0
    while True:
        before = _size(partial)
        try:
            _receive(remote, partial, timeout, report)
            return
        except _BROKEN as error:
            _check_final(remote.url, error)
            failures = 1 if _size(partial) > before else failures + 1
            if failures >= ATTEMPTS:
                raise _gave_up(remote.url, error) from error
            _wait(failures)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{partial}: {reason}; what is there is kept, mend that and run the same again.") from error


def _receive(remote: Remote, partial: Path, timeout: float, report: Report) -> None:
    """One connection: appends to the partial file, or begins it anew where the server does not go on.

    Raises:
        http.client.IncompleteRead: the connection ended before the last byte.
    """
    there = _size(partial)
    if remote.size is not None and there > remote.size:
        there = 0
    if there and there == remote.size:
        return
    try:
        response = urllib.request.urlopen(_request(remote.url, there), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not there:
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(there):
            return  # complete
        partial.unlink()
        raise ConnectionError("the server has less than was already there") from error
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            there = 0
        length = response.headers.get("Content-Length")
        total = there + int(length) if length is not None else remote.size
        with partial.open("ab" if there else "wb") as file:
            report(there, total)
            while block := response.read1(_BLOCK):
                file.write(block)
                there += len(block)
                report(there, total)
        if total is not None and there < total:
            raise http.client.IncompleteRead(b"", total - there)


def _request(url: str, start: int = 0) -> urllib.request.Request:
    headers = {"User-Agent": "seq2exp", "Accept-Encoding": "identity"}
    return urllib.request.Request(url, headers=headers | ({"Range": f"bytes={start}-"} if start else {}))


def _check_final(url: str, error: Exception) -> None:
    """Raises UserError for an answer that asking again will not change."""
    if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 425, 429):
        hint = "; it wants a login" if error.code in (401, 403) else ""
        raise UserError(f"{url}: the server says {error.code} {error.reason}{hint}.") from error


def _gave_up(url: str, error: Exception) -> UserError:
    missing = error.expected if isinstance(error, http.client.IncompleteRead) else None
    if isinstance(error, urllib.error.HTTPError):
        reason = f"the server says {error.code} {error.reason}"
    elif missing:
        reason = f"the connection was cut, {missing:,} bytes are missing"
    else:
        reason = str(getattr(error, "reason", None) or error or "timed out").strip()
    return UserError(f"{url}: {reason}; what is there is kept, run the same command again to go on.")


def _wait(failures: int) -> None:
    if failures:
        time.sleep(_PAUSE * 2 ** (failures - 1))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digests(path: Path) -> tuple[str, str]:
    """md5 and sha256 of a file in one pass."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(16 * _BLOCK):
            md5.update(block)
            sha256.update(block)
    return md5.hexdigest(), sha256.hexdigest()
