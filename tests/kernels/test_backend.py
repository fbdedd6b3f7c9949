"""Which backend an op takes, and what is said of one that cannot run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from seq2exp.kernels import _extension, backend, backends, set_backend

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, an extension with CUDA kernels and Triton, as far as the choice of a backend looks."""
    device = SimpleNamespace(major=9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(_extension, "_REASON", None)
    monkeypatch.setattr(_extension, "_NO_CUDA", None)
    monkeypatch.setattr(backend, "_HAS_TRITON", True)
    monkeypatch.setattr(backend, "_INTERPRETED", False)
    return device


def test_every_backend_of_a_gpu_machine_is_usable(gpu):
    assert backends() == dict.fromkeys(("reference", "cpu", "triton", "cuda"))


@pytest.mark.parametrize(
    ("facts", "chosen"),
    [
        ({}, "cuda"),
        ({"_NO_CUDA": "no nvcc"}, "triton"),
        ({"_REASON": "no compiler"}, "triton"),
        ({"_NO_CUDA": "no nvcc", "_HAS_TRITON": False}, "reference"),
        ({"major": 7}, "triton"),
    ],
)
def test_auto_takes_the_best_that_there_is(gpu, monkeypatch, facts, chosen):
    gpu.major = facts.pop("major", gpu.major)
    for name, value in facts.items():
        monkeypatch.setattr(backend if name == "_HAS_TRITON" else _extension, name, value)
    assert backend.resolve("selective_scan", GPU, torch.bfloat16) == chosen
    assert backend.resolve("selective_scan", GPU, torch.float64) == "reference"
    assert backend.resolve("beta_mask", GPU, torch.float32) == chosen
    assert backend.resolve("gather", GPU, torch.float32) == "reference"


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_forced_gpu_backend_refuses_what_it_cannot_do(gpu, name):
    with set_backend(name):
        assert backend.resolve("selective_scan", GPU, torch.float16) == name
        with pytest.raises(RuntimeError, match=f"backend {name} works on cuda tensors, selective_scan was given cpu"):
            backend.resolve("selective_scan", CPU, torch.float32)
        with pytest.raises(TypeError, match="float64"):
            backend.resolve("selective_scan", GPU, torch.float64)
        with pytest.raises(RuntimeError, match=f"gather has no {name} kernel"):
            backend.resolve("gather", GPU, torch.float32)


def test_the_cuda_backend_names_a_gpu_that_is_too_old(gpu):
    gpu.major = 7
    with set_backend("cuda"), pytest.raises(RuntimeError, match=r"compute capability 8\.0"):
        backend.resolve("selective_scan", GPU, torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_without_a_gpu_the_reason_is_said(name, monkeypatch):
    monkeypatch.setattr(backend, "_HAS_TRITON", True)
    monkeypatch.setattr(backend, "_INTERPRETED", False)
    monkeypatch.setattr(_extension, "_REASON", None)
    monkeypatch.setattr(_extension, "_NO_CUDA", None)
    with pytest.raises(RuntimeError, match=f"backend {name} cannot run here: torch finds no CUDA device"):
        set_backend(name)


def test_what_is_not_installed_is_named(gpu, monkeypatch):
    monkeypatch.setattr(backend, "_HAS_TRITON", False)
    monkeypatch.setattr(_extension, "_NO_CUDA", "there was no nvcc")
    assert backends()["triton"] == "the package triton is not installed"
    assert backends()["cuda"] == "there was no nvcc"
    with pytest.raises(ValueError, match="unknown backend 'rocm'"):
        set_backend("rocm")


def test_triton_in_its_interpreter_takes_cpu_tensors(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backend, "_INTERPRETED", True)
    with set_backend("triton"):
        assert backend.resolve("selective_scan", CPU, torch.float32) == "triton"
