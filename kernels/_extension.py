"""Loads the compiled extension, seq2exp/_C.so."""

from importlib.resources import files

import torch


def _load() -> str | None:
    path = files("seq2exp") / "_C.so"
    if not path.is_file():
        return "this installation has no compiled extension: there was no working C++ compiler when it was built"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the compiled extension {path} cannot be loaded: {error.__cause__ or error}"
    return None


def _no_cuda() -> str | None:
    if _REASON or torch.ops.seq2exp_native.cuda_build():
        return None
    return "the compiled extension was built without CUDA kernels: there was no nvcc, or it failed"


# once, at import: torch.compile traces the callers
_REASON = _load()
_NO_CUDA = _no_cuda()


def load() -> str | None:
    """None when the compiled extension is loaded, otherwise the reason why it is not. Never compiles."""
    return _REASON


def no_cuda() -> str | None:
    """None when the loaded extension holds the CUDA kernels, otherwise the reason why it does not."""
    return _NO_CUDA
