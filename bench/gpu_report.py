"""What `make gpu` makes of its journals: which kernels may be measured, floors, targets, and the table at the end."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

DIRECTIONS = ("forward", "backward")  # of the scan
# files of tests
TESTS = {
    "layer": ("test_bimamba", "test_add_norm"), "mask": ("test_beta_mask",), "gather": ("test_gather",),
    "embed": ("test_embed",),
}  # fmt: skip
GATES = (*DIRECTIONS, *TESTS)
BACKWARD_OPERATIONS = 26  # fp32 operations a state element; 5.1 ms for both directions of a layer on an H200


@dataclass(frozen=True)
class Chip:
    """clock: GHz, the highest. bandwidth: GB/s of reads plus writes."""

    multiprocessors: int
    clock: float
    fp32_lanes: int
    bandwidth: float

    @classmethod
    def of(cls, gpu: dict[str, Any], bandwidth: float | None) -> Chip | None:
        """From gpu_facts.gpu() and a measured copy; what was not read comes from the data sheet of a known chip."""
        known = next((chip for name, chip in CHIPS.items() if name in gpu["name"]), None)
        clock = re.match(r"(\d+) MHz", gpu["clocks.max.sm"] or "")
        if known is None and not (clock and bandwidth):
            return None
        lanes = 64 if gpu["capability"] == "80" else 128
        return cls(
            gpu["multiprocessors"], float(clock[1]) / 1e3 if clock else known.clock, lanes, bandwidth or known.bandwidth
        )


CHIPS = {
    "A100": Chip(108, 1.41, 64, 2_039),
    "H100": Chip(132, 1.98, 128, 3_350),
    "H200": Chip(132, 1.98, 128, 4_800),
}


def floor_ms(chip: Chip, direction: str, elements: int, traffic: int) -> float:
    """The least time of one scan, whatever the code: the slowest of exponentials, arithmetic and memory.

    One exponential a state element, 16 a clock and multiprocessor (the backward recomputes them); arithmetic counts in
    the backward only, at two operations a clock and lane; every input is read once and every output written once.
    """
    exponentials = elements / (16 * chip.multiprocessors * chip.clock * 1e6)
    memory = traffic / (chip.bandwidth * 1e6)
    if direction == "forward":
        return max(exponentials, memory)
    rate = 2 * chip.fp32_lanes * chip.multiprocessors * chip.clock * 1e6
    return max(exponentials, memory, BACKWARD_OPERATIONS * elements / rate)


def gate(records: list[dict], backends: tuple[str, ...]) -> dict[str, dict[str, str | None]]:
    """backend -> direction of the scan, "layer", "mask", "gather" or "embed" -> None, or why it gets no figure.

    Every test that names the direction, or is in a file of the layer or of another op, and has run must have
    passed; one that was collected and never ended counts as failed. The backward needs the forward's tests too. Skipped
    tests prove nothing, so one at least must have passed.
    """
    outcomes = {r["test"]: r for r in records if "test" in r}
    collected = {test for r in records for test in r.get("collected", ())}
    found: dict[str, dict[str, str | None]] = {}
    for name in backends:
        found[name] = {}
        for what in GATES:
            tests = sorted(t for t in collected | set(outcomes) if backend_of(t) == name and proves(t, what))
            passed = [t for t in tests if outcomes.get(t, {}).get("outcome") == "passed"]
            broken = [
                t for t in tests if outcomes.get(t, {"outcome": "never ended"})["outcome"] not in ("passed", "skipped")
            ]
            reason = f"{len(broken)} of {len(tests)} {what} tests failed" if broken else None
            if not passed and not broken:
                skipped = [outcomes[t]["reason"] for t in tests if t in outcomes]
                reason = f"no {what} test ran: {skipped[0] if skipped else 'none was found'}"
            found[name][what] = reason
        found[name]["backward"] = found[name]["backward"] or found[name]["forward"]
    return found


def proves(test: str, what: str) -> bool:
    of = next((name for name, files in TESTS.items() if any(file in test for file in files)), None)
    return of == what if what in TESTS else of is None and f"_{what}" in test


def backend_of(test: str) -> str | None:
    """First word of a test's parameters: tests/...::test_forward[cuda-bf16-130] -> cuda."""
    parameters = re.search(r"\[(\w+)", test)
    return parameters[1] if parameters else None


