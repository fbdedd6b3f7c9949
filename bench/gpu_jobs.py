"""Child processes with a time limit and a log, and journals: files of one JSON record a line that survive a crash."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """status: "ok", "failed" or "timeout"; note: why not ok."""

    status: str
    seconds: float
    note: str = ""


class Job:
    """A command that starts at once, in its own process group, with stdout and stderr in `log`."""

    def __init__(self, command: Sequence[object], limit: float, log: Path, environment: Mapping[str, str]) -> None:
        self.limit, self.log = limit, log
        self._start = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=dict(environment), start_new_session=True,
            )  # fmt: skip

    def wait(self) -> Outcome:
        """Until the command ends or its limit is over; then it is killed with its children."""
        try:
            code = self._process.wait(max(0.0, self._start + self.limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            return Outcome("timeout", self._seconds(), f"stopped after {self.limit:.0f} s")
        self.kill()  # what it may have left running
        if code == 0:
            return Outcome("ok", self._seconds())
        return Outcome("failed", self._seconds(), f"exit code {code}: {last_line(self.log)}")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _seconds(self) -> float:
        return time.monotonic() - self._start


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def append(journal: Path, record: dict) -> None:
    with journal.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read(journal: Path) -> list[dict]:
    """The records, without a last one that was cut off."""
    if not journal.exists():
        return []
    records = []
    for line in journal.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
