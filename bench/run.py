"""Runs benchmarks: `python bench/run.py [NAME ...]`, a name or how several begin. Writes bench/results/cpu.json and
prints Markdown tables.

Figures are ratios of two ways measured side by side in this process, "other / ours" (above 1: ours is faster). Times,
memory and GB/s hold for the machine and the moment. Exit code 1 when a check fails or a goal is missed.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import add_norm  # noqa: F401  (registers its benchmarks)
import beta_mask  # noqa: F401
import data  # noqa: F401
import embed  # noqa: F401
import gather  # noqa: F401
import layer  # noqa: F401
import scan  # noqa: F401
import training_step  # noqa: F401
from harness import REGISTRY, Benchmark, Result, measure
from rich.console import Console

from seq2exp.errors import UserError
from seq2exp.info import collect

RESULTS = Path(__file__).parent / "results" / "cpu.json"
SIDES = ("ours", "other")


def main(names: list[str]) -> int:
    chosen = [bench for name in names or [""] for bench in named(name)]
    rows = {}
    with Console(stderr=True).status("") as status:
        for bench in chosen:
            status.update(f"{bench.name}: {bench.ours} against {bench.other}")
            rows[bench.name] = row(bench, measure(bench))
            save(rows)
    print(table(rows))
    return 0 if all(r["met"] for r in rows.values() if not r["note"].startswith("not run")) else 1


def named(name: str) -> list[Benchmark]:
    """The benchmark of that name, else all whose names begin so."""
    found = [bench for other, bench in REGISTRY.items() if other.startswith(name)]
    if not found:
        raise UserError(f"bench/run.py: there is no benchmark {name}; choose from {', '.join(REGISTRY)}")
    return [REGISTRY[name]] if name in REGISTRY else found


def row(bench: Benchmark, result: Result) -> dict:
    figures: dict[str, float | None] = {
        name: value and round(value, 3) for name, value in vars(result).items() if name in ("ratio", "low", "high")
    }
    for side in SIDES:
        cost = getattr(result, side)
        figures[f"{side}_ms"] = cost and round(cost.seconds * 1e3, 3)
        figures[f"{side}_peak_mb"] = cost and cost.peak and round(cost.peak / 1e6, 1)
        if cost and result.samples:
            figures[f"{side}_per_s"] = round(result.samples / cost.seconds, 1)
    if result.ours and result.traffic:
        figures["ours_gb_per_s"] = round(result.traffic / result.ours.seconds / 1e9, 2)
    if result.amounts:
        figures |= {f"{side}_amount": float(f"{x:.5g}") for side, x in zip(SIDES, result.amounts, strict=True)}
    unit = {"unit": bench.unit} if bench.unit else {}
    return {
        "ours": bench.ours, "other": bench.other, "setting": bench.setting, **unit, **figures,
        "goal": bench.goal and round(bench.goal, 3), "met": result.met(bench.goal), "note": result.note,
    }  # fmt: skip


def save(rows: dict[str, dict]) -> None:
    """Replaces the entries of what ran and keeps the others."""
    old = json.loads(RESULTS.read_text())["benchmarks"] if RESULTS.exists() else {}
    facts = collect()
    machine = {
        "cpu": cpu_model(), "threads": facts["threads"], "instruction_set": facts["instruction_set"],
        "torch": facts["versions"]["torch"],
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    kept = {name: old[name] for name in REGISTRY if name in old}
    RESULTS.write_text(json.dumps({"machine": machine, "benchmarks": kept | rows}, indent=1) + "\n")


def table(rows: dict[str, dict]) -> str:
    """Markdown: ratios of times and goals, samples per second, what was counted, then what the sizes take."""
    contests = [
        [
            r["ours"], r["other"], r["setting"], r["note"] or f"{r['ratio']:.2f}",
            "" if r["note"] else f"{r['low']:.2f}-{r['high']:.2f}", goal(r),
        ]
        for r in rows.values() if r["note"] or not {"unit", "ours_gb_per_s", "ours_per_s"} & set(r)
    ]  # fmt: skip
    rates = [
        [
            r["ours"], r["other"], r["setting"], number(r["ours_per_s"], 1), number(r["other_per_s"], 1),
            f"{r['ratio']:.2f}", f"{r['low']:.2f}-{r['high']:.2f}", goal(r),
        ]
        for r in rows.values() if "ours_per_s" in r
    ]  # fmt: skip
    counts = [
        [
            r["ours"], r["other"], r["setting"], r["unit"], amount(r["ours_amount"]), amount(r["other_amount"]),
            f"{r['ratio']:.2f}", goal(r),
        ]
        for r in rows.values() if "unit" in r and not r["note"]
    ]  # fmt: skip
    costs = [
        [
            r["setting"], number(r["ours_ms"], 1), number(r["ours_peak_mb"], 0), number(r["ours_gb_per_s"], 2),
            r["other"], number(r["other_ms"], 1), number(r["other_peak_mb"], 0), number(r["ratio"], 1),
        ]
        for r in rows.values() if "ours_gb_per_s" in r
    ]  # fmt: skip
    contest_titles = ["ours", "against", "setting", "other / ours", "range", "goal"]
    rate_titles = ["ours", "against", "setting", "ours a second", "other a second", "other / ours", "range", "goal"]
    count_titles = ["ours", "against", "setting", "what", "ours", "other", "other / ours", "goal"]
    cost_titles = ["setting", "ms", "peak MB", "GB/s", "against", "ms", "peak MB", "other / ours"]
    parts = [(contest_titles, contests), (rate_titles, rates), (count_titles, counts), (cost_titles, costs)]
    return "\n\n".join(markdown(head, body) for head, body in parts if body)


def goal(r: dict) -> str:
    return "" if r["goal"] is None else f"{r['goal']:g}{'' if r['met'] else ' MISSED'}"


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def markdown(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