def summary(records: list[dict]) -> dict[str, Any]:
    """Counts of outcomes, the reasons of skips, the failures in the order in which they came."""
    ended = [r for r in records if "test" in r]
    collected = {test for r in records for test in r.get("collected", ())}
    failed = [{"test": r["test"], "reason": r["reason"]} for r in ended if r["outcome"] == "failed"]
    lost = sorted(collected - {r["test"] for r in ended})
    return {
        **Counter(r["outcome"] for r in ended),
        "never_ended": len(lost),
        "first_that_never_ended": lost[:1],
        "failures": failed,
        "skips": Counter(r["reason"] for r in ended if r["outcome"] == "skipped"),
    }


def case_name(direction: str, batch: int, length: int) -> str:
    return f"{direction}_b{batch}_l{length}_d256_n16_bfloat16"


def targets(cases: list[dict], chip: Chip | None, backend: str) -> list[dict]:
    """The project's goals for batch 8, 256 channels, 16 states, bf16; met is None where something was not measured."""
    figures = {c["case"]: c["figures"] for c in cases}
    loads = {c["case"]: c for c in cases}

    def ms(direction: str, batch: int, length: int, who: str = backend) -> float | None:
        return figures.get(case_name(direction, batch, length), {}).get(who, {}).get("ms")

    line = partial(target, backend)
    lines = []
    for direction, length, goal in (
        ("forward", 200_704, 1.5), ("forward", 200_000, 2.6), ("backward", 200_704, 2.0), ("backward", 200_000, 2.0),
    ):  # fmt: skip
        times = ratio(ms(direction, 8, length, "mamba"), ms(direction, 8, length))
        lines.append(line(f"{direction}, times as fast as mamba-ssm, L {length:,}", times, goal))
    for direction, goal, stretch in (("forward", 2.2, 1.6), ("backward", 4.0, 3.0)):
        case = loads.get(case_name(direction, 8, 200_000))
        least = floor_ms(chip, direction, case["elements"], case["bytes"]) if chip and case else None
        over = ratio(ms(direction, 8, 200_000), least)
        lines.append(line(f"{direction}, times the floor (stretch {stretch:g})", over, goal, least=False))
    for direction in DIRECTIONS:
        eight, one = ms(direction, 8, 200_000), ms(direction, 1, 200_000)
        share = eight / 8 / one if eight and one else None
        lines.append(line(f"{direction}, throughput a base of batch 1 over batch 8", share, 0.5))
    case = case_name("backward", 8, 200_000)
    peak, load = figures.get(case, {}).get(backend, {}).get("peak_mb"), loads.get(case)
    scratch = (peak - gradients_mb(load)) / 1e3 if peak and load else None
    lines.append(line("backward, GB beside the gradients", scratch, 1.0, least=False))
    return lines


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def target(backend: str, what: str, figure: float | None, goal: float, least: bool = True) -> dict:
    met = None if figure is None else (figure >= goal if least else figure <= goal)
    text = f"{'at least' if least else 'at most'} {goal:g}"
    return {"backend": backend, "what": what, "goal": text, "figure": figure and round(figure, 3), "met": met}


def gradients_mb(case: dict) -> float:
    """bytes = 2 x inputs + gradient of the output, and the gradients are as large as the inputs."""
    load = case["load"]
    signal = load["batch"] * load["dim"] * load["length"] * (4 if load["dtype"] == "float32" else 2)
    return (case["bytes"] - signal) / 2 / 1e6


