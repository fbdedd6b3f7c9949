"""Carrying out the run list: some runs at a time, each in a process of its own; what is done is not repeated."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from seq2exp.errors import UserError

from .one import FAILED, RESULT
from .plan import Run, keep_plan, read_plan

# Of a run on one idle CPU core: seconds per base and layer, and for simulating, validating and scoring.
SECONDS_PER_WORK, SECONDS_BESIDE = 3.7e-6, 20.0
POLL = 0.2  # seconds
LOG = "log.txt"

Result = dict[str, Any]


@dataclass
class Study:
    """A study in a folder.

    Attributes:
        out: runs.json, data/ (simulated genomes) and runs/ (one folder each, with result.json or failed.txt).
        runs: the run list.
        results: of the runs that are done, by folder.
        failed: the reason, by folder.
    """

    out: Path
    runs: Sequence[Run]
    results: dict[str, Result] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, out: Path, runs: Sequence[Run]) -> Study:
        """A new study, or that of the folder if its run list is the same; raises UserError if it is another."""
        keep_plan(out, runs)
        return cls(out, runs)._read()

    @classmethod
    def found(cls, out: Path) -> Study:
        """The study of a folder. Raises UserError when there is none."""
        return cls(out, read_plan(out))._read()

    def _read(self) -> Study:
        for run in self.runs:
            self._look_at(run)
        return self

    def _look_at(self, run: Run) -> None:
        result, failed = self.out / run.folder / RESULT, self.out / run.folder / FAILED
        if result.exists():
            try:
                self.results[run.folder] = json.loads(result.read_text())
            except ValueError:
                raise UserError(f"{result}: cannot be read; delete it, and the run is scored again") from None
        elif failed.exists():
            self.failed[run.folder] = failed.read_text().strip()

    @property
    def to_do(self) -> list[Run]:
        """Runs without a result, those that failed among them."""
        return [run for run in self.runs if run.folder not in self.results]

    def seconds(self, run: Run) -> float:
        """What a run takes, from those that are done; from one idle CPU core where none is."""
        done = [(result["seconds"], Run(**result["run"]).work) for result in self.results.values()]
        ratio = sum(s for s, _ in done) / sum(SECONDS_BESIDE + SECONDS_PER_WORK * w for _, w in done) if done else 1.0
        return ratio * (SECONDS_BESIDE + SECONDS_PER_WORK * run.work)

    def remaining(self, workers: int) -> float:
        """Seconds to the end."""
        return sum(map(self.seconds, self.to_do)) / max(1, min(workers, len(self.to_do)))

    def carry_out(self, workers: int, device: str, report: Callable[[], None], progress: Progress) -> None:
        """Do what is to do, `workers` runs at a time, with one thread each; `report` is called after every run.

        A run that fails is recorded and stops no other. Interrupted, it ends the runs that are going on; they continue
        from their last checkpoint the next time.
        """
        for left in self.out.glob("data/*.partial"):
            shutil.rmtree(left)
        waiting = list(self.to_do)
        active: dict[subprocess.Popen[bytes], Run] = {}
        task = progress.add_task("runs", total=len(self.runs), completed=len(self.results))
        try:
            while waiting or active:
                while waiting and len(active) < workers:
                    run = waiting.pop(0)
                    self.failed.pop(run.folder, None)
                    active[self._start(run, device)] = run
                for process in [process for process in active if process.poll() is not None]:
                    run = active.pop(process)
                    self._finish(run, process.returncode)
                    progress.console.print(self.line(run), highlight=False, soft_wrap=True)
                    progress.advance(task)
                    report()
                time.sleep(POLL)
        finally:
            for process in active:
                process.terminate()
            for process in active:
                process.wait()

    def _start(self, run: Run, device: str) -> subprocess.Popen[bytes]:
        folder = self.out / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILED).unlink(missing_ok=True)
        command = [sys.executable, "-m", "seq2exp.study.one", str(self.out), run.folder, device]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with (folder / LOG).open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | threads)

    def _finish(self, run: Run, code: int) -> None:
        folder = self.out / run.folder
        if not (folder / RESULT).exists():
            said = (folder / LOG).read_text(errors="replace").strip().splitlines() or [""]
            (folder / FAILED).write_text(f"exit code {code}: {said[-1]}\n")
        self._look_at(run)

    def line(self, run: Run) -> str:
        """What came of a run."""
        number = f"[{len(self.results)}/{len(self.runs)}] {run.title}: "
        if run.folder in self.failed:
            return f"{number}FAILED, {self.failed[run.folder]}"
        result = self.results[run.folder]
        said = f"R2 {result['expression']['r2'] or 0:.3f}, {result['seconds']:.0f} s"
        if result["precision"]:
            bases, elements = result["precision"]["soft mask"]
            said = (
                f"AUPRC {bases:.3f} over bases (best rival {result['best_rival']:.3f}), {elements:.3f} over elements, "
                f"{'learned' if result['learned'] else 'not learned'}, {said}"
            )
        return number + said


def progress_bar(**console: Any) -> Progress:
    from rich.console import Console

    columns = (TextColumn("{task.completed:.0f} of {task.total:.0f} runs"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True, **console))
