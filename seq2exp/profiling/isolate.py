"""Work in a process of its own under a memory limit, so that running out of memory stops that work and nothing else."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from seq2exp.errors import UserError, is_out_of_memory

WATCH_SECONDS = 0.005
MARGIN = 0.95  # share of the free memory that is used, so that the machine does not swap
CGROUP = Path("/sys/fs/cgroup")
CHILD = f"import sys; from {__name__} import serve; serve(sys.argv[1])"


class OutOfMemory(UserError):
    """The work needs more memory than it may use, or than there is."""


class Answer(NamedTuple):
    """What the function returned, and the largest resident set of its process in bytes."""

    value: Any
    resident: int


def in_process(function: Callable[..., Any], *arguments: Any, limit: int | None = None) -> Answer:
    """function(*arguments) in a new Python process, killed when its resident set passes `limit` bytes.

    Function, arguments and result are pickled. Raises OutOfMemory, the function's UserError, or RuntimeError with the
    traceback of any other exception.
    """
    with tempfile.TemporaryDirectory(prefix="seq2exp-") as name:
        folder = Path(name)
        (folder / "request").write_bytes(pickle.dumps((function, arguments)))
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen([sys.executable, "-c", CHILD, name], stdout=said, stderr=said)
        try:
            resident = _watch(process, limit)
        finally:
            process.kill()
            process.wait()
        if limit is not None and resident > limit:
            raise OutOfMemory(f"out of memory: needs more than the {gigabytes(limit)} that it may use")
        answer = folder / "answer"
        if not answer.exists():
            if process.returncode == -9:
                raise OutOfMemory(f"out of memory: the system stopped it at {gigabytes(resident)}")
            raise RuntimeError((folder / "said").read_text(errors="replace"))
        value = pickle.loads(answer.read_bytes())
    if isinstance(value, UserError):
        raise value
    if isinstance(value, _Failure):
        raise RuntimeError(value)
    return Answer(value, resident)


def free_memory(device: str) -> int:
    """Bytes that a new process may use without swapping, or of the GPU's memory."""
    if device == "cuda":  # asked in another process, because a process that asks takes some
        free: int = in_process(torch.cuda.mem_get_info).value[0]
        return free
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # a container or a batch system may allow less
        free = min(free, int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    return int(MARGIN * free)


def check_budget(budget: int | None, device: str) -> int:
    """The budget, or all that is free. Raises UserError when it is more than is free."""
    free = free_memory(device)
    if budget is not None and budget > free:
        raise UserError(
            f"the budget of {gigabytes(budget)} is more than the {gigabytes(free)} that are free on {device}"
        )
    return budget or free


def memory_size(text: str | None) -> int | None:
    """Bytes of "10GB", "500 MB", "8GiB" or a plain number; None of None. Raises UserError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+\.?\d*) *([kmgt]?)(i?)b?", text.strip().lower())
    number, prefix, binary = found.groups() if found else ("0", "", "")
    size = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))
    if size == 0:
        raise UserError(f"{text!r} is not an amount of memory: give one as 10GB, 500MB or 8GiB")
    return size


def gigabytes(size: float) -> str:
    """Three digits: 10.2 GB, 31 MB, 4.57 kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


class _Failure(str):
    """The traceback of an unexpected exception."""


def _watch(process: subprocess.Popen[bytes], limit: int | None) -> int:
    """The largest resident set until the process ends or passes the limit."""
    watched, largest = psutil.Process(process.pid), 0
    while process.poll() is None and (limit is None or largest <= limit):
        try:
            largest = max(largest, watched.memory_info().rss)
            process.wait(WATCH_SECONDS)
        except (subprocess.TimeoutExpired, psutil.Error):
            continue
    return largest


def serve(name: str) -> None:
    """The other side of `in_process`: answers the request in the folder `name`."""
    folder = Path(name)
    try:
        function, arguments = pickle.loads((folder / "request").read_bytes())
        value = function(*arguments)
    except UserError as error:
        value = error
    except Exception as error:
        if is_out_of_memory(error):
            asked = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
            value = OutOfMemory(
                f"out of memory: {f'{asked[1]} more' if asked else 'what it asked for'} could not be had"
            )
        else:
            value = _Failure(traceback.format_exc())
    (folder / "answer.partial").write_bytes(pickle.dumps(value))
    (folder / "answer.partial").rename(folder / "answer")