def layer_targets(layers: list[dict], backend: str) -> list[dict]:
    """The layer's goals for batch 8, d 128, bf16, forward and backward."""
    figures = {c["case"]: c["figures"] for c in layers}

    def figure(what: str, shape: str, length: int, who: str = backend) -> float | None:
        return figures.get(f"{shape}_both_b8_l{length}_d128_n16_bfloat16", {}).get(who, {}).get(what)

    def against(what: str, shape: str, length: int, who: str) -> float | None:
        return ratio(figure(what, shape, length, who), figure(what, shape, length))

    lines = [
        target(
            backend, f"layer, times as fast as mamba-ssm, L {length:,}", against("ms", "mixer", length, "mamba"), goal
        )
        for length, goal in ((200_704, 2.5), (200_000, 3.5))
    ]
    for what, words in (("ms", "time"), ("peak_mb", "peak memory")):
        over = ratio(figure(what, "equivariant", 200_000), figure(what, "layer", 200_000))
        lines.append(target(backend, f"equivariant over plain layer, {words}", over, 2.1, least=False))
    for how in ("hooks", "live"):
        saved = figure(f"{how}_bytes_per_base", "mixer", 200_000)
        lines.append(target(backend, f"layer, bytes a base saved, {how}", saved, 400, least=False))
    peak = against("peak_mb", "mixer", 200_000, "mamba")
    return [*lines, target(backend, "layer, mamba-ssm's peak memory over ours", peak, 2)]


def mask_targets(masks: list[dict], backend: str) -> list[dict]:
    """The mask's goals for 1.6 M bases, forward and backward."""
    figures = {c["case"]: c["figures"] for c in masks}
    lines = []
    for kind in ("soft", "hard"):
        case = figures.get(f"mask_{kind}_b8_l200000_float32", {})
        mine, theirs = (case.get(who, {}).get("ms") for who in (backend, "composed"))
        lines += [
            target(backend, f"{kind} mask, times as fast as torch.distributions", ratio(theirs, mine), 8),
            target(backend, f"{kind} mask, ms for 1.6 M bases", mine, 0.5, least=False),
        ]
    return lines


def pack_targets(packs: list[dict], backend: str) -> list[dict]:
    """The pack's goal for 1.6 M bases of 128 channels, a tenth of them selected, forward and backward."""
    figures = {c["case"]: c["figures"] for c in packs}
    case = figures.get("pack_0.1_b8_l200000_d128_bfloat16", {})
    mine, theirs = (case.get(who, {}).get("ms") for who in (backend, "composed"))
    return [target(backend, "pack, times as fast as nonzero, index, product", ratio(theirs, mine), 2)]


def input_targets(inputs: list[dict], backend: str) -> list[dict]:
    """The fused input's goal for 1.6 M bases of 128 channels, forward and backward."""
    figures = {c["case"]: c["figures"] for c in inputs}
    case = figures.get("input_1_b8_l200000_d128_bfloat16", {})
    mine, theirs = (case.get(who, {}).get("ms") for who in (backend, "composed"))
    return [target(backend, "input, times as fast as F.embedding, F.linear, add, multiply", ratio(theirs, mine), 4)]


def step_targets(steps: list[dict], backend: str) -> list[dict]:
    """The goals of the soft training step at L = 200,000, d 128, 4 + 4 layers, bf16."""
    figures = {c["load"]["batch"]: c["figures"] for c in steps if c["load"]["mode"] == "soft"}

    def figure(what: str, batch: int, who: str = backend) -> float | None:
        return figures.get(batch, {}).get(who, {}).get(what)

    lines = [
        target(
            backend, "step, times as fast as the published form", ratio(figure("ms", 8, "mamba"), figure("ms", 8)), 3
        )
    ]
    for batch, goal in ((8, 10), (32, 80)):
        peak = figure("peak_mb", batch)
        lines.append(target(backend, f"step, GB at batch {batch}", peak and peak / 1e3, goal, least=False))
    return lines


