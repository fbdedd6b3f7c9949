"""`make gpu`: builds, tests, measures and tunes the GPU kernels on this machine; writes bench/results/<gpu>.json.

Needs a GPU, nvcc and a Python with torch, triton, numpy, pytest, setuptools and ninja; installs nothing, reaches no
network and changes no setting of the GPU. Peers and a prebuilt extension come from carry/ (`make carry`). Each step has
its own limit, and a step that fails hides no other. Without a GPU it rehearses: the same steps on the CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import gpu_report as report
from gpu_build import extension, make_tree
from gpu_jobs import Job, Outcome, read

ROOT = Path(__file__).resolve().parents[1]
BENCH, CARRY, PEERS, RESULTS = ROOT / "bench", ROOT / "carry", ROOT / "build" / "peers", ROOT / "bench" / "results"
LIMIT = 520  # seconds for everything
RESERVE = 10  # of them for the report
# GPU tests, each group in that many processes
GROUPS = {"triton": ("triton", 4), "cuda": ("cuda and not triton", 1), "other": ("not triton and not cuda", 1)}
TOOLS = ("memcheck", "racecheck")
OURS, REHEARSED = ("cuda", "triton"), ("cpu",)


class Run:
    """The folder of logs and journals, the environment of every child, the steps so far."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder / "logs", ignore_errors=True)
        self.folder, self.logs, self.tree = folder, folder / "logs", folder / "tree"
        self.logs.mkdir(parents=True)
        make_tree(self.tree)
        self.steps: list[dict] = []
        self.jobs: list[Job] = []
        self._start = time.monotonic()
        paths = (self.tree, BENCH, ROOT / "tests" / "support")
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith(("SEQ2EXP_", "TRITON_"))} | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONSAFEPATH": "1",  # or the checkout's own seq2exp, which needs more packages, would come first
            "PYTHONUNBUFFERED": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "TRITON_CACHE_DIR": str(folder / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        }

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def left(self) -> float:
        return LIMIT - RESERVE - self.seconds()

    def log(self, name: str) -> Path:
        return self.logs / f"{name.replace(' ', '-')}.log"

    def journal(self, name: str) -> Path:
        return self.logs / f"{name.replace(' ', '-')}.jsonl"

    def start(self, name: str, *command: object, limit: float, more: Mapping[str, str] | None = None) -> Job:
        self.jobs.append(Job(command, min(limit, self.left()), self.log(name), self._environment | dict(more or {})))
        return self.jobs[-1]

    def python(self, name: str, *arguments: object, limit: float, more: Mapping[str, str] | None = None) -> Job:
        return self.start(name, sys.executable, *arguments, limit=limit, more=more)

    def note(self, name: str, outcome: Outcome) -> None:
        self.steps.append({"step": name, **vars(outcome)})
        print(f"[{self.seconds():5.0f} s] {name}: {outcome.status}, {outcome.seconds:.0f} s {outcome.note}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        self.note(name, Outcome("skipped", 0.0, reason))


def main() -> int:
    run = Run(ROOT / "build" / "gpu")
    try:
        return steps(run)
    finally:
        for job in run.jobs:
            job.kill()


def steps(run: Run) -> int:
    job = run.python("facts", BENCH / "gpu_facts.py", limit=60)
    outcome = job.wait()
    run.note("facts", outcome)
    if outcome.status != "ok":
        print(f"{sys.executable} cannot run this: it needs torch. {outcome.note}")
        return 1
    facts = json.loads(run.log("facts").read_text().splitlines()[-1])
    gpu = facts["gpu"]
    print(json.dumps(facts))
    peers = start_peers(run) if gpu else None
    tests = start_tests(run, "triton")  # needs no extension
    build(run, facts)
    for name in ("cuda", "other") if gpu else ("cuda", "other", "rehearsal"):
        tests |= start_tests(run, name)
    sanitizers = start_sanitizers(run, facts)
    records = {name: finish_tests(run, name, job) for name, job in tests.items()}
    checks = finish_sanitizers(run, sanitizers)
    gate = report.gate([r for part in records.values() for r in part], OURS if gpu else REHEARSED)
    for (backend, tool), verdict in checks.items():
        if tool == "memcheck" and verdict.startswith("failed"):
            gate[backend] = dict.fromkeys(report.GATES, f"memcheck {verdict}")
    run.journal("gate").write_text(json.dumps(gate))
    finish_peers(run, gpu, peers)
    measured, clocks = measure(run, gpu)
    tuned = tune(run)
    result = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"), "facts": facts, "clocks_while_measuring": clocks,
        "tests": {name: report.summary(part) for name, part in records.items()},
        "sanitizer": {f"{backend} {tool}": verdict for (backend, tool), verdict in checks.items()}, "gate": gate,
        "copy_gb_per_s": next((r["copy_gb_per_s"] for r in measured if "copy_gb_per_s" in r), None),
        "cases": [r for r in measured if "figures" in r and "direction" in r["load"] and "shape" not in r["load"]],
        "layers": [r for r in measured if "figures" in r and "shape" in r["load"]],
        "masks": [r for r in measured if "figures" in r and "kind" in r["load"]],
        "packs": [r for r in measured if "figures" in r and "share" in r["load"]],
        "inputs": [r for r in measured if "figures" in r and "kept" in r["load"]],
        "training_steps": [r for r in measured if "figures" in r and "mode" in r["load"]],
        "baseline": next((r for r in measured if "baseline" in r), None), "tuning": tuned,
    }  # fmt: skip
    return finish(run, result)


