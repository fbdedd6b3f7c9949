"""Runs benchmarks: `python bench/run.py [NAME ...]`. Writes bench/results/cpu.json and prints a Markdown table.

Figures are ratios of two ways measured side by side in this process, "other / ours" (above 1: ours is faster).
Exit code 1 when a check fails or a goal is missed.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import scan  # noqa: F401  (registers its benchmarks)
from harness import REGISTRY, Benchmark, Result, measure
from rich.console import Console

from seq2exp.errors import UserError
from seq2exp.info import collect

RESULTS = Path(__file__).parent / "results" / "cpu.json"


def main(names: list[str]) -> int:
    for name in names:
        if name not in REGISTRY:
            raise UserError(f"bench/run.py: there is no benchmark {name}; choose from {', '.join(REGISTRY)}")
    chosen = [REGISTRY[name] for name in names or REGISTRY]
    rows = {}
    with Console(stderr=True).status("") as status:
        for bench in chosen:
            status.update(f"{bench.name}: {bench.ours} against {bench.other}")
            rows[bench.name] = row(bench, measure(bench))
    save(rows)
    print(table(rows))
    return 0 if all(r["met"] for r in rows.values() if not r["note"].startswith("not run")) else 1


def row(bench: Benchmark, result: Result) -> dict:
    figures = {
        name: value and round(value, 3) for name, value in vars(result).items() if name in ("ratio", "low", "high")
    }
    return {
        "ours": bench.ours, "other": bench.other, "setting": bench.setting, **figures, "goal": bench.goal,
        "met": result.met(bench.goal), "note": result.note,
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
    """Markdown."""
    lines = ["| ours | against | setting | other / ours | range | goal |", "|---|---|---|---|---|---|"]
    for r in rows.values():
        goal = "" if r["goal"] is None else f"{r['goal']:g}{'' if r['met'] else ' MISSED'}"
        figure = r["note"] or f"{r['ratio']:.2f}"
        spread = "" if r["note"] else f"{r['low']:.2f}-{r['high']:.2f}"
        lines.append(f"| {r['ours']} | {r['other']} | {r['setting']} | {figure} | {spread} | {goal} |")
    return "\n".join(lines)


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
