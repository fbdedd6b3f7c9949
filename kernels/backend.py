"""Which implementation of an op runs: `backends()` says what is usable, `set_backend()` and SEQ2EXP_BACKEND choose."""

from __future__ import annotations

import importlib.util
import os
from types import TracebackType

import torch

from seq2exp.kernels import _extension

NAMES = ("reference", "cpu", "triton", "cuda")

# The ops that each backend implements. `reference` implements all of them.
IMPLEMENTED: dict[str, frozenset[str]] = dict.fromkeys(
    ("cpu", "triton", "cuda"),
    frozenset(
        {"add_norm", "beta_mask", "bimamba", "embed_bases", "pack_selected", "selective_scan", "unpack_selected"}
    ),
)
CAPABILITY = 8  # the oldest GPUs that the CUDA kernels are compiled for: Ampere

# Facts of the process, gathered at import: torch.compile traces the callers.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton kernels run on CPU tensors

_forced: str | None = None  # None: SEQ2EXP_BACKEND, or else "auto"


def backends() -> dict[str, str | None]:
    """What can run here: None for a usable backend, otherwise the reason why it is not.

    Returns
    -------
    dict with the keys reference, cpu, triton, cuda.
    """
    reasons: dict[str, str | None] = dict.fromkeys(NAMES)
    reasons["cpu"] = _extension.load()
    no_gpu = None if torch.cuda.is_available() else "torch finds no CUDA device"
    if not _HAS_TRITON:
        reasons["triton"] = "the package triton is not installed"
    elif not _INTERPRETED:
        reasons["triton"] = no_gpu
    reasons["cuda"] = _extension.load() or _extension.no_cuda() or no_gpu
    return reasons


class _Restore:
    """Returned by `set_backend`: leaves the choice in place, or undoes it at the end of a `with` block."""

    def __init__(self, previous: str | None) -> None:
        self._previous = previous

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        global _forced
        _forced = self._previous


def set_backend(name: str) -> _Restore:
    """Choose the backend of every op: "auto", "reference", "cpu", "triton" or "cuda".

    Works as a plain call and as a context manager. The environment variable SEQ2EXP_BACKEND sets the initial choice.

    Raises
    ------
    ValueError: the name is none of the five.
    RuntimeError: the backend cannot run here; the message says why. Nothing falls back.
    """
    global _forced
    _require_usable(name)
    previous, _forced = _forced, name
    return _Restore(previous)


def current_backend() -> str:
    """The choice in force: "auto" or the name of a forced backend."""
    return _forced if _forced is not None else os.environ.get("SEQ2EXP_BACKEND", "auto")


def resolve(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs `op` on tensors of this device and dtype.

    "auto" takes the fastest that supports both. float64 exists for proofs and always takes the reference.

    Raises
    ------
    RuntimeError: the forced backend does not implement the op, or not for this device.
    TypeError: the forced backend does not support the dtype.
    """
    choice = current_backend()
    if choice == "auto":
        return _fastest(op, device, dtype)
    _require_usable(choice)
    if choice == "reference":
        return choice
    if op not in IMPLEMENTED[choice]:
        raise RuntimeError(f"{op} has no {choice} kernel in this version: use set_backend('auto') or 'reference'")
    wanted = "cpu" if choice == "cpu" or (choice == "triton" and _INTERPRETED) else "cuda"
    if device.type != wanted:
        raise RuntimeError(f"backend {choice} works on {wanted} tensors, {op} was given {device.type} tensors")
    if dtype == torch.float64:
        raise TypeError(f"backend {choice} takes float32, bfloat16 and float16, {op} was given float64")
    if choice == "cuda" and not _capable(device):
        raise RuntimeError(f"backend cuda needs a GPU of compute capability {CAPABILITY}.0, this is an older one")
    return choice


def _fastest(op: str, device: torch.device, dtype: torch.dtype) -> str:
    if dtype == torch.float64:
        return "reference"
    if device.type == "cpu":
        return "cpu" if op in IMPLEMENTED["cpu"] and not _extension.load() else "reference"
    if device.type == "cuda":
        if op in IMPLEMENTED["cuda"] and not (_extension.load() or _extension.no_cuda()) and _capable(device):
            return "cuda"
        if op in IMPLEMENTED["triton"] and _HAS_TRITON:
            return "triton"
    return "reference"


def _capable(device: torch.device) -> bool:
    return torch.cuda.get_device_properties(device).major >= CAPABILITY


def _require_usable(name: str) -> None:
    if name == "auto":
        return
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r} (set_backend or SEQ2EXP_BACKEND): choose auto, {', '.join(NAMES)}")
    if reason := backends()[name]:
        raise RuntimeError(f"backend {name} cannot run here: {reason}")
