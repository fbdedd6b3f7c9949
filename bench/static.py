"""What can be said of the GPU kernels without a GPU: `python bench/static.py`, or `make static`.

Compiles every variant for sm_80 and sm_90 and writes bench/results/static.json: registers, stack, shared memory,
occupancy and code size of the variants; instructions per state element of the ops, all their kernels together, at
batch 8 with 256 channels and 16 states (a mixer's step sizes of rank 8); the same count of mamba-ssm's scan as its
calibration, where that has been fetched (else the recorded one is kept). Exit code 1: a variant spills, a target is
missed or the calibration is off; 2: a tool is not there or kernels and trip counts do not fit together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import calibration
import conv_trips
import mask_trips
import static_cuda
from gpu_build import load_setup
from sass import SassError
from scan_trips import Problem
from static_report import calibration_table, op_table, variant_table

RESULTS = Path(__file__).parent / "results" / "static.json"
ARCHITECTURES = (80, 90)
PROBLEMS = [
    Problem(direction, length, dtype, reverse)
    for direction, dtype, length, reverse in product(
        ("forward", "backward"), ("float32", "bfloat16"), (200_000, 200_704), (False, True)
    )
]
MIXER_PROBLEMS = [
    Problem(direction, 200_000, dtype, reverse)
    for direction, dtype, reverse in product(
        ("mixer forward", "mixer backward, open", "mixer backward, closing"), ("float32", "bfloat16"), (False, True)
    )
]
CONVOLUTION_PROBLEMS = [
    conv_trips.Problem(f"convolution, {direction}", 200_000, dtype)
    for direction, dtype in product(("forward", "backward"), ("float32", "bfloat16"))
]

ALL_PROBLEMS = [*PROBLEMS, *MIXER_PROBLEMS, *CONVOLUTION_PROBLEMS, *mask_trips.problems()]


def main() -> int:
    try:
        check_tools()
        report = collect()
    except SassError as error:
        print(f"make static: {error}", file=sys.stderr)
        return 2
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(variant_table(report["variants"]), op_table(report["ops"]), sep="\n\n", end="\n\n")
    print(calibration_table(report["calibration"]), end="\n\n")
    failures = failed(report)
    print("\n".join(failures) or "no variant spills, every target is met, the calibration holds")
    return 1 if failures else 0


def check_tools() -> None:
    """Raises SassError."""
    if load_setup().find_nvcc() is None:
        raise SassError("nvcc was not found (NVCC, CUDA_HOME or PATH), so no kernel can be compiled")
    if find_spec("triton") is None:
        raise SassError("triton is not installed; it also brings cuobjdump, which disassembles the kernels")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SassError("Triton compiles nothing while TRITON_INTERPRET is set")


def collect() -> dict:
    """Raises SassError."""
    import static_triton

    variants, ops, changes = [], [], {}
    for compiled in static_cuda.compile_all(ARCHITECTURES):
        variants += static_cuda.variants(compiled)
        ops += [static_cuda.op(compiled, problem) for problem in ALL_PROBLEMS]
        changes[f"sm_{compiled.architecture}"] = static_cuda.changed_by_marks(compiled)
    for architecture in ARCHITECTURES:
        variants += static_triton.variants(architecture)
        ops += [static_triton.op(problem, architecture) for problem in ALL_PROBLEMS]
    return {
        "tools": tools(),
        "variants": [variant.record() for variant in variants],
        "ops": [op.record() for op in ops],
        "changed_by_marks": changes,
        "calibration": calibrated(),
    }


def calibrated() -> list[dict]:
    if (reason := calibration.missing()) is None:
        return calibration.calibrate()
    print(f"calibration skipped: {reason}; the recorded figures are kept", file=sys.stderr)
    return recorded()["calibration"] if RESULTS.exists() else []


def recorded() -> dict:
    return json.loads(RESULTS.read_text())


def failed(report: dict) -> list[str]:
    """A sentence for each variant that spills, target that is missed, calibration figure that is off."""
    found = [f"{r['kernel']} spills on sm_{r['architecture']}" for r in report["variants"] if r["spills"]]
    found += [
        f"{r['direction']}{' reverse' if r['reverse'] else ''} {r['dtype']} at L = {r['length']:,} takes "
        f"{r['per_element']} instructions per state element on sm_{r['architecture']}; the target is {r['target']:g}"
        for r in report["ops"]
        if not r["met"]
    ]
    found += [
        f"calibration: {r['direction']} at L = {r['length']:,} gives {r['per_element']}, not {r['expected']}"
        for r in report["calibration"]
        if not r["met"]
    ]
    return found


def tools() -> dict[str, str]:
    said = subprocess.run([load_setup().find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return {"nvcc": said.split(", V")[1].split()[0], "triton": version("triton")}


if __name__ == "__main__":
    sys.exit(main())
