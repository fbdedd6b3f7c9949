"""`make gpu` where there is no GPU: its measuring code on tiny tensors, what a bare Python imports, its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import gpu_build
import gpu_report as report
import pytest
from gpu_build import extension, make_tree
from gpu_jobs import Job, append, read

from seq2exp.kernels import _extension

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
# torch and what torch imports; no pydantic, rich, typer, zarr, safetensors
BARE = (
    "torch", "torchgen", "functorch", "triton", "numpy", "numpy.libs", "typing_extensions.py", "sympy", "mpmath",
    "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "setuptools",
)  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The importable tree with the extension of this installation, if there is one."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gpu_build, "has_pydantic", lambda: False)
        folder = make_tree(tmp_path_factory.mktemp("gpu") / "tree")
    if _extension.load() is None:
        extension(folder).symlink_to(str(files("seq2exp") / "_C.so"))
    return folder


@pytest.fixture(scope="module")
def bare(tree, tmp_path_factory) -> dict[str, str]:
    """Environment of a Python (run with -S) that finds torch, triton and numpy, the tree, and nothing else."""
    packages = tmp_path_factory.mktemp("bare")
    torch = find_spec("torch")
    assert torch and torch.origin
    site = Path(torch.origin).parents[1]
    for name in BARE:
        if (site / name).exists():
            (packages / name).symlink_to(site / name)
    paths = (tree, BENCH, ROOT / "tests" / "support", packages)
    return {
        "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def python(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_measuring_and_tuning_on_a_bare_python(bare, tmp_path):
    """One process for both steps, as starting torch takes longer than they do."""
    if _extension.load():
        pytest.skip(_extension.load())
    gate, journal = tmp_path / "gate.json", tmp_path / "measure.jsonl"
    gate.write_text(json.dumps({"cpu": {"backward": "2 of 3 backward tests failed"}}))
    program = f"""
