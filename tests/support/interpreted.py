"""Runs a file of interpreted tests (see triton_interpreter.py) in a process of its own, with TRITON_INTERPRET=1.

A process interprets kernels or compiles them, never both.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree


def failures(tests: Path, marks: str, report: Path) -> dict[str, list[str]]:
    """Of each test, without parameters. marks: for pytest's -m. report: a file to write."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(tests), "-m", marks, f"--junitxml={report}"],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert report.exists(), run.stdout[-5000:] + run.stderr[-5000:]
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failed = found.setdefault(case.attrib["name"].partition("[")[0], [])
        failed += [f"{case.attrib['name']}\n{x.text}" for x in (*case.iter("failure"), *case.iter("error"))]
    return found


def names(tests: Path, slow: bool) -> list[str]:
    """Of the tests, from the text: the file itself cannot be imported where kernels are compiled."""
    marked = re.findall(r"((?:^@pytest.*\n(?:[ )].*\n)*)*)^def (test_\w+)", tests.read_text(), re.MULTILINE)
    return [name for decorators, name in marked if ("pytest.mark.slow" in decorators) == slow]
