"""The folder in which a store grows: finished arrays are noted, so that a killed build is taken up again.

With several workers each array is read, converted and written in a process of its own; this process only notes which
ones are finished.
"""

import errno
import json
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from seq2exp.data_tools.arrays import write_array

log = logging.getLogger(__name__)

NOTES = "build.json"  # which arrays are finished, and the state of the build


class Job(NamedTuple):
    """One array to write, and what gives its values: a function of no arguments that can be pickled."""

    name: str
    values: Callable[[], np.ndarray]


class Workspace:
    """The ``.partial`` folder: a Zarr group, and a list of the arrays in it that are finished."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path = path
        self._file = path / NOTES
        self._state = state
        self.finished: set[str] = set()
        if path.exists() and not self._resume():
            log.warning("%s: belongs to a build from other inputs; it is begun again.", path)
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        self.group = zarr.open_group(path, mode="a")
        self._save()

    def _resume(self) -> bool:
        try:
            found = json.loads(self._file.read_text())
            if found["state"] != json.loads(json.dumps(self._state)):
                return False
            self.finished = set(found["finished"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if self.finished:
            log.info("%s: %d finished arrays are kept.", self.path, len(self.finished))
        for file in self.path.rglob("*.partial"):  # what zarr was writing when the build was killed
            if file.is_file():
                file.unlink()
        return True

    def write(self, jobs: Iterable[Job], workers: int, done: Callable[[str], None]) -> None:
        """Writes the arrays of the jobs, `workers` at a time, and calls done(name) after each."""
        if workers == 1:
            for job in jobs:
                write_array(self.group, job.name, job.values())
                self._finish(job.name, done)
            return
        try:
            self._write_in_processes(jobs, workers, done)
        except BrokenProcessPool as error:
            raise OSError(
                errno.ENOMEM, "a worker process was killed, perhaps for lack of memory (use fewer --workers)"
            ) from error

    def share(self, name: str, folder: Path) -> None:
        """Makes an array of another store also one of this: both names for the same files, where the disk allows it."""
        shutil.rmtree(self.path / name, ignore_errors=True)
        self.group.require_group(name.rpartition("/")[0])
        shutil.copytree(folder, self.path / name, copy_function=_link)
        self.keep({name})

    def keep(self, names: set[str]) -> None:
        """Counts arrays as finished."""
        self.finished |= names
        self._save()

    def _write_in_processes(self, jobs: Iterable[Job], workers: int, done: Callable[[str], None]) -> None:
        # zarr's and torch's threads do not survive a fork of this process; its server has none, and has imported them
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
            running: set[Future[str]] = set()
            try:
                for job in jobs:
                    if len(running) > workers:  # a job may carry a whole chromosome: one in hand, no more
                        running = self._collect(running, FIRST_COMPLETED, done)
                    self.group.require_group(job.name.rpartition("/")[0])  # here, so that workers do not race for it
                    running.add(pool.submit(_write_job, self.path, job))
                self._collect(running, "ALL_COMPLETED", done)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _collect(self, running: set[Future[str]], when: str, done: Callable[[str], None]) -> set[Future[str]]:
        finished, still = wait(running, return_when=when)
        for future in finished:
            self._finish(future.result(), done)
        return still

    def _finish(self, name: str, done: Callable[[str], None]) -> None:
        self.finished.add(name)
        self._save()
        done(name)

    def _save(self) -> None:
        text = json.dumps({"state": self._state, "finished": sorted(self.finished)})
        new = self._file.with_suffix(".new")
        new.write_text(text)
        new.replace(self._file)

    def publish(self, attributes: dict[str, Any], out: Path) -> None:
        """Writes the store's attributes and gives the store its name."""
        self.group.attrs.put({"seq2exp": attributes})
        self.path.rename(out)
        (out / self._file.name).unlink()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that knows no links
        shutil.copy2(source, target)


def _write_job(path: Path, job: Job) -> str:
    write_array(zarr.open_group(path, mode="a"), job.name, job.values())
    return job.name


def _end_with_parent() -> None:
    """A worker of a killed build must not go on writing into the folder that the next build takes up."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        wait_for_process([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
