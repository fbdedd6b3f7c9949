"""What is installed and what can run here: `seq2exp info`, `python -m seq2exp.info`."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from seq2exp.kernels import _extension, backends

PACKAGES = ("seq2exp", "triton", "numpy")


def collect() -> dict[str, Any]:
    """Everything a report of a problem should hold.

    Returns
    -------
    dict: versions (name -> version, None when absent), platform, backends (name -> None when usable, else the reason),
    extension (None without compiled extension, else nvcc, cuda_architectures, cuda_runtime, cuda_driver; nvcc is None
    without CUDA code), gpus (name, compute capability, GiB), threads, instruction_set in use, usable instruction_sets.
    """
    extension = _extension_facts()
    return {
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "backends": backends(),
        "extension": extension,
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "instruction_set": _instruction_set() if extension else None,
        "instruction_sets": torch.ops.seq2exp_native.cpu_instruction_sets() if extension else [],
    }


def render(info: dict[str, Any] | None = None) -> Table:
    """`collect()` as a table for a terminal."""
    info = collect() if info is None else info
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, version in info["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_row("platform", info["platform"])
    for name, reason in info["backends"].items():
        table.add_row(f"backend {name}", "usable" if reason is None else f"unavailable: {reason}")
    extension = info["extension"]
    if extension is None:
        compiled = "nothing: the kernels run on plain PyTorch"
    elif extension["nvcc"] is None:
        compiled = "CPU kernels; no CUDA code, nvcc was not found or failed at install"
    else:
        architectures = ", ".join(extension["cuda_architectures"])
        compiled = f"CPU kernels; CUDA code for {architectures} by nvcc {extension['nvcc']}"
    table.add_row("compiled", compiled)
    if extension and extension["nvcc"]:
        driver = f"up to {extension['cuda_driver']}" if extension["cuda_driver"] else "none"
        table.add_row("CUDA", f"runtime {extension['cuda_runtime']}, driver {driver}")
    table.add_row("GPU", "; ".join(info["gpus"]) or "none that PyTorch can use")
    table.add_row("threads", str(info["threads"]))
    usable = ", ".join(info["instruction_sets"])
    table.add_row("CPU kernels use", f"{info['instruction_set']} (of {usable})" if usable else "PyTorch's own choice")
    return table


def main() -> None:
    """Print the table."""
    Console(soft_wrap=True).print(render())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extension_facts() -> dict[str, Any] | None:
    if _extension.load() is not None:
        return None
    ops = torch.ops.seq2exp_native
    nvcc, *architectures = ops.cuda_build() or [None]
    runtime, driver = ops.cuda_versions() or (0, 0)
    return {
        "nvcc": nvcc,
        "cuda_architectures": architectures,
        "cuda_runtime": _cuda_version(runtime),
        "cuda_driver": _cuda_version(driver),
    }


def _cuda_version(number: int) -> str | None:
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _instruction_set() -> str:
    try:
        return torch.ops.seq2exp_native.cpu_instruction_set()
    except RuntimeError as error:  # SEQ2EXP_CPU_ISA names one that this CPU lacks: say it here, the scan refuses to run
        return f"none: {str(error).splitlines()[0]}"


def _gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name} (sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB)"


if __name__ == "__main__":
    main()
