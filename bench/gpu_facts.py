"""Prints as JSON what machine this is and which versions are on it. Reads only; changes no setting of the GPU."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLOCKS = ("clocks.max.sm", "clocks.max.mem", "clocks.sm", "clocks.mem", "power.limit", "temperature.gpu")


def facts() -> dict[str, Any]:
    """gpu is None without a CUDA device."""
    import torch

    return {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: version(name) for name in ("triton", "numpy", "pytest")},
        "nvcc": program("nvcc", r"release ([\d.]+)") or program("/usr/local/cuda/bin/nvcc", r"release ([\d.]+)"),
        "compute-sanitizer": program("compute-sanitizer", r"([\d.]+)"),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu() if torch.cuda.is_available() else None,
    }


def gpu() -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "l2_mb": round(getattr(properties, "L2_cache_size", 0) / 1e6, 1),
        "driver": (query("driver_version") or [None])[0],
        **dict(zip(CLOCKS, query(*CLOCKS) or [None] * len(CLOCKS), strict=True)),
    }


def query(*fields: str) -> list[str] | None:
    """From nvidia-smi, units included."""
    try:
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = run.stdout.strip().splitlines()
    found = [value.strip() for value in values[0].split(",")] if values and run.returncode == 0 else []
    return found if len(found) == len(fields) else None


def commit() -> str | None:
    """Of the checkout, or as `make carry` noted it."""
    try:
        run = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20)
        dirty = subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", "HEAD"], capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        run = None
    if run and run.returncode == 0:
        return run.stdout.strip() + ("" if dirty.returncode == 0 else ", with changes")
    noted = ROOT / "carry" / "commit"
    return noted.read_text().strip() if noted.exists() else None


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def program(name: str, pattern: str) -> str | None:
    """The version that `name --version` prints."""
    if shutil.which(name) is None:
        return None
    try:
        run = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(pattern, run.stdout)
    return found[1] if found else "unknown"


if __name__ == "__main__":
    print(json.dumps(facts()))