def build(run: Run, facts: dict) -> None:
    """Compiles for this GPU only, or takes the extension that was carried along."""
    architecture = facts["gpu"]["capability"] if facts["gpu"] else "90" if facts["nvcc"] else "cpu"
    outcome = run.python("build", BENCH / "gpu_build.py", run.tree, architecture, limit=170).wait()
    run.note("build", outcome)
    errors = [line for line in run.log("build").read_text(errors="replace").splitlines() if "error" in line.lower()]
    if outcome.status != "ok" and errors:
        print("\n".join(errors[:5]))
    carried = CARRY / "_C.so"
    if outcome.status != "ok" and carried.exists():
        shutil.copy2(carried, extension(run.tree))
        run.note("carried extension", Outcome("ok", 0.0, "carry/_C.so instead of a build"))


def start_tests(run: Run, group: str) -> dict[str, Job]:
    """GPU tests of one group; "rehearsal": all of them on the CPU's kernels."""
    select, parts = GROUPS.get(group, ("", 1))
    jobs = {}
    for part in range(parts):
        name = f"tests {group}" if parts == 1 else f"tests {group} {part + 1}"
        more = {"GPU_TEST_JOURNAL": str(run.journal(name)), "GPU_TEST_SHARD": f"{part}/{parts}"}
        if group == "rehearsal":
            more["SEQ2EXP_REHEARSAL"] = "1"
        command = ("-m", "pytest", "-q", "-p", "gpu_plugin", "-p", "no:cacheprovider", "-m", "gpu", "-k", select)
        jobs[name] = run.python(name, *command, "--rootdir", ROOT, ROOT / "tests" / "kernels", limit=200, more=more)
    return jobs


def finish_tests(run: Run, name: str, job: Job) -> list[dict]:
    outcome, records = job.wait(), read(run.journal(name))
    found = report.summary(records)
    counts = ", ".join(
        f"{found[k]} {k.replace('_', ' ')}" for k in ("passed", "failed", "skipped", "never_ended") if found.get(k)
    )
    skips = "; skipped: " + "; ".join(found["skips"]) if found["skips"] else ""
    if records == [{"collected": []}]:
        outcome = Outcome("ok", outcome.seconds)  # pytest fails where a group has no tests
    status = "failed" if found.get("failed") else outcome.status
    run.note(name, Outcome(status, outcome.seconds, f"{counts or 'no tests'}{skips} {outcome.note}".strip()))
    return records


