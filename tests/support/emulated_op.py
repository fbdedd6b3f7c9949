"""What the CUDA ops have in common under the emulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from emulated_cuda import add_buffer
from emulated_scan import Outputs
from torch import Tensor


def run(
    loaded: ctypes.CDLL, checked: bool, function: Callable[..., None], arguments: tuple, outputs: Outputs,
    used: dict[str, Tensor | None],
) -> None:  # fmt: skip
    """Calls an entry. checked: its kernels may touch only what is `used`."""
    if checked:
        for name, x in used.items():
            if x is not None and x.numel():
                extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
                add_buffer(loaded, name, x.data_ptr(), extent * x.itemsize)
    try:
        function(*arguments)
    finally:
        if checked:
            loaded.checks_forget_buffers()
    outputs.check()


def pointer(x: Tensor | None) -> int | None:
    assert x is None or x.is_contiguous()
    return None if x is None else x.data_ptr()
