"""What `seq2exp profile` prints and writes: a table for each size, JSON and CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from seq2exp.files import atomic, write_json
from seq2exp.info import collect

from .isolate import OutOfMemory, gigabytes, in_process
from .measure import PartCost, StepCost, measure_step
from .search import Search
from .step import PARTS, StepSettings, published_scan


@dataclass(frozen=True)
class Profile:
    """What one training step costs; without a cost `failed` says why."""

    settings: StepSettings
    cost: StepCost | None = None
    failed: str = ""


def profile_step(settings: StepSettings, budget: int, out: Path) -> Profile:
    """`measure_step` in a process of its own within the budget; the memory snapshot of a GPU goes to the folder."""
    on_gpu, s = settings.device == "cuda", settings
    snapshot = out / f"snapshot_{s.form}_{s.config.length}_{s.batch}.pickle" if on_gpu else None
    try:
        answer = in_process(measure_step, settings, budget, snapshot, limit=None if on_gpu else budget)
    except OutOfMemory as error:
        return Profile(settings, failed=str(error))
    return Profile(settings, answer.value)


def step_table(profiles: Sequence[Profile]) -> Table:
    """One table for the forms of one size: time and memory by part."""
    first = profiles[0].settings
    table = Table(title=f"{first.config.length:,} bases, batch {first.batch}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("part")
    for p in profiles:
        of = f"\n{p.settings.form}" if len(profiles) > 1 else ""
        for name in ("time", "share", "peak", "kept", *(["resident"] if first.device == "cpu" else [])):
            table.add_column(name + of, justify="right", no_wrap=True)
    width = 5 if first.device == "cpu" else 4
    for i, name in enumerate(PARTS):
        table.add_row(name, *[cell for p in profiles for cell in _cells(p, i, width)])
    table.add_section()
    table.add_row("step", *[cell for p in profiles for cell in _total(p, width)], style="bold")
    return table


def remarks(profile: Profile) -> str:
    """What the table does not hold, in one sentence."""
    form, cost = profile.settings.form, profile.cost
    if cost is None:
        return f"{form}: {profile.failed}"
    said = [f"{cost.selected_fraction:.1%} of the bases selected", f"weights and optimiser {gigabytes(cost.fixed)}"]
    if cost.resident is not None and cost.resident_before is not None:
        said.append(f"resident {gigabytes(cost.resident - cost.resident_before)} above the import of torch")
    if cost.reserved is not None:
        said.append(f"reserved {gigabytes(cost.reserved)}")
    return f"{form}: {', '.join(said)}"


def search_table(search: Search) -> Table:
    """The trials of a search."""
    table = Table(box=SIMPLE_HEAD)
    for heading in (search.what, "memory", f"of {gigabytes(search.budget)}"):
        table.add_column(heading, justify="right")
    for size, peak in search.trials:
        fits = "does not fit" if peak is None or peak > search.budget else f"{peak / search.budget:.0%}"
        table.add_row(f"{size:,}", "" if peak is None else gigabytes(peak), fits)
    return table


def write_report(out: Path, budget: int, profiles: Sequence[Profile], searches: Sequence[Search]) -> None:
    """profile.json with everything; profile.csv, a row a part; search.csv, a row a trial. Bytes and seconds."""
    values = {
        "environment": collect(),
        "budget": budget,
        "steps": [_settings(p.settings) | (asdict(p.cost) if p.cost else {"failed": p.failed}) for p in profiles],
        "searches": [
            _settings(s.settings) | {"what": s.what, "largest": s.largest, "trials": [t._asdict() for t in s.trials]}
            for s in searches
        ],
    }
    write_json(out / "profile.json", values)
    if profiles:
        columns = ["name", "seconds", "share", "peak", "kept", "resident", "failed"]
        _write_csv(out / "profile.csv", columns, [(p.settings, row) for p in profiles for row in _part_rows(p)])
    if searches:
        trials = [(s.settings, {"what": s.what} | t._asdict()) for s in searches for t in s.trials]
        _write_csv(out / "search.csv", ["what", "size", "peak"], trials)


def _settings(settings: StepSettings) -> dict[str, Any]:
    return {
        "form": settings.form,
        "length": settings.config.length,
        "batch": settings.batch,
        "precision": settings.precision,
        "device": settings.device,
        "store": settings.store and str(settings.store),
        "scan": published_scan(settings.device) if settings.form == "published" else None,
        "config": settings.config.model_dump(mode="json"),
    }


def _part_rows(profile: Profile) -> list[dict[str, Any]]:
    cost = profile.cost
    if cost is None:
        return [{"name": "step", "failed": profile.failed}]
    whole = PartCost("step", cost.seconds, cost.peak, None, cost.resident)
    return [asdict(part) | {"share": part.seconds / cost.seconds} for part in [*cost.parts, whole]]


def _write_csv(path: Path, columns: list[str], rows: list[tuple[StepSettings, dict[str, Any]]]) -> None:
    keys = ["form", "length", "batch"]
    with atomic(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*keys, *columns], restval="")
        writer.writeheader()
        for settings, row in rows:
            settings_row = _settings(settings)
            writer.writerow({key: settings_row[key] for key in keys} | row)


def _cells(profile: Profile, part: int, columns: int) -> list[str]:
    """Of one part in the table."""
    if profile.cost is None:
        return [""] * columns
    cost, p = profile.cost, profile.cost.parts[part]
    return [
        seconds(p.seconds),
        f"{p.seconds / cost.seconds:.1%}",
        gigabytes(p.peak),
        "" if p.kept is None else gigabytes(p.kept),
        *([] if p.resident is None else [gigabytes(p.resident)]),
    ]


def _total(profile: Profile, columns: int) -> list[str]:
    cost = profile.cost
    if cost is None:
        return [""] * columns
    kept = sum(p.kept or 0 for p in cost.parts)
    resident = [] if cost.resident is None else [gigabytes(cost.resident)]
    return [seconds(cost.seconds), "", gigabytes(cost.peak), gigabytes(kept), *resident]


def seconds(value: float) -> str:
    """Three digits: 1.23 s, 45.6 ms, 7.89 µs."""
    for unit, name in ((1, "s"), (1e-3, "ms")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e-6:.3g} µs"
