"""pack_selected's GPU backends on a GPU against the float64 oracle; `make gpu` runs them.

With SEQ2EXP_REHEARSAL=1 the same tests run the C++ backend on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from gather_problems import (
    BFLOAT,
    CHANNELS,
    DTYPES,
    FLOAT,
    LENGTHS,
    SHARES,
    check,
    check_overflow,
    moved,
    problem,
    results,
    spread,
    strided,
)
from on_gpu import BACKENDS, DEVICE, MARKS, REHEARSAL, forced, implementation

from seq2exp.kernels import pack_selected, unpack_selected
from seq2exp.kernels.gather import check_capacity, reference, select

pytestmark = MARKS


@pytest.fixture(params=BACKENDS)
def backend(request) -> Iterator[str]:
    with forced(request.param) as name:
        yield name


@pytest.fixture
def module(backend) -> ModuleType:
    return implementation("gather", backend)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_dtypes_and_channels(module, dtypes, channels):
    check(module, problem(2, 70, channels, *dtypes), device=DEVICE)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(module, length, share):
    p = problem(3, length, 5, share=share)
    check(module, p, device=DEVICE)
    check(module, p, capacity=3 * length, device=DEVICE)


@pytest.mark.parametrize("shape", [(2, 65_537, 3), (8, 200_000, 8), (70_000, 1, 2), (1, 3_000_000, 1)], ids=str)
def test_long_and_many_rows(module, shape):
    check(module, problem(*shape, BFLOAT, share=0.1), device=DEVICE)


@pytest.mark.parametrize("layout", [strided, spread])
def test_strides(module, layout):
    p = layout(moved(problem(3, 41, 20), device=DEVICE))
    found, exact = results(module, p, 100), results(reference, moved(p, dtype=torch.float64), 100)
    for name, want in exact.items():
        torch.testing.assert_close(found[name], want.to(found[name].dtype))


def test_overflow(module):
    check_overflow(module, DEVICE)


@pytest.mark.parametrize("capacity", [None, 60_000])
def test_same_bits_in_every_run(module, capacity):
    p = moved(problem(2, 200_000, 64, BFLOAT, share=0.1), device=DEVICE)
    first, second = results(module, p, capacity), results(module, p, capacity)
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.skipif(REHEARSAL, reason="takes 5 GB")
def test_offsets_beyond_32_bits(module):
    """x of more than 2^31 elements: the last bases are found, scaled and put back."""
    length, d = 2**24 + 4, 128
    x = torch.zeros(1, length, d, dtype=BFLOAT, device=DEVICE)
    mask = torch.zeros(1, length, device=DEVICE)
    places = torch.tensor([5, 2**24 - 1, length - 1], device=DEVICE)
    x[0, places] = torch.arange(1.0, 4.0, device=DEVICE, dtype=BFLOAT)[:, None]
    mask[0, places] = 2
    indices, _ = module.select(mask, None)
    assert torch.equal(indices, places)
    values = module.pack_forward(x, mask, indices)
    assert values.mean(1).tolist() == [2, 4, 6]
    grad_x, grad_mask = module.pack_backward(values, x, mask, indices)
    assert grad_x[0, places].mean(1).tolist() == [4, 8, 12] and int(grad_x.count_nonzero()) == 3 * d
    assert grad_mask[0, places].tolist() == [2 * d, 8 * d, 18 * d]


def test_with_a_capacity_the_host_waits_for_nothing(backend):
    p = moved(problem(2, 300, 12), device=DEVICE)
    x, mask = p.x.requires_grad_(), p.mask.requires_grad_()

    def step() -> torch.Tensor:
        packed = pack_selected(x, mask, capacity=500)
        back = unpack_selected(*packed, mask.shape)
        return torch.autograd.grad(back, (x, mask), p.grad)[0]

    step()  # what is compiled, is compiled
    if not REHEARSAL:
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        if not REHEARSAL:
            torch.cuda.set_sync_debug_mode("default")


def test_op(backend):
    p = moved(problem(2, 37, 12, BFLOAT, FLOAT), device=DEVICE)
    torch.library.opcheck(torch.ops.seq2exp.select, (p.mask, None, backend))
    torch.library.opcheck(torch.ops.seq2exp.select, (p.mask, 74, backend))
    x, mask = p.x.requires_grad_(), p.mask.requires_grad_()
    indices, _ = select(mask)
    torch.library.opcheck(torch.ops.seq2exp.pack_fwd, (x, mask, indices, backend))
    packed = pack_selected(x, mask)
    grads = torch.autograd.grad(unpack_selected(*packed, mask.shape), (x, mask), p.grad)
    assert [g.dtype for g in grads] == [BFLOAT, FLOAT]
    needed = len(indices)
    with pytest.raises(ValueError, match=f"pass capacity={needed} or more"):
        check_capacity(mask, needed - 1)
    if not REHEARSAL:
        assert pack_selected(x, mask, capacity=needed - 1).values.isnan().all()
