"""Triton's interpreter (TRITON_INTERPRET=1) for tests: fast enough, and watching memory. Import it before kernels run.

- `associative_scan` takes log2(n) vectorised steps instead of one call of the combine function per element. It also
  depends on the combine function being associative, as it does on a GPU.
- A function called by a kernel does not patch triton.language again: the kernel has done that.
- The types of tensors and their shapes are made once.
- `backwards` runs programs from last to first, `races` finds accesses whose order a GPU would leave open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
from triton.language import core
from triton.runtime import interpreter

_patched: set[str] = set()
_types: dict[tuple, dict] = {}
_shapes: dict[tuple, tuple] = {}
_make_type, _make_tensor = core.block_type.__init__, core.tensor.__init__


def _scan(self: interpreter.ScanOps, inputs: tuple) -> list:
    values = [x.handle.data for x in inputs]
    length = values[0].shape[self.axis]
    position = np.arange(length).reshape([-1 if i == self.axis else 1 for i in range(values[0].ndim)])
    step = 1
    while step < length:
        before = [np.roll(value, step, self.axis) for value in values]
        tensors = [
            self.to_tensor(value, x.dtype) for side in (before, values) for value, x in zip(side, inputs, strict=True)
        ]
        combined = self.combine_fn.fn(*tensors)
        values = [np.where(position >= step, x.handle.data, value) for x, value in zip(combined, values, strict=True)]
        step *= 2
    return [self.to_tensor(value, x.dtype) for value, x in zip(values, inputs, strict=True)]


def _call(self: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
    if self.fn.__module__ not in _patched:
        interpreter._patch_lang(self.fn)
        _patched.add(self.fn.__module__)
    return self.rewrite()(*args, **kwargs)


def _type(self: core.block_type, element_ty: core.dtype, shape: list) -> None:
    key = (str(element_ty), *(getattr(size, "value", size) for size in shape))
    if key not in _types:
        _make_type(self, element_ty, shape)
        _types[key] = dict(vars(self))
    vars(self).update(_types[key])


def _tensor(self: core.tensor, handle: interpreter.TensorHandle, type: core.dtype) -> None:
    key = tuple(type.shape) if type.is_block() else ()
    if key not in _shapes:
        _make_tensor(self, handle, type)
        _shapes[key] = self.numel, self.shape
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _shapes[key]


core.block_type.__init__ = _type
core.tensor.__init__ = _tensor
interpreter.ScanOps.generic_scan = _scan
interpreter.InterpretedFunction.__call__ = _call
_builder = interpreter.interpreter_builder


@contextmanager
def backwards() -> Iterator[None]:
    """Runs the programs of a grid from last to first."""
    forwards = _builder.set_grid_idx

    def set_grid_idx(x: int, y: int, z: int) -> None:
        nx, ny, nz = _builder.grid_dim
        forwards(nx - 1 - x, ny - 1 - y, nz - 1 - z)

    with mock.patch.object(_builder, "set_grid_idx", set_grid_idx):
        yield


@contextmanager
def races() -> Iterator[set[str]]:
    """What was found: places that two programs of a launch access, one of them storing, and places that a program loads
    after storing there without a barrier in between (another of its threads may be the one that loads)."""
    found: set[str] = set()
    stored: dict[int, tuple] = {}
    loaded: dict[int, set[tuple]] = {}
    fresh: set[int] = set()  # stored by this program since its last barrier

    def places(pointers: interpreter.TensorHandle, mask: interpreter.TensorHandle) -> list[int]:
        return np.unique(pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]).tolist()

    def load(pointers, mask, *args: object, **kwargs: object) -> object:
        for place in places(pointers, mask):
            if place in fresh:
                found.add("loaded after a store without a barrier")
            if stored.get(place, program()) != program():
                found.add("loaded what another program stored")
            loaded.setdefault(place, set()).add(program())
        return real_load(pointers, mask, *args, **kwargs)

    def store(pointers, value, mask, *args: object, **kwargs: object) -> object:
        for place in places(pointers, mask):
            if loaded.get(place, {program()}) != {program()} or stored.get(place, program()) != program():
                found.add("stored where another program loads or stores")
            stored[place] = program()
            fresh.add(place)
        return real_store(pointers, value, mask, *args, **kwargs)

    def start_program(*index: int) -> None:
        fresh.clear()
        real_start(*index)

    def launch(self: interpreter.GridExecutor, *args: object, **kwargs: object) -> object:
        stored.clear()
        loaded.clear()
        return real_launch(self, *args, **kwargs)

    def program() -> tuple:
        return _builder.grid_idx

    real_load, real_store = _builder.create_masked_load, _builder.create_masked_store
    real_start, real_launch = _builder.set_grid_idx, interpreter.GridExecutor.__call__
    replaced: dict[str, Callable] = {
        "create_masked_load": load, "create_masked_store": store, "create_barrier": fresh.clear,
        "set_grid_idx": start_program,
    }  # fmt: skip
    with mock.patch.multiple(_builder, **replaced), mock.patch.object(interpreter.GridExecutor, "__call__", launch):
        yield found