import importlib.util, json, sys
from pathlib import Path
import gpu_measure, gpu_tune, gpu_facts, seq2exp
assert Path(seq2exp.__file__).parent.parent.name == "tree", seq2exp.__file__
assert not any(importlib.util.find_spec(name) for name in ("pydantic_core", "rich", "zarr", "safetensors"))
gate = json.loads(Path({str(gate)!r}).read_text())
gpu_measure.run(Path({str(journal)!r}), gate, 60, gpu_measure.load_peers(Path("/nowhere")))
gpu_tune.main(Path({str(journal)!r}), gate, float("inf"))
print(json.dumps(gpu_facts.facts()))
"""
    done = python(bare, "-c", program)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["gpu"] is None and facts["torch"] and facts["cores"] >= 1
    records = read(journal)
    found = [r for r in records if "figures" in r]
    cases = [r for r in found if "direction" in r["load"] and "shape" not in r["load"]]
    check_masks([r for r in found if "kind" in r["load"]])
    (pack,) = (r["figures"] for r in found if "share" in r["load"])
    assert 0 < pack["cpu"]["error_rms"] < 1e-2 and pack["cpu"]["ms"] > 0 < pack["composed"]["ms"]
    check_inputs([r for r in found if "kept" in r["load"]])
    check_steps([r for r in found if "mode" in r["load"]])
    assert len(cases) == 8 and any("copy_gb_per_s" in r for r in records)
    check_layers([r for r in found if "shape" in r["load"]], next(r for r in records if "baseline" in r))
    for case in cases:
        ours, other = case["figures"]["cpu"], case["figures"]["reference"]
        assert other["ms"] > 0 and other["gb_per_s"] >= 0 and 0 < other["error_rms"] <= 1e-2
        if case["load"]["direction"] == "backward":
            assert ours == {"withheld": "2 of 3 backward tests failed"}
        else:
            assert ours["ms_min"] <= ours["ms"] <= ours["ms_max"] and ours["calls"] >= 2
    tuned = [r for r in records if "point" in r]
    assert {r["point"] for r in tuned} > {"default", "portable"} and all("ms" in r for r in tuned)
    assert [r["case"] for r in records if r.get("withheld")] == ["backward_b2_l500_d8_n4_bfloat16"]


def check_masks(masks: list[dict]) -> None:
    assert [r["load"]["kind"] for r in masks] == ["soft", "hard", "top"]
    for case in masks:
        ours, other = case["figures"]["cpu"], case["figures"]["composed"]
        assert 0 < ours["error_rms"] < 1e-4 and 0 < other["error_rms"] <= 1e-3
        assert ours["ms_min"] <= ours["ms"] <= ours["ms_max"] and other["ms"] > 0
        if case["load"]["kind"] != "top":
            assert ours["hooks_bytes_per_base"] <= 24 < other["hooks_bytes_per_base"]


def check_inputs(inputs: list[dict]) -> None:
    assert [r["load"]["kept"] for r in inputs] == [1.0, 0.1]
    for case in inputs:
        ours, other = case["figures"]["cpu"], case["figures"]["composed"]
        assert 0 < ours["error_rms"] < 1e-2 and ours["ms"] > 0 < other["ms"]
        assert ours["hooks_bytes_per_base"] < 13


def check_steps(steps: list[dict]) -> None:
    assert [r["load"]["mode"] for r in steps] == ["soft", "hard"]
    for case in steps:
        ours, other = case["figures"]["cpu"], case["figures"]["composed"]
        for figure in (ours, other):
            assert 0 < figure["error_rms"] <= 0.15 and figure["ms"] > 0
        assert ours["hooks_bytes_per_base"] < other["hooks_bytes_per_base"] / 5
        assert case["figures"]["mamba"]["withheld"].startswith("not measured: mamba-ssm cannot be imported")


def check_layers(layers: list[dict], baseline: dict) -> None:
    assert {(r["load"]["shape"], r["load"]["direction"]) for r in layers} >= {
        ("mixer", "both"), ("mixer", "forward"), ("layer", "both"), ("equivariant", "both"), ("equivariant", "forward"),
    }  # fmt: skip
    for case in layers:
        ours, other = case["figures"]["cpu"], case["figures"]["composed"]
        assert other["ms"] > 0 and 0 < other["error_rms"] <= 2e-2
        assert case["figures"]["mamba"]["withheld"].startswith("not measured: mamba-ssm cannot be imported")
        if case["load"]["direction"] == "both":
            assert other["hooks_bytes_per_base"] > 500 and "live_bytes_per_base" in other
            assert ours["hooks_bytes_per_base"] < other["hooks_bytes_per_base"] / 10
        assert ours["ms_min"] <= ours["ms"] <= ours["ms_max"]
    assert baseline["sum_ms"] == pytest.approx(sum(baseline["parts_ms"].values()), rel=1e-3)
    assert {"scan", "convolution", "flip"} < set(baseline["parts_ms"])


def test_gpu_tests_are_collected_and_skipped_by_name(tree, tmp_path):
    """In two parts that together are all."""
    journal = tmp_path / "tests.jsonl"
    paths = (tree, BENCH, ROOT / "tests" / "support")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONSAFEPATH": "1", "GPU_TEST_JOURNAL": str(journal),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_plugin", "-p", "no:cacheprovider", "-m", "gpu"]
    tests = ROOT / "tests" / "kernels" / "test_selective_scan_gpu.py"
    for part in ("0/2", "1/2"):
        shard = environment | {"GPU_TEST_SHARD": part}
        done = subprocess.run([*command, str(tests)], env=shard, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout
    records = read(journal)
    first, second = (set(r["collected"]) for r in records if "collected" in r)
    assert len(first) > 80 and len(second) > 80 and not first & second
    found = report.summary(records)
    assert set(found["skips"]) == {"no CUDA device"} and found["skipped"] > 200 and found["never_ended"] == 0
    gate = report.gate(records, ("cuda", "triton"))
    assert gate["cuda"]["forward"] == gate["triton"]["backward"].replace("backward", "forward")
    assert gate["cuda"]["forward"] == "no forward test ran: no CUDA device"


def outcome(name: str, result: str, reason: str = "") -> dict:
    return {"test": f"t.py::{name}", "outcome": result, "reason": reason, "seconds": 0.1}


def test_gate_follows_the_tests():
    records = [
        outcome("test_forward[cuda-1]", "passed"), outcome("test_backward[cuda-1]", "failed", "off"),
        outcome("test_opcheck[cuda]", "failed"), outcome("test_forward[triton-1]", "failed", "off"),
        outcome("test_backward[triton-1]", "passed"), outcome("test_forward[cpu-1]", "passed"),
        outcome("test_backward[cpu-1]", "passed"), outcome("test_backward[cpu-2]", "skipped", "memory"),
    ]  # fmt: skip
    records += [
        {**outcome("", "passed"), "test": "tests/test_bimamba_gpu.py::test_scan[cuda-1]"},
        {**outcome("", "failed"), "test": "tests/test_add_norm_gpu.py::test_backward[triton-1]"},
        {**outcome("", "passed"), "test": "tests/test_beta_mask_gpu.py::test_options[cuda-soft]"},
        {**outcome("", "failed"), "test": "tests/test_beta_mask_gpu.py::test_backward[triton-soft]"},
        {**outcome("", "passed"), "test": "tests/test_gather_gpu.py::test_overflow[cuda]"},
        {**outcome("", "passed"), "test": "tests/test_embed_gpu.py::test_backward[cuda]"},
    ]
    gate = report.gate(records, ("cuda", "triton", "cpu"))
    proven = dict.fromkeys(("forward", "layer", "mask", "gather", "embed"))
    assert gate["cuda"] == {**proven, "backward": "1 of 1 backward tests failed"}
    assert gate["triton"] == {
        **dict.fromkeys(("forward", "backward"), "1 of 1 forward tests failed"), "layer": "1 of 1 layer tests failed",
        "mask": "1 of 1 mask tests failed", "gather": "no gather test ran: none was found",
        "embed": "no embed test ran: none was found",
    }  # fmt: skip
    none = {what: f"no {what} test ran: none was found" for what in ("layer", "mask", "gather", "embed")}
    assert gate["cpu"] == {"forward": None, "backward": None, **none}
    hung = [{"collected": ["t.py::test_forward[cpu-9]"]}, *records]
    assert report.gate(hung, ("cpu",))["cpu"]["forward"] == "1 of 2 forward tests failed"
    assert report.summary(hung)["first_that_never_ended"] == ["t.py::test_forward[cpu-9]"]


@pytest.mark.parametrize("chip,forward,backward", [("A100", 5.4, 16), ("H200", 3.1, 5.1)])
def test_floors_are_those_of_the_design(chip, forward, backward):
    """Both directions of a layer at batch 8, L = 200,000: milliseconds."""
    elements = 8 * 200_000 * 256 * 16
    assert 2 * report.floor_ms(report.CHIPS[chip], "forward", elements, 0) == pytest.approx(forward, rel=0.02)
    assert 2 * report.floor_ms(report.CHIPS[chip], "backward", elements, 0) == pytest.approx(backward, rel=0.1)
    assert report.floor_ms(report.CHIPS[chip], "forward", 1, 10**12) == 1e12 / report.CHIPS[chip].bandwidth / 1e6


GPU = {"name": "NVIDIA H200", "capability": "90", "multiprocessors": 132, "clocks.max.sm": "1980 MHz"}


def test_chip_of_a_machine():
    assert report.Chip.of(GPU, 4_300.0) == report.Chip(132, 1.98, 128, 4_300.0)
    assert report.Chip.of(GPU | {"clocks.max.sm": None}, None) == report.CHIPS["H200"]
    assert report.Chip.of(GPU | {"name": "other", "clocks.max.sm": "[N/A]"}, 1.0) is None


def case(direction: str, batch: int, length: int, **ms: float) -> dict:
    from workload import Workload

    load = Workload(direction, batch, length, dtype="bfloat16")
    figures = {name: {"ms": value, "gb_per_s": 1.0, "peak_mb": 8_000.0} for name, value in ms.items()}
    return {
        "case": load.name, "load": vars(load), "elements": load.elements, "bytes": load.bytes, "figures": figures,
    }  # fmt: skip


def test_targets_and_table():
    cases = [
        case("forward", 8, 200_000, cuda=3.0, mamba=9.0), case("forward", 1, 200_000, cuda=1.0),
        case("backward", 8, 200_000, cuda=12.0, mamba=18.0, triton=20.0),
        case("forward", 8, 200_704, mamba=6.0),
    ]  # fmt: skip
    cases[3]["figures"]["cuda"] = {"error": "AssertionError: off"}
    targets = {t["what"]: t for t in report.targets(cases, report.CHIPS["H200"], "cuda")}
    assert [targets[w]["met"] for w in (
        "forward, times as fast as mamba-ssm, L 200,704", "forward, times as fast as mamba-ssm, L 200,000",
        "backward, times as fast as mamba-ssm, L 200,000", "forward, times the floor (stretch 1.6)",
        "backward, times the floor (stretch 3)", "forward, throughput a base of batch 1 over batch 8",
        "backward, GB beside the gradients",
    )] == [None, True, False, True, False, False, False]  # fmt: skip
    assert targets["forward, throughput a base of batch 1 over batch 8"]["figure"] == 0.375
    assert targets["forward, times the floor (stretch 1.6)"]["figure"] == pytest.approx(3.0 / 1.567, rel=0.01)
    lines = report.case_lines(cases, report.CHIPS["H200"], ("cuda", "triton"), "mamba")
    assert "3.000" in lines[1] and "3.00" in lines[1] and len(lines) == 6
    assert lines[-1] == "no figure for cuda: AssertionError: off (1 cases, first forward_b8_l200704_bf16)"


def layer_case(shape: str, length: int, **figures: dict) -> dict:
    from layer_load import LayerLoad

    load = LayerLoad(shape, "both", 8, length, dtype="bfloat16")
    return {"case": load.name, "load": vars(load), "elements": load.elements, "bytes": load.bytes, "figures": figures}


def test_layer_targets_and_table():
    def figure(ms: float, peak: float, saved: float) -> dict:
        kept = {"hooks_bytes_per_base": saved, "live_bytes_per_base": saved + 30}
        return {"ms": ms, "peak_mb": peak, "gb_per_s": 1_000.0, **kept}

    layers = [
        layer_case("mixer", 200_704, cuda=figure(40, 5e3, 384), mamba=figure(90, 1.2e4, 4_160)),
        layer_case("mixer", 200_000, cuda=figure(40, 5e3, 384), mamba=figure(150, 1.2e4, 4_160)),
        layer_case("layer", 200_000, cuda=figure(41, 5e3, 500)),
        layer_case("equivariant", 200_000, cuda=figure(82, 1.2e4, 1_000), mamba={"withheld": "not measured: no nvcc"}),
    ]
    targets = report.layer_targets(layers, "cuda")
    assert [(t["figure"], t["met"]) for t in targets] == [
        (2.25, False), (3.75, True), (2.0, True), (2.4, False), (384, True), (414, False), (2.4, True),
    ]  # fmt: skip
    assert {t["met"] for t in report.layer_targets(layers, "triton")} == {None}
    lines = report.layer_lines(layers, ("cuda",))
    assert "mixer_both_b8_l200704_bf16" in lines[1] and "2.25" in lines[1] and "384" in lines[1] and "4160" in lines[1]
    assert lines[-1] == "no figure for mamba: not measured: no nvcc (1 cases, first equivariant_both_b8_l200000_bf16)"


def test_mask_targets_and_table():
    from mask_load import MaskLoad

    def masked(kind: str, **ms: float) -> dict:
        load = MaskLoad(kind, 8, 200_000)
        figures = {name: {"ms": value, "gb_per_s": 1.0, "peak_mb": 100.0} for name, value in ms.items()}
        return {"case": load.name, "load": vars(load), "elements": load.elements, "figures": figures}

    masks = [masked("soft", cuda=0.4, composed=6.0), masked("hard", cuda=0.6, composed=3.0), masked("top", cuda=0.1)]
    assert [(t["figure"], t["met"]) for t in report.mask_targets(masks, "cuda")] == [
        (15.0, True), (0.4, True), (5.0, False), (0.6, False),
    ]  # fmt: skip
    assert {t["met"] for t in report.mask_targets(masks, "triton")} == {None}
    lines = report.layer_lines(masks, ("cuda",), ("composed",))
    assert "mask_soft_b8_l200000_fp32" in lines[1] and "15.00" in lines[1] and len(lines) == 4


def test_pack_targets_and_table():
    from gather_load import GatherLoad

    load = GatherLoad(0.1, 8, 200_000)
    figures = {name: {"ms": ms, "gb_per_s": 1.0, "peak_mb": 9.0} for name, ms in (("cuda", 0.5), ("composed", 2.0))}
    packs = [{"case": load.name, "load": vars(load), "elements": load.elements, "figures": figures}]
    (found,) = report.pack_targets(packs, "cuda")
    assert (found["figure"], found["met"]) == (4.0, True)
    assert report.pack_targets(packs, "triton")[0]["met"] is None
    assert "4.00" in report.layer_lines(packs, ("cuda",), ("composed",))[1]


def test_input_targets_and_table():
    from embed_load import EmbedLoad

    load = EmbedLoad(1.0, 8, 200_000)
    figures = {name: {"ms": ms, "gb_per_s": 1.0, "peak_mb": 9.0} for name, ms in (("cuda", 0.5), ("composed", 4.0))}
    inputs = [{"case": load.name, "load": vars(load), "elements": load.elements, "figures": figures}]
    (found,) = report.input_targets(inputs, "cuda")
    assert (found["figure"], found["met"]) == (8.0, True)
    assert report.input_targets(inputs, "triton")[0]["met"] is None
    assert "8.00" in report.layer_lines(inputs, ("cuda",), ("composed",))[1]


def test_step_targets():
    from step_load import StepLoad

    def measured(mode: str, batch: int, **figures: dict) -> dict:
        return {"case": "step", "load": vars(StepLoad(mode, batch, 200_000)), "figures": figures}

    steps = [
        measured("soft", 8, cuda={"ms": 500.0, "peak_mb": 9_500.0}, mamba={"ms": 1_600.0, "peak_mb": 6e4}),
        measured("soft", 32, cuda={"ms": 2_000.0, "peak_mb": 81_000.0}, triton={"error": "AssertionError: off"}),
        measured("hard", 8, cuda={"ms": 1.0, "peak_mb": 1.0}),
    ]
    assert [(t["figure"], t["met"]) for t in report.step_targets(steps, "cuda")] == [
        (3.2, True), (9.5, True), (81.0, False),
    ]  # fmt: skip
    assert [t["met"] for t in report.step_targets(steps, "triton")] == [None, None, None]


def test_baseline_of_the_layer():
    baseline = {
        "baseline": "mixer_both_b8_l200704_d128_n16_bfloat16", "whole_ms": 100.0, "sum_ms": 89.0,
        "parts_over_whole": 0.89, "parts_ms": {"scan": 80.0, "flip": 9.0},
    }  # fmt: skip
    assert report.baseline_target(baseline)["met"] is False and report.baseline_target(None)["met"] is None
    assert [line.split()[0] for line in report.baseline_lines(baseline)] == [
        "mixer_both_b8_l200704_bf16:",
        "scan",
        "flip",
    ]
    assert report.baseline_lines(None) == []


def test_verdict_of_the_sanitizer():
    assert report.verdict("========= ERROR SUMMARY: 0 errors\n", "ok") == "passed"
    races = (
        "========= COMPUTE-SANITIZER\n========= Error: Race reported\n========= RACECHECK SUMMARY: 2 hazards displayed"
    )
    assert report.verdict(races, "ok") == "failed: 2 found, first Error: Race reported"
    assert report.verdict("========= Device not supported\n", "failed") == "skipped: failed, Device not supported"


def test_clocks_and_slug():
    assert report.clocks("1980, 500.5, 60\nbroken\n1700, 300.0, 50\n")["sm_mhz"] == [1700.0, 1840.0, 1980.0]
    assert report.slug("NVIDIA A100-SXM4-80GB") == "a100-sxm4-80gb"


def test_a_crash_withholds_the_case_and_then_the_implementation(tmp_path):
    from gpu_measure import crashes, withheld
    from workload import Workload, backend

    scan = backend("cpu")
    journal = tmp_path / "j"
    first, second, third = (Workload("forward", 1, n) for n in (1, 2, 3))
    for record in (
        {"start": 1}, {"case": first.name, "running": "cuda"}, {"start": 1}, {"case": second.name, "running": "cuda"},
        {"start": 1}, {"case": third.name, "running": "all"}, {"case": third.name, "figures": {}}, {"start": 1},
    ):  # fmt: skip
        append(journal, record)
    with journal.open("a") as file:
        file.write('{"case": "cut o')
    found = crashes(read(journal))
    assert withheld("triton", first, {}, scan, found) is None
    assert withheld("cuda", first, {}, scan, found) == "the process ended while this was measured"
    assert withheld("cuda", third, {}, scan, found) == "the process ended in earlier cases while this ran"


def test_a_job_that_hangs_is_stopped_with_its_children(tmp_path):
    log = tmp_path / "log"
    start = time.monotonic()
    job = Job(["bash", "-c", "sleep 60 & echo $!; sleep 60"], 0.5, log, os.environ)
    assert job.wait().status == "timeout" and time.monotonic() - start < 10
    child = int(log.read_text())
    time.sleep(0.2)
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    failed = Job(["bash", "-c", "echo bad luck; exit 3"], 10, log, os.environ).wait()
    assert failed.status == "failed" and failed.note == "exit code 3: bad luck"
