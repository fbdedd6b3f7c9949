"""The figures as a table, as JSON and as CSV."""

from __future__ import annotations

import csv
from pathlib import Path

from rich.console import Console
from rich.table import Table

from seq2exp.files import atomic, write_json

from .contest import COLUMNS, Result, spread
from .honesty import LIMIT
from .learn import Learned, write_curves


def print_result(result: Result, console: Console) -> None:
    s = result.setting
    layers = f"{s.layers} + {s.layers} layers"
    title = f"{s.mode} mask, L {s.length:,}, batch {s.batch}, d {s.d_model}, {layers}, {s.precision}, {s.device}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    extrapolated = f", from L {s.reference_length:,}" if s.extrapolation != 1 else ""
    for name in ("ours", f"published, scan {s.scan}{extrapolated}", "times better"):
        table.add_column(name, justify="right")
    for name, unit, ours, published, ratio in result.rows():
        better = "" if ratio is None else f"{ratio:.2f}"
        table.add_row(f"{name}, {_shown(unit)}", _number(ours, unit), _number(published, unit), better)
    console.print(table)
    for line in notes(result):
        console.print(line)


def notes(result: Result) -> list[str]:
    """What the table's figures hold for, a sentence each."""
    s, h = result.setting, result.honesty
    outputs = ", ".join(f"{name} {error:.1e}" for name, error in result.errors.items() if name != "gradients")
    lines = [
        f"Both give the same in evaluation mode; relative errors at L {s.reference_length:,}: {outputs}; of the worst "
        f"gradient, fp32 on a short window: {result.errors['gradients']:.1e}.",
        f"Fastest of {s.rounds} rounds in turns; times better of single rounds: {spread(result)}.",
        f"Selected: {result.ours.selected:.1%} (ours), {result.published.selected:.1%} (published).",
        f"The published form takes {h.ratio:.2f} times its parts measured alone (forward and backward, "
        f"{h.whole:.3g} s against {sum(h.parts.values()):.3g} s): "
        + ("it hides no cost." if h.honest else f"MORE THAN {LIMIT:g} TIMES, so it hides a cost or was disturbed."),
    ]
    if s.extrapolation != 1:
        lines.insert(
            0,
            f"EXTRAPOLATED: the published form was measured at L {s.reference_length:,}; its times and bytes are "
            f"multiplied by {s.extrapolation:.4g}.",
        )
    return lines


def write_result(result: Result, learned: Learned | None, out: Path) -> None:
    """bench.json; bench.csv, one row a figure; curves.csv and curves.png where both were trained."""
    write_json(out / "bench.json", result.as_json() | ({"learned": learned.as_json()} if learned else {}))
    if learned:
        write_curves(learned, out)
    with atomic(out / "bench.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(result.rows())


def _shown(unit: str) -> str:
    return "GB" if unit == "bytes" else unit


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "bytes":
        return f"{value / 1e9:,.3f}"
    return f"{value:,.3f}" if unit == "s" else f"{value:,.0f}"
