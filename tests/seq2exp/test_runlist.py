"""The folder of a run list: one process at a time is at work in it, however the one before ended."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from seq2exp.errors import UserError
from seq2exp.runlist import RunList, Slot, alone, keep_plan, progress_bar
from seq2exp.runlist.child import RESULT

NAP = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1], sys.argv[2])
(folder / "pid").write_text(str(os.getpid()) + " ")
until = time.monotonic() + 120
while not (folder / "wake").exists() and time.monotonic() < until:
    time.sleep(0.02)
(folder / "result.json").write_text("{}")
"""


@dataclass(frozen=True)
class Nap:
    """A run that trains nothing and waits to be woken."""

    name: str
    hours: int = 8
    training: ClassVar[dict[str, Any]] = {"steps": 1}
    source: ClassVar[str | None] = None

    @property
    def title(self) -> str:
        return self.name

    @property
    def folder(self) -> str:
        return f"runs/{self.name}"

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "hours": self.hours}


class Naps(RunList[Nap]):
    kind, module = Nap, "nap"

    def said(self, result: dict[str, Any]) -> str:
        return "slept"


def carry_out(out: Path) -> None:
    naps = Naps.begin(out, [Nap("a")])
    with progress_bar(quiet=True) as bar:
        naps.perform(naps.to_do, [Slot("cpu", {"PYTHONPATH": str(out.parent)})], lambda: None, bar)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    (tmp_path / "nap.py").write_text(NAP)
    out = tmp_path / "out"
    pid, until = out / "runs/a/pid", time.monotonic() + 120
    owner = multiprocessing.get_context("fork").Process(target=carry_out, args=(out,))
    owner.start()
    while not (pid.exists() and pid.read_text().endswith(" ")) and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(UserError, match=r"out: another process is carrying out its runs: wait until that has ended"):
        carry_out(out)
    owner.kill()
    owner.join()
    with alone(out):
        os.kill(int(pid.read_text()), 0)  # its run lives on for a while: that holds nothing
    (out / "runs/a/wake").touch()
    carry_out(out)
    assert (out / "runs/a" / RESULT).exists()


def test_a_changed_list_is_refused_with_each_difference_once(tmp_path):
    keep_plan(tmp_path, [Nap("a"), Nap("b"), Nap("c")])
    with pytest.raises(UserError) as refused:
        keep_plan(tmp_path, [Nap("a", 7), Nap("b", 9), Nap("c", 7), Nap("d")])
    assert str(refused.value).startswith(
        f"{tmp_path / 'runs.json'}: the run list was changed since it began: hours was 8, is 7 (runs/a and 1 more); "
        "hours was 8, is 9 (runs/b); runs/d is new; go on with"
    )


def test_a_study_in_use_is_refused_and_keeps_its_files(seq2exp, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # nothing is started
    half = tmp_path / "data" / "1234_101.77.partial"
    half.mkdir(parents=True)
    with alone(tmp_path):
        code, _, err = seq2exp("study", tmp_path, "--preset", "quick", "--workers", 1, "--device", "cpu")
    assert code == 2 and "another process is carrying out its runs" in err and err.strip().count("\n") == 0
    assert half.exists()