def baseline_target(baseline: dict | None) -> dict:
    """The composed form's parts alone take its time: nothing in it is hidden."""
    return target("composed", "sum of parts over the whole", baseline and baseline["parts_over_whole"], 0.9)


def layer_lines(
    layers: list[dict], ours: tuple[str, ...], others: tuple[str, ...] = ("mamba", "composed")
) -> list[str]:
    """A line a case: of everybody ms, bytes a base saved, GB/s and peak; of ours also times as fast as the others."""
    head = f"{'case':40}"
    for name in (*others, *ours):
        head += f" |{name + ' ms':>12}{'B/base':>8}{'GB/s':>7}{'peak MB':>9}"
        head += "".join(f"{'x ' + other:>11}" for other in others) if name in ours else ""
    lines = [head]
    for case in layers:
        figures = case["figures"]
        text = f"{short(case['case']):40}"
        for name in (*others, *ours):
            mine = figures.get(name, {})
            text += f" |{number(mine.get('ms'), 3):>12}{number(mine.get('hooks_bytes_per_base'), 0):>8}"
            text += f"{number(mine.get('gb_per_s'), 0):>7}{number(mine.get('peak_mb'), 0):>9}"
            for other in others if name in ours else ():
                text += f"{number(ratio(figures.get(other, {}).get('ms'), mine.get('ms')), 2):>11}"
        lines.append(text)
    return lines + reasons(layers)


def baseline_lines(baseline: dict | None) -> list[str]:
    if baseline is None:
        return []
    return [
        f"{short(baseline['baseline'])}: {baseline['whole_ms']:.3f} ms, its parts alone {baseline['sum_ms']:.3f} ms",
        *(f"  {name:20}{ms:>10.3f} ms" for name, ms in baseline["parts_ms"].items()),
    ]


def case_lines(cases: list[dict], chip: Chip | None, ours: tuple[str, ...], other: str) -> list[str]:
    """A line a case: ms, times as fast as `other`, times the floor, GB/s and peak of each of ours."""
    head = f"{'case':44}{other + ' ms':>13}"
    head += "".join(f" |{name + ' ms':>11}{'ratio':>7}{'xfloor':>7}{'GB/s':>7}{'peak MB':>9}" for name in ours)
    lines = [head]
    for case in cases:
        theirs = case["figures"].get(other, {}).get("ms")
        text = f"{short(case['case']):44}{number(theirs, 3):>13}"
        least = floor_ms(chip, case["load"]["direction"], case["elements"], case["bytes"]) if chip else None
        for name in ours:
            figure = case["figures"].get(name, {})
            mine = figure.get("ms")
            text += f" |{number(mine, 3):>11}{number(theirs / mine if theirs and mine else None, 2):>7}"
            text += f"{number(mine / least if mine and least else None, 2):>7}"
            text += f"{number(figure.get('gb_per_s'), 0):>7}{number(figure.get('peak_mb'), 0):>9}"
        lines.append(text)
    return lines + reasons(cases)


def reasons(cases: list[dict]) -> list[str]:
    """Why there is no figure, once for each reason."""
    found: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        for name, figure in case["figures"].items():
            if "ms" not in figure:
                why = figure.get("withheld") or figure.get("error") or "unknown"
                found[f"{name}: {why}"].append(short(case["case"]))
    return [f"no figure for {why} ({len(where)} cases, first {where[0]})" for why, where in found.items()]


def tuning_lines(records: list[dict]) -> list[str]:
    """The best point of each grid beside the default, or why there is none."""
    lines = [f"{r['backend']}: skipped, {r['skipped']}" for r in records if "skipped" in r]
    groups: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for r in records:
        if "ms" in r:
            groups[r["backend"], r["case"]][r["point"]] = r["ms"]
    for (backend, case), times in groups.items():
        best = min(times, key=times.__getitem__)
        lines.append(
            f"{backend} {short(case)}: best {best} {times[best]:.3f} ms, default {number(times.get('default'), 3)} ms, "
            f"{len(times)} points"
        )
    return lines + sorted({f"{r['backend']}: no figure, {r['withheld']}" for r in records if "withheld" in r})


