"""add_norm's Triton kernels in Triton's interpreter, against the float64 oracle. Needs TRITON_INTERPRET=1 from the
start: test_add_norm_triton.py does that.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from norm_problems import CHANNELS, DTYPES, FLOAT, HALF, check, check_rounding, moved, problem, results, strided
from triton_interpreter import backwards, races

from seq2exp.kernels import add_norm, set_backend
from seq2exp.kernels.add_norm import triton as module


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_dtypes(dtypes):
    check(module, problem((2, 5, 100), *dtypes))


@pytest.mark.parametrize("channels", [*CHANNELS, 2500])
def test_channels(channels):
    check(module, problem((2, 5, channels)))


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_absent_inputs(residual, gate):
    p = problem(residual=residual, gate=gate)
    check(module, p)
    p.grad_residual = None
    check(module, p)


@pytest.mark.parametrize("shape", [(7,), (3, 2, 4, 20), (1, 1, 20), (2, 2_500, 20)], ids=str)
def test_shapes(shape):
    check(module, problem(shape))


def test_strides():
    check(module, strided(problem((3, 11, 20))))


def test_recomputed_bit_for_bit():
    """Not bfloat16: the interpreter truncates where a GPU rounds."""
    check_rounding(module, problem((2, 40, 77), FLOAT, FLOAT))
    check_rounding(module, problem((2, 40, 77), HALF, HALF))


def test_same_bits_in_every_order_and_no_races():
    p = problem((3, 700, 9))  # two programs of the backward
    with races() as found:
        forwards = results(module, p)
    assert not found
    with backwards():
        assert all(torch.equal(x, forwards[name]) for name, x in results(module, p).items())


def test_op():
    p = problem((2, 5, 12))
    inputs = [x.requires_grad_() for x in vars(moved(p)).values()][:4]
    with set_backend("triton"):
        h, total = add_norm(*inputs[:3], gate=inputs[3])
        got = torch.autograd.grad((h, total), inputs, (p.grad, p.grad_residual))
    with set_backend("reference"):
        h, total = add_norm(*inputs[:3], gate=inputs[3])
        want = torch.autograd.grad((h, total), inputs, (p.grad, p.grad_residual))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_too_many_channels():
    with pytest.raises(ValueError, match="the triton kernels take at most 4096 channels, got 4097"):
        module.forward(torch.zeros(1, 4097), None, torch.ones(4097), None, 1e-5)
