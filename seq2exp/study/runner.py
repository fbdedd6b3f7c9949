"""Carrying out the study, and how long it takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from rich.progress import Progress

from seq2exp.runlist import RunList, Slot
from seq2exp.runlist.pool import Result

from .plan import Run

# Of a run on one idle CPU core: seconds per base and layer, and for simulating, validating and scoring.
SECONDS_PER_WORK, SECONDS_BESIDE = 3.7e-6, 20.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Study(RunList[Run]):
    """A study in a folder, which also has data/ (simulated genomes)."""

    kind, module = Run, "seq2exp.study.one"

    def seconds(self, run: Run) -> float:
        """What a run takes, from those that are done; from one idle CPU core where none is."""
        done = [(result["seconds"], Run(**result["run"]).work) for result in self.results.values()]
        ratio = sum(s for s, _ in done) / sum(SECONDS_BESIDE + SECONDS_PER_WORK * w for _, w in done) if done else 1.0
        return ratio * (SECONDS_BESIDE + SECONDS_PER_WORK * run.work)

    def remaining(self, workers: int) -> float:
        """Seconds to the end."""
        return sum(map(self.seconds, self.to_do)) / max(1, min(workers, len(self.to_do)))

    def carry_out(self, workers: int, device: str, report: Callable[[], None], bar: Progress) -> None:
        """Do what is to do, `workers` runs at a time, with one thread each; otherwise as `perform`."""
        self.perform(self.to_do, [Slot(device, ONE_THREAD)] * workers, report, bar)

    def tidy(self) -> None:
        for left in self.out.glob("data/*.partial"):
            shutil.rmtree(left)

    def said(self, result: Result) -> str:
        said = f"R2 {result['expression']['r2'] or 0:.3f}, {result['seconds']:.0f} s"
        if result["precision"]:
            bases, elements = result["precision"]["soft mask"]
            said = (
                f"AUPRC {bases:.3f} over bases (best rival {result['best_rival']:.3f}), {elements:.3f} over elements, "
                f"{'learned' if result['learned'] else 'not learned'}, {said}"
            )
        return said
