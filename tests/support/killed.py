"""Runs a function in a process of its own and kills that at a chosen change of the file system."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seq2exp.data_tools import build_store, import_official

_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate")


def build(fields: dict[str, Any]) -> None:
    """Here, because the other process can import this module, but no test."""
    build_store(**fields)


def import_small(root: Path, out: Path) -> None:
    import_official(root, "K562", out)


def start(call: Callable[..., Any], *arguments: Any, kill_at: int = 0, delay: float = 0.0) -> Any:
    """Starts call(*arguments); kill_at: the how many-th change brings SIGKILL, `delay` seconds later; 0: none.

    The processes are forked from a server that has imported the package, which takes milliseconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["seq2exp.data_tools.workspace"])
    changes = context.Value("i", 0)
    process = context.Process(target=_run, args=(changes, kill_at, delay, call, arguments))
    process.start()
    process.changes = changes  # type: ignore[attr-defined]
    return process


def run(call: Callable[..., Any], *arguments: Any, kill_at: int = 0, delay: float = 0.0) -> tuple[bool, int]:
    """As ``start``, to the end: whether it was killed, and how many changes there were."""
    process = start(call, *arguments, kill_at=kill_at, delay=delay)
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), f"exit code {process.exitcode}"
    return process.exitcode != 0, process.changes.value


def _run(changes: Any, kill_at: int, delay: float, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event not in _CHANGES and not (event == "open" and _writes(given)):
            return
        changes.value += 1
        if changes.value == kill_at:
            threading.Thread(target=_kill, args=(delay,), daemon=True).start() if delay else _kill(0)

    sys.addaudithook(watch)
    call(*arguments)


def _writes(given: tuple[Any, ...]) -> bool:
    path, _, flags = given
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) and not str(path).startswith("/dev/")


def _kill(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)
