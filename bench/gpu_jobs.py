"""Child processes with a time limit and a log, and journals: files of one JSON record a line that survive a crash."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
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
    """A command that starts at once, in its own process group, with stdout and stderr in `log`.

    When its limit is over it is killed, with what it started, whether or not anybody waits.
    """

    def __init__(self, command: Sequence[object], limit: float, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self._start = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=dict(environment), start_new_session=True,
            )  # fmt: skip
        self._outcome: Outcome | None = None
        self._watch = threading.Thread(target=self._watched, args=(limit,), daemon=True)
        self._watch.start()

    def wait(self) -> Outcome:
        self._watch.join()
        assert self._outcome
        return self._outcome

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _watched(self, limit: float) -> None:
        try:
            code = self._process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        seconds = time.monotonic() - self._start
        self.kill()
        self._process.wait()
        if code is None:
            self._outcome = Outcome("timeout", seconds, f"stopped after {limit:.0f} s")
        elif code:
            self._outcome = Outcome("failed", seconds, f"exit code {code}: {last_line(self.log)}")
        else:
            self._outcome = Outcome("ok", seconds)


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
