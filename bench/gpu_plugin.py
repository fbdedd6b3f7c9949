"""pytest plugin of `make gpu`: what was collected and how each test ended, into the journal GPU_TEST_JOURNAL.

A journal, because a kernel that hangs or crashes takes the report of the whole process with it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gpu_jobs import append

JOURNAL = Path(os.environ["GPU_TEST_JOURNAL"])


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
