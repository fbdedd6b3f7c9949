"""add_norm's GPU backends on a GPU against the float64 oracle there; `make gpu` runs them.

With SEQ2EXP_REHEARSAL=1 the same tests run the C++ backend on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from norm_problems import BFLOAT, CHANNELS, DTYPES, FLOAT, check, check_rounding, moved, problem, results, strided
from on_gpu import BACKENDS, DEVICE, MARKS, forced, implementation

from seq2exp.kernels import add_norm

pytestmark = MARKS


@pytest.fixture(params=BACKENDS)
def backend(request) -> Iterator[str]:
    with forced(request.param) as name:
        yield name


@pytest.fixture
def module(backend) -> ModuleType:
    return implementation("add_norm", backend)


@pytest.mark.parametrize("channels", [*CHANNELS, 2048, 4096])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_dtypes_and_channels(module, dtypes, channels):
    check(module, problem((2, 70, channels), *dtypes), DEVICE)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_absent_inputs(module, residual, gate):
    check(module, problem(residual=residual, gate=gate), DEVICE)


def test_many_rows(module):
    check(module, problem((2, 50_000, 128), BFLOAT, FLOAT), DEVICE)


def test_strides(module):
    check(module, strided(problem((3, 11, 32))), DEVICE)


@pytest.mark.parametrize("dtypes", [(FLOAT, FLOAT), (BFLOAT, BFLOAT), (BFLOAT, FLOAT)], ids=str)
def test_rounded_once_and_recomputed_bit_for_bit(module, dtypes):
    check_rounding(module, problem((2, 300, 77), *dtypes), DEVICE)


def test_same_bits_in_every_run(module):
    p = moved(problem((2, 20_000, 128), BFLOAT, FLOAT), device=DEVICE)
    first, second = results(module, p), results(module, p)
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_op(backend):
    p = moved(problem((2, 5, 12), BFLOAT, FLOAT), device=DEVICE)
    inputs = (p.x.requires_grad_(), p.residual.requires_grad_(), p.weight.requires_grad_(), p.gate.requires_grad_())
    torch.library.opcheck(torch.ops.seq2exp.add_norm_fwd, (*inputs, 1e-5, backend))
    h, total = add_norm(*inputs[:3], gate=inputs[3])
    grads = torch.autograd.grad((h, total), inputs, (p.grad, p.grad_residual))
    assert [g.dtype for g in grads] == [BFLOAT, FLOAT, FLOAT, FLOAT]
