"""The process of one run: `python -m MODULE OUT RUN DEVICE`."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seq2exp.errors import UserError
from seq2exp.files import write_json

from .plan import R, read_plan

RESULT, FAILED = "result.json", "failed.txt"


def main(kind: type[R], perform: Callable[[R, Path, str], dict[str, Any]], out: str, name: str, device: str) -> int:
    """Perform the run of that folder and write its result; a user's mistake is said in one sentence, exit code 2."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    run = next(run for run in read_plan(Path(out), kind) if run.folder == name)
    try:
        result = perform(run, Path(out), device)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    write_json(Path(out) / name / RESULT, result)
    return 0


def _end_with(parent: int) -> None:
    """A run does not outlive the job that started it, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