def target_lines(lines: list[dict]) -> list[str]:
    words = {True: "met", False: "MISSED", None: "not measured"}
    return [
        f"{t['backend']:9}{t['what']:58}{number(t['figure'], 2):>8}  {t['goal']:14}{words[t['met']]}" for t in lines
    ]


def test_lines(tests: dict[str, dict]) -> list[str]:
    lines = []
    for name, found in tests.items():
        lines += [f"{name}: FAILED {f['test'].split('::')[-1]}: {f['reason'][:150]}" for f in found["failures"][:6]]
        lines += [f"{name}: NEVER ENDED {test.split('::')[-1]}" for test in found["first_that_never_ended"]]
    return lines


def final(result: dict, chip: Chip | None, ours: tuple[str, ...], other: str) -> list[str]:
    """What is printed at the end."""
    steps = [f"{s['step']:20}{s['status']:9}{s['seconds']:6.0f} s  {s['note'][:160]}" for s in result["steps"]]
    tiny = "" if result["facts"]["gpu"] else ", tiny ones on the CPU"
    parts = {
        "steps": steps,
        "tests": test_lines(result["tests"]),
        f"cases{tiny} (ratio: {other} / ours; xfloor: ours / floor)": case_lines(result["cases"], chip, ours, other),
        f"layers{tiny} (B/base: saved for the backward)": layer_lines(result["layers"], ours),
        f"mask{tiny} (GB/s: of the bytes that ours moves)": layer_lines(result["masks"], ours, ("composed",)),
        f"pack{tiny} (GB/s: of the bytes that ours moves)": layer_lines(result["packs"], ours, ("composed",)),
        f"input{tiny} (GB/s: of the bytes that ours moves)": layer_lines(result["inputs"], ours, ("composed",)),
        f"training steps{tiny} (GB/s: of the residual stream alone)": layer_lines(result["training_steps"], ours),
        "the published form on our scan, forward and backward": baseline_lines(result["baseline"]),
        "tuning": tuning_lines(result["tuning"]),
        "targets": target_lines(result["targets"]),
    }
    return [line for title, lines in parts.items() if lines for line in ("", f"-- {title}", *lines)]


def verdict(log: str, status: str) -> str:
    """Of a run of compute-sanitizer: "passed", "failed: ..." or "skipped: ..."."""
    errors = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", log)
    if errors and int(errors[-1]):
        first = next((line for line in log.splitlines() if "=========" in line and "COMPUTE-SANITIZER" not in line), "")
        return f"failed: {errors[-1]} found, first {first.strip('= ')[:150]}"
    if errors and status == "ok":
        return "passed"
    lines = [line for line in log.splitlines() if line.strip("= \n")]
    return f"skipped: {status}, {lines[-1].strip('= ')[:150] if lines else 'no output'}"


def clocks(log: str) -> dict[str, list[float]]:
    """Least, median and greatest of what nvidia-smi saw: SM clock, power, temperature."""
    rows = []
    for line in log.splitlines():
        try:
            rows.append([float(value) for value in line.split(",")])
        except ValueError:
            continue
    columns = zip(*(row for row in rows if len(row) == 3), strict=True)
    names = ("sm_mhz", "power_w", "temperature_c")
    return {n: [min(c), statistics.median(c), max(c)] for n, c in zip(names, columns, strict=False)}


def slug(gpu: str) -> str:
    """NVIDIA H200 -> h200."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia ")).strip("-")


def short(case: str) -> str:
    return case.replace("_d256_n16", "").replace("_d128_n16", "").replace("bfloat16", "bf16").replace("float32", "fp32")


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