def start_sanitizers(run: Run, facts: dict) -> dict[tuple[str, str], Job]:
    if not facts["gpu"]:
        outcome = run.python("sanitizer program", BENCH / "gpu_sanitize.py", "cpu", limit=60).wait()
        run.note("sanitizer program", outcome)
        run.skip("compute-sanitizer", "no GPU")
        return {}
    if not facts["compute-sanitizer"]:
        run.skip("compute-sanitizer", "it is not installed")
        return {}
    options = ("--target-processes", "application-only", "--report-api-errors", "no", "--print-limit", "5")
    return {
        (backend, tool): run.start(
            f"{tool} {backend}", "compute-sanitizer", "--tool", tool, *options, sys.executable,
            BENCH / "gpu_sanitize.py", backend, limit=120, more={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        for tool in TOOLS for backend in OURS
    }  # fmt: skip


def finish_sanitizers(run: Run, jobs: dict[tuple[str, str], Job]) -> dict[tuple[str, str], str]:
    """(backend, tool) -> "passed", "failed: ..." or "skipped: ..."."""
    verdicts = {}
    for (backend, tool), job in jobs.items():
        outcome = job.wait()
        verdicts[backend, tool] = verdict = report.verdict(job.log.read_text(errors="replace"), outcome.status)
        status, _, why = verdict.partition(": ")
        run.note(f"{tool} {backend}", Outcome({"passed": "ok"}.get(status, status), outcome.seconds, why))
    return verdicts


def start_peers(run: Run) -> Job | None:
    """In the background and behind our own build; None where an earlier run on this machine has built them."""
    status = PEERS / "status.json"
    if status.exists() and json.loads(status.read_text()).get("mamba_ssm") is None:
        return None
    return run.start("peers", "nice", "-n", "10", sys.executable, BENCH / "peers.py", "build", limit=250)


def finish_peers(run: Run, gpu: dict | None, job: Job | None) -> None:
    if job:
        outcome = job.wait()
        built = run.log("peers").read_text().strip().replace("\n", "; ")
        run.note("peers", Outcome(outcome.status, outcome.seconds, f"{built} {outcome.note}".strip()))
    else:
        run.skip("peers", "built by an earlier run" if gpu else "no GPU")


def measure(run: Run, gpu: dict | None) -> tuple[list[dict], dict]:
    """Records of gpu_measure, started again after a crash, and the clocks meanwhile."""
    fields = "--query-gpu=clocks.sm,power.draw,temperature.gpu"
    watch = (
        run.start("clocks", "nvidia-smi", "-i", "0", fields, "--format=csv,noheader,nounits", "-lms", "500", limit=300)
        if gpu
        else None
    )
    journal, until = run.journal("measure"), run.seconds() + min(200, run.left() - 50)
    for _ in range(4):
        seconds = until - run.seconds()
        job = run.python(
            "measure", BENCH / "gpu_measure.py", journal, run.journal("gate"), f"{seconds:.0f}", PEERS,
            limit=seconds + 30,
        )  # fmt: skip
        outcome = job.wait()
        run.note("measure", outcome)
        if outcome.status != "failed" or run.seconds() > until:
            break
    if watch:
        watch.kill()
    return read(journal), report.clocks(run.log("clocks").read_text()) if watch else {}


def tune(run: Run) -> list[dict]:
    journal, seconds = run.journal("tune"), min(60.0, run.left() - 15)
    if seconds < 10:
        run.skip("tune", "no time was left")
        return []
    job = run.python("tune", BENCH / "gpu_tune.py", journal, run.journal("gate"), f"{seconds:.0f}", limit=seconds + 15)
    run.note("tune", job.wait())
    return read(journal)


def finish(run: Run, result: dict) -> int:
    """Prints the table, writes the JSON, here and into $OUT."""
    gpu = result["facts"]["gpu"]
    ours, other = (OURS, "mamba") if gpu else (REHEARSED, "reference")
    chip = report.Chip.of(gpu, result["copy_gb_per_s"]) if gpu else None
    result["targets"] = [
        line for name in ours
        for line in (
            *report.targets(result["cases"], chip, name), *report.layer_targets(result["layers"], name),
            *report.mask_targets(result["masks"], name), *report.pack_targets(result["packs"], name),
            *report.step_targets(result["training_steps"], name), *report.input_targets(result["inputs"], name),
        )
    ] + [report.baseline_target(result["baseline"] if gpu else None)]  # fmt: skip
    result["steps"], result["seconds"] = run.steps, round(run.seconds())
    path = RESULTS / f"{report.slug(gpu['name'])}.json" if gpu else ROOT / "build" / "gpu-rehearsal.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    if out := os.environ.get("OUT"):
        shutil.copy2(path, out)
        logs = "".join(f"==== {log.name}\n{log.read_text(errors='replace')}\n" for log in sorted(run.logs.iterdir()))
        (Path(out) / "log.txt").write_text(logs[-15_000_000:])
    print("\n".join(report.final(result, chip, ours, other)))
    complete = all(step["status"] in ("ok", "skipped") for step in run.steps)
    if not gpu:
        print(f"rehearsal: no GPU here, nothing was measured; {path.relative_to(ROOT)}, {result['seconds']} s")
    else:
        print(f"{path.relative_to(ROOT)}, {result['seconds']} s")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
