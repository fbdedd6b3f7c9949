"""Makes Triton's interpreter (TRITON_INTERPRET=1) fast enough for tests; import it before kernels run.

- `associative_scan` in log2(n) vectorised steps instead of one call of the combine function per element. It also depends
  on the combine function being associative, as the GPU does.
- A function called by a kernel does not patch triton.language again: the kernel has done that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from triton.runtime import interpreter

_patched: set[str] = set()


def _scan(self: interpreter.ScanOps, inputs: tuple) -> list:
    values = [x.handle.data for x in inputs]
    length = values[0].shape[self.axis]
    position = np.arange(length).reshape([-1 if i == self.axis else 1 for i in range(values[0].ndim)])
    step = 1
    while step < length:
        before = [np.roll(value, step, self.axis) for value in values]
        tensors = [self.to_tensor(value, x.dtype) for side in (before, values) for value, x in zip(side, inputs * 2)]
        combined = self.combine_fn.fn(*tensors)
        values = [np.where(position >= step, x.handle.data, value) for x, value in zip(combined, values, strict=True)]
        step *= 2
    return [self.to_tensor(value, x.dtype) for value, x in zip(values, inputs, strict=True)]


def _call(self: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
    if self.fn.__module__ not in _patched:
        interpreter._patch_lang(self.fn)
        _patched.add(self.fn.__module__)
    return self.rewrite()(*args, **kwargs)


interpreter.ScanOps.generic_scan = _scan
interpreter.InterpretedFunction.__call__ = _call


@contextmanager
def backwards() -> Iterator[None]:
    """Runs the programs of a grid from last to first."""
    builder = interpreter.interpreter_builder
    forwards = builder.set_grid_idx

    def set_grid_idx(x: int, y: int, z: int) -> None:
        nx, ny, nz = builder.grid_dim
        forwards(nx - 1 - x, ny - 1 - y, nz - 1 - z)

    builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        builder.set_grid_idx = forwards
