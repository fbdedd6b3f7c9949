"""What to say when the memory is not enough: how many windows at a time would fit."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from seq2exp.errors import is_out_of_memory

PROCESS = Path("/proc/self")


def windows_that_fit(step: Callable[[int], None], device: torch.device) -> int | None:
    """How many windows at a time fit, from the peaks of ``step`` on one and on two; None where memory is not known."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    fits = 0
    try:
        free, held = free_bytes(device), held_bytes(device)
        one = peak_bytes(lambda: step(1), device)
        fits = 1
        two = peak_bytes(lambda: step(2), device)
    except OSError:  # not Linux
        return None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return fits
    return 1 + max(0, free - (one - held)) // max(1, two - one)


def advice(windows: int, accumulate: int, fits: int | None, *, recomputes: bool) -> str:
    """What would fit instead of ``windows`` at a time, and the settings for it."""
    share = windows * accumulate
    possible = [n for n in range(1, windows) if share % n == 0 and (fits is None or n <= fits)]
    remedies = []
    if possible:
        remedies.append(f"data.accumulate: {share // possible[-1]} ({possible[-1]} at a time)")
    if not recomputes:
        remedies.append("model.recompute: layer")
    known = "" if fits is None else f"at most {min(fits, windows - 1)} would fit: "
    return f"{known}set {' or '.join(remedies or ['a smaller model.length or model.d_model'])}"


def free_bytes(device: torch.device) -> int:
    """What this process can still allocate."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available: int = psutil.virtual_memory().available
    process = psutil.Process()
    if psutil.LINUX and (limit := process.rlimit(psutil.RLIMIT_AS)[0]) != psutil.RLIM_INFINITY:
        available = min(available, limit - process.memory_info().vms)
    return available


def held_bytes(device: torch.device) -> int:
    """What this process has allocated."""
    held: int = torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    return held


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """The most that this process has allocated while ``work`` runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    (PROCESS / "clear_refs").write_text("5")  # the high-water mark becomes what is resident now
    work()
    status = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])
