"""Measures on the GPU, from the scan to a training step: `python bench/gpu_measure.py JOURNAL GATE SECONDS PEERS`.

GATE is a JSON file, backend -> direction of the scan, "layer", "mask", "gather" or "embed" -> None or the reason why it
gets no figure. PEERS is where bench/peers.py leaves mamba_ssm and causal_conv1d. Each case is a record of JOURNAL;
after a crash the same command goes on behind it. Without a GPU a rehearsal: tiny cases on the CPU, the same functions.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import embed_load
import gather_load
import mask_load
import step_load
import torch
from embed_load import EmbedInputs, EmbedLoad
from gather_load import GatherInputs, GatherLoad
from gpu_jobs import append, read
from layer_load import COMPOSED, Form, LayerInputs, LayerLoad, on_backend, published_form
from mask_load import MaskInputs, MaskLoad
from published_layer import fast_mamba
from step_load import StepInputs, StepLoad
from workload import Inputs, Scan, Workload, backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CRASHES = 2  # that many, and an implementation is no longer tried
Load = Workload | LayerLoad | MaskLoad | GatherLoad | EmbedLoad | StepLoad
Input = Inputs | LayerInputs | MaskInputs | GatherInputs | EmbedInputs | StepInputs
Run = Scan | Form | mask_load.Form | gather_load.Form | embed_load.Form | step_load.StepForm
OPS: dict[type, ModuleType] = {MaskLoad: mask_load, GatherLoad: gather_load, EmbedLoad: embed_load}
Plan = list[tuple[Load, tuple[str, ...]]]


def plan() -> Plan:
    """Cases and who takes part, the most important first."""
    ours, all_three, everybody = (
        ("cuda", "triton"),
        ("cuda", "triton", "mamba"),
        ("cuda", "triton", "mamba", "composed"),
    )

    def both(*shapes: tuple[int, int], who: tuple[str, ...], dtype: str = "bfloat16", **options: bool) -> Plan:
        return [
            (Workload(direction, batch, length, dtype=dtype, **options), who)
            for batch, length in shapes for direction in ("forward", "backward")
        ]  # fmt: skip

    def layers(
        shape: str, *sizes: tuple[int, int], who: tuple[str, ...] = everybody, direction: str = "both",
        dtype: str = "bfloat16",
    ) -> Plan:  # fmt: skip
        return [(LayerLoad(shape, direction, *size, dtype=dtype), who) for size in sizes]

    return [
        *both((8, 200_704), (8, 200_000), who=all_three),
        *layers("mixer", (8, 200_704), (8, 200_000)),
        *layers("layer", (8, 200_000)),
        *layers("equivariant", (8, 200_000)),
        *((MaskLoad(kind, 8, 200_000), ("cuda", "triton", "composed")) for kind in mask_load.KINDS),
        *((GatherLoad(0.1, 8, 200_000, dtype=x), ("cuda", "triton", "composed")) for x in ("bfloat16", "float32")),
        *((EmbedLoad(kept, 8, 200_000), ("cuda", "triton", "composed")) for kept in (1.0, 0.1)),
        (EmbedLoad(1.0, 1, 200_000), ("cuda", "triton", "composed")),
        (StepLoad("soft", 8, 200_000), everybody),
        (StepLoad("soft", 32, 200_000), ours),
        (StepLoad("hard", 8, 200_000), everybody),
        *both((1, 200_000), who=(*all_three, "reference")),
        *both((8, 200_000), who=all_three, dtype="float32"),
        *layers("mixer", (8, 200_704), direction="forward"),
        *layers("mixer", (1, 200_000), (8, 16_384), (32, 65_536), (1, 16_384)),
        *both((8, 65_537), (1, 65_537), (8, 2_048), (1, 200_704), who=all_three),
        *both((1, 2_048), (1, 2_047), who=(*all_three, "reference")),
        *layers("mixer", (8, 200_000), dtype="float32"),
        *both((1, 1_048_576), who=all_three),
        *layers("mixer", (1, 65_536), (8, 65_536), (32, 16_384), (1, 200_704), (1, 1_048_576)),
        *layers("equivariant", (1, 200_000), (1, 16_384), (8, 65_536), (32, 16_384), (1, 1_048_576)),
        *both((8, 1_048_576), who=ours),  # 2^31 elements are beyond mamba-ssm's offsets
        *layers("mixer", (8, 1_048_576), (32, 200_000), who=ours),
        *both((8, 200_000), who=ours, channels_last=True),
        *both((8, 200_000), who=all_three, gate=False),
        *both((8, 200_000), who=ours, reverse=True),
        *both((1, 200_000), who=all_three, dtype="float32"),
    ]


def rehearsal_plan() -> Plan:
    return [
        *(
            (Workload(direction, batch, length, dim=8, state=4, dtype=dtype), ("cpu", "reference"))
            for dtype in ("bfloat16", "float32")
            for batch, length in ((8, 500), (1, 500))
            for direction in ("forward", "backward")
        ),
        *(
            (LayerLoad(shape, direction, 2, 300, d_model=16, state=4, dtype=dtype), ("cpu", "composed", "mamba"))
            for dtype, shape, direction in (
                ("bfloat16", "mixer", "both"), ("bfloat16", "layer", "both"), ("bfloat16", "equivariant", "both"),
                ("float32", "mixer", "forward"), ("float32", "equivariant", "forward"),
            )
        ),
        *((MaskLoad(kind, 2, 3_000), ("cpu", "composed")) for kind in mask_load.KINDS),
        (GatherLoad(0.1, 2, 3_000, channels=16), ("cpu", "composed")),
        *((EmbedLoad(kept, 2, 3_000, channels=16), ("cpu", "composed")) for kept in (1.0, 0.1)),
        *((StepLoad(mode, 2, 300, 16, 1), ("cpu", "composed", "mamba")) for mode in ("soft", "hard")),
    ]  # fmt: skip


def copy_bandwidth(size: int) -> float:
    """GB/s of a copy on the device, bytes read plus bytes written."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * size / min(milliseconds(lambda: target.copy_(source)) for _ in range(10)) / 1e6


