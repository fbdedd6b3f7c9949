"""pytest plugin of `make gpu`: what was collected and how each test ended, into the journal GPU_TEST_JOURNAL.

A journal, because a kernel that hangs or crashes takes the report of the whole process with it. GPU_TEST_SHARD=1/4 runs
a quarter of the tests: compiling Triton kernels takes most of the time, and processes do that side by side.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
from gpu_jobs import append

JOURNAL = Path(os.environ["GPU_TEST_JOURNAL"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests with the same parameters use the same kernels and stay together."""
    part, parts = map(int, os.environ.get("GPU_TEST_SHARD", "0/1").split("/"))
    mine = [item for item in items if zlib.crc32(item.name.partition("[")[2].encode()) % parts == part]
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = mine


def pytest_collection_finish(session: pytest.Session) -> None:
    append(JOURNAL, {"collected": [item.nodeid for item in session.items]})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    reason = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = (crash.message if crash else str(report.longrepr)).splitlines()[0][:300]
    outcome = "failed" if report.failed else report.outcome
    append(JOURNAL, {"test": report.nodeid, "outcome": outcome, "reason": reason, "seconds": round(report.duration, 2)})
