"""Carrying out a run list: some runs at a time, each in a process of its own; what is done is not repeated."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from seq2exp.errors import UserError

from .child import FAILED, RESULT
from .plan import R, keep_plan, read_plan

POLL = 0.2  # seconds
LOG = "log.txt"
TAIL = 4_096  # bytes of metrics.csv, some rows

Result = dict[str, Any]


class Slot(NamedTuple):
    """Where one run at a time can be: its device, and variables of its process."""

    device: str
    variables: dict[str, str]


class RunList(Generic[R]):
    """The runs of a job, in its folder.

    Attributes:
        out: runs.json, and a folder for each run, with result.json or failed.txt.
        runs: the run list.
        results: of the runs that are done, by folder.
        failed: the reason, by folder.
    """

    kind: ClassVar[type[Any]]  # of runs
    module: ClassVar[str]  # that performs a run: `python -m MODULE OUT RUN DEVICE`, see `child.main`

    def __init__(self, out: Path, runs: Sequence[R]) -> None:
        self.out, self.runs = out, runs
        self.results: dict[str, Result] = {}
        self.failed: dict[str, str] = {}
        for run in runs:
            self._look_at(run)

    @classmethod
    def begin(cls, out: Path, runs: Sequence[R]) -> Self:
        """A new job, or that of the folder if its run list is the same; raises UserError if it is another."""
        keep_plan(out, runs)
        return cls(out, runs)

    @classmethod
    def found(cls, out: Path) -> Self:
        """The job of a folder. Raises UserError when there is none."""
        return cls(out, read_plan(out, cls.kind))

    @property
    def to_do(self) -> list[R]:
        """Runs without a result, those that failed among them."""
        return [run for run in self.runs if run.folder not in self.results]

    def obstacle(self, run: R) -> str | None:
        """Why a run cannot be started, now or later."""
        return f"it needs {run.source}, which failed" if run.source in self.failed else None

    def ready(self, run: R) -> bool:
        """Whether what it needs of other runs is there."""
        return run.source is None or run.source in self.results

    def tidy(self) -> None:
        """Take away what an interrupted job left; no other process is at work in the folder."""

    def line(self, run: R) -> str:
        """What came of a run."""
        failed = self.failed.get(run.folder)
        return f"{run.title}: " + (f"FAILED, {failed}" if failed else self.said(self.results[run.folder]))

    def said(self, result: Result) -> str:
        """A result in a few words."""
        raise NotImplementedError

    def perform(self, runs: Sequence[R], slots: Sequence[Slot], report: Callable[[], object], bar: Progress) -> None:
        """Do these runs of the list, one in each slot at a time, in order; `report` is called after every run.

        A run that fails is recorded and stops no other. Interrupted, it ends the runs that are going on; they continue
        from their last checkpoint the next time.

        Raises:
            UserError: another process carries out the runs of this folder.
        """
        waiting, idle, past = list(runs), list(slots), 0
        for run in waiting:
            self.failed.pop(run.folder, None)
        active: dict[subprocess.Popen[bytes], tuple[R, Slot, TaskID]] = {}
        with alone(self.out):
            keep_plan(self.out, self.runs)
            self.tidy()
            try:
                while waiting or active:
                    ended = [run for run in waiting if self._given_up(run)]
                    waiting = [run for run in waiting if run not in ended]
                    for run in [run for run in waiting if self.ready(run)][: len(idle)]:
                        waiting.remove(run)
                        slot = idle.pop(0)
                        task = bar.add_task(run.title, total=run.training["steps"])
                        active[self._start(run, slot)] = run, slot, task
                    for process in [process for process in active if process.poll() is not None]:
                        run, slot, task = active.pop(process)
                        bar.remove_task(task)
                        idle.append(slot)
                        self._finish(run, process.returncode)
                        ended.append(run)
                    for run, _, task in active.values():
                        bar.update(task, completed=self._step(run))
                    for run in ended:
                        past += 1
                        line = f"[{past}/{len(runs)}] {self.line(run)}"
                        bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
                        report()
                    time.sleep(POLL)
            finally:
                for process in active:
                    process.terminate()
                for process in active:
                    process.wait()

    def _step(self, run: R) -> int:
        """The last step that a run has logged."""
        try:
            with (self.out / run.folder / "metrics.csv").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
                whole = file.read().split(b"\n")[1:-1]  # without a row that is cut, or being written
        except OSError:
            return 0
        return int(whole[-1].split(b",")[0]) if whole and whole[-1][:1].isdigit() else 0

    def _given_up(self, run: R) -> bool:
        reason = self.obstacle(run)
        if reason is not None:
            self._fail(run, reason)
        return reason is not None

    def _start(self, run: R, slot: Slot) -> subprocess.Popen[bytes]:
        folder = self.out / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILED).unlink(missing_ok=True)
        command = [sys.executable, "-m", self.module, str(self.out), run.folder, slot.device]
        with (folder / LOG).open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | slot.variables)

    def _finish(self, run: R, code: int) -> None:
        folder = self.out / run.folder
        if (folder / RESULT).exists():
            self._look_at(run)
        else:
            said = (folder / LOG).read_text(errors="replace").strip().splitlines() or [""]
            self._fail(run, f"exit code {code}: {said[-1]}")

    def _fail(self, run: R, reason: str) -> None:
        folder = self.out / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAILED).write_text(reason + "\n")
        self.failed[run.folder] = reason

    def _look_at(self, run: R) -> None:
        result, failed = self.out / run.folder / RESULT, self.out / run.folder / FAILED
        if result.exists():
            try:
                self.results[run.folder] = json.loads(result.read_text())
            except ValueError:
                raise UserError(f"{result}: cannot be read; delete it, and the run is scored again") from None
        elif failed.exists():
            self.failed[run.folder] = failed.read_text().strip()


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps other processes from carrying out the runs of a folder, until the block or this process ends, however it
    ends. Raises UserError when another one is at it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "runs.lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{out}: another process is carrying out its runs: wait until that has ended, or give another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def progress_bar(**console: Any) -> Progress:
    """A line for each run that is going on, by its steps."""
    from rich.console import Console

    steps = TextColumn("{task.completed:,.0f} of {task.total:,.0f} steps")
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        steps,
        TimeElapsedColumn(),
        console=Console(stderr=True, **console),
    )
