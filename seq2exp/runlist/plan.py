"""The run list: what is trained on what, fixed when the job begins."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from seq2exp.errors import UserError
from seq2exp.files import write_json

SHOWN = 5  # differences that a refusal names


class Run(Protocol):
    """A dataclass of what JSON can hold. training: settings of `TrainConfig`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def training(self) -> dict[str, Any]: ...

    @property
    def title(self) -> str:
        """For people."""

    @property
    def folder(self) -> str:
        """Where in the job's folder it is; unique in its list."""

    @property
    def source(self) -> str | None:
        """The folder of the run that has to be done before."""

    def identity(self) -> dict[str, Any]:
        """What its result depends on."""


R = TypeVar("R", bound=Run)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def keep_plan(out: Path, runs: Sequence[Run]) -> None:
    """Write the run list into the folder of a new job, or compare it with that of the job which is there. What the
    results do not depend on may have changed.

    Raises:
        UserError: the lists differ; says in what.
    """
    compare_plan(out, runs)
    write_json(out / "runs.json", [_plain(asdict(run)) for run in runs])


def compare_plan(out: Path, runs: Sequence[Run]) -> None:
    """Raise the UserError of `keep_plan`, if it would, and write nothing."""
    path = out / "runs.json"
    now = {run.folder: run for run in runs}
    if len(now) < len(runs):
        raise ValueError("two runs of the list have the same name")
    if runs and path.exists():
        before = {run.folder: run for run in read_plan(out, type(runs[0]))}
        changed: dict[str, list[str]] = {}  # difference -> the runs that have it
        for name in (name for name in now if name in before):
            for line in differences(_plain(before[name].identity()), _plain(now[name].identity())):
                changed.setdefault(line, []).append(name)
        found = [f"{line} ({_few(names)})" for line, names in changed.items()]
        found += [f"{name} is new" for name in now if name not in before]
        found += [f"{name} is gone" for name in before if name not in now]
        if found:
            more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise UserError(
                f"{path}: the run list was changed since it began: {'; '.join(found[:SHOWN])}{more}; "
                "go on with the settings it began with, or give another folder"
            )


def read_plan(out: Path, kind: type[R]) -> list[R]:
    """The run list of a job that has begun. Raises UserError when there is none."""
    path = out / "runs.json"
    try:
        return [kind(**fields) for fields in json.loads(path.read_text())]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: no runs have begun in {out}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a run list: {error}") from None


def differences(before: dict[str, Any], now: dict[str, Any], where: str = "") -> list[str]:
    """A line for each field that is not the same, `where` before its name."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{where}{name}.")
        elif old != new:
            lines.append(f"{where}{name} was {old}, is {new}")
    return lines


def _few(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: lists, no tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    return plain
