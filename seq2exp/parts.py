"""Names for the phases of a training step, heard by whoever measures them (`seq2exp profile`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

Listener = Callable[[str], AbstractContextManager[object]]
_listener: Listener | None = None


def part(name: str) -> AbstractContextManager[object]:
    """`with part("generator"): ...` delimits a phase. Does nothing when nobody listens, and in compiled code."""
    if torch.compiler.is_compiling() or _listener is None:
        return nullcontext()
    return _listener(name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """While this is open, every `part(name)` of this process is the context manager `listener(name)`."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