def milliseconds(work: Callable[[], object]) -> float:
    if DEVICE == "cpu":
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peak_mb(work: Callable[[], object]) -> float | None:
    """MB that `work` allocates at most beside what is there, results included."""
    if DEVICE == "cpu":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)


class Prepared(NamedTuple):
    sets: list[Input]
    exact: dict[str, torch.Tensor]  # of the first set


def prepare(load: Load) -> Prepared:
    sets = input_sets(load)
    return Prepared(sets, load.exact(sets[0]))


def input_sets(load: Load) -> list[Input]:
    """As many as exceed the L2 cache three times, so that no call finds its inputs there."""
    first = load.inputs(DEVICE)
    if DEVICE == "cpu":
        return [first]
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return [first, *(load.inputs(DEVICE, seed) for seed in range(1, min(16, math.ceil(3 * cache / load.bytes))))]


def alternate(calls: dict[str, list[Callable[[], object]]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every call. Who takes part takes turns; each for about `seconds`, 2 to 30 times."""
    wanted = {
        name: min(30, max(2, int(1e3 * seconds / max(1e-3, milliseconds(sets[0]))))) for name, sets in calls.items()
    }  # the first call of this loop is one more warm-up
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(max(wanted.values(), default=0)):
        for name, sets in calls.items():
            if i < wanted[name]:
                times[name].append(milliseconds(sets[i % len(sets)]))
    return times


def measure(
    load: Load, prepared: Prepared, forms: dict[str, Run], begin: Callable[[str], None] = lambda name: None
) -> dict[str, dict]:
    """Figures of each, or why there are none: {"error": ...}. `begin` is told who is about to run first.

    Passes an error on when the GPU answers nothing after it.
    """
    sets, exact = prepared
    figures: dict[str, dict] = {}
    calls: dict[str, list[Callable[[], object]]] = {}
    for name, form in forms.items():
        begin(name)
        try:
            mine = [load.call(form, x) for x in sets]
            figures[name] = {"error_rms": load.check(mine[0](), sets[0], exact), "peak_mb": peak_mb(mine[0])}
            figures[name] |= load.memory(form, sets[0])
            calls[name] = mine
        except Exception as error:  # of whatever kind: the others are still to be measured
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            figures[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    begin("all")
    for name, times in alternate(calls, 0.3).items():
        middle = statistics.median(times)
        figures[name] |= {
            "ms": round(middle, 4), "ms_min": round(min(times), 4), "ms_max": round(max(times), 4),
            "calls": len(times), "gb_per_s": round(load.traffic(forms[name]) / middle / 1e6, 1),
        }  # fmt: skip
    return figures


def baseline(load: LayerLoad) -> dict:
    """The composed form and each of its parts alone, ms: the form is an honest one where the parts add up to it."""
    x = load.inputs(DEVICE)
    parts = load.parts(x)
    calls = {str(i): [part.run] for i, part in enumerate(parts)} | {"whole": [load.call(COMPOSED, x)]}
    for (call,) in calls.values():
        call()
    middle = {name: statistics.median(times) for name, times in alternate(calls, 0.1).items()}
    alone: dict[str, float] = defaultdict(float)
    for i, part in enumerate(parts):
        alone[part.name] += middle[str(i)]
    whole, total = middle["whole"], sum(alone.values())
    return {
        "baseline": load.name, "whole_ms": round(whole, 4), "sum_ms": round(total, 4),
        "parts_over_whole": round(total / whole, 3), "parts_ms": {name: round(ms, 4) for name, ms in alone.items()},
    }  # fmt: skip


class Peers(NamedTuple):
    """What mamba-ssm offers, or why there is none."""

    scan: Scan | str
    layer: Form | str


def mamba_scan() -> Scan:
    """Called like ours."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def scan(*arguments: object, reverse: bool) -> torch.Tensor:
        assert not reverse
        return selective_scan_fn(*arguments)

    return scan


def crashes(records: list[dict]) -> dict[str, set[str]]:
    """Who ran when a process ended before its time ("all": while they took turns) -> in which cases."""
    found: dict[str, set[str]] = defaultdict(set)
    running: dict | None = None
    for record in records:
        if "start" in record and running:
            found[running["running"]].add(running["case"])
        if "running" in record:
            running = record
        elif "figures" in record or "baseline" in record:
            running = None
    return found


def implementation(name: str, load: Load, peers: Peers) -> Run | str:
    """What runs under that name, or why nothing does."""
    if isinstance(load, StepLoad):
        if name == "mamba" and isinstance(peers.layer, str):
            return peers.layer
        forms = {"mamba": "mamba_ssm", "composed": "ours"}
        return step_load.published(forms[name]) if name in forms else step_load.on_backend(name)
    if name == "mamba":
        return peers.layer if isinstance(load, LayerLoad) else peers.scan
    if (op := OPS.get(type(load))) is not None:
        return op.composed if name == "composed" else op.on_backend(name)
    if isinstance(load, LayerLoad):
        return COMPOSED if name == "composed" else on_backend(name)
    return backend(name)


def withheld(name: str, load: Load, gate: dict, form: Run | str, crashed: dict[str, set[str]]) -> str | None:
    """Why that implementation gets no figure in that case."""
    if load.name in crashed["all"] | crashed[name]:
        return "the process ended while this was measured"
    if len(crashed[name]) >= CRASHES:
        return "the process ended in earlier cases while this ran"
    if isinstance(form, str):
        return form
    return gate.get(name, {}).get(load.proof)


def run(journal: Path, gate: dict, seconds: float, peers: Peers) -> None:
    deadline = time.monotonic() + seconds
    torch.backends.cudnn.allow_tf32 = False  # or float32 convolutions of the composed form would not be float32
    append(journal, {"start": seconds})
    records = read(journal)
    done, crashed = {r["case"] for r in records if "figures" in r}, crashes(records)
    if not any("copy_gb_per_s" in r for r in records):
        append(journal, {"copy_gb_per_s": round(copy_bandwidth(4_000_000_000 if DEVICE == "cuda" else 4_000_000), 1)})
    baseline_known = any("baseline" in r for r in records) or "baseline" in crashed["all"]
    for load, names in plan() if DEVICE == "cuda" else rehearsal_plan():
        if load.name in done:
            continue
        late = "no time was left" if time.monotonic() > deadline else None
        forms = {name: implementation(name, load, peers) for name in names}
        reasons = {name: late or withheld(name, load, gate, form, crashed) for name, form in forms.items()}
        forms = {name: form for name, form in forms.items() if not reasons[name]}
        figures = {}
        if forms:
            begin = partial(_note_running, journal, load.name)
            begin("all")
            figures = measure(load, prepare(load), forms, begin)
        figures |= {name: {"withheld": reason} for name, reason in reasons.items() if reason}
        case = {"case": load.name, "load": asdict(load), "elements": load.elements, "bytes": load.bytes}
        append(journal, case | {"figures": figures})
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        if isinstance(load, LayerLoad) and load.shape == "mixer" and not baseline_known and not late:
            _note_running(journal, "baseline", "all")
            append(journal, baseline(load))
            baseline_known = True


def _note_running(journal: Path, case: str, name: str) -> None:
    append(journal, {"case": case, "running": name})


def load_peers(folder: Path) -> Peers:
    """As bench/peers.py left them."""
    status = folder / "status.json"
    failed = json.loads(status.read_text()) if status.exists() else {}
    if reason := failed.get("mamba_ssm"):
        return Peers(*(2 * [f"not measured: {reason}"]))
    sys.path.insert(0, str(folder))
    try:
        scan = mamba_scan()
    except (ImportError, OSError) as error:
        return Peers(*(2 * [f"not measured: mamba-ssm cannot be imported: {error}"]))
    reason = failed.get("causal_conv1d")
    return Peers(scan, f"not measured: {reason}" if reason else published_form(fast_mamba))


if __name__ == "__main__":
    _journal, _gate, _seconds, _peers = sys.argv[1:]
    run(Path(_journal), json.loads(Path(_gate).read_text()), float(_seconds), load_peers(Path(_peers)))
