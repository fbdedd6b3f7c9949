"""The Triton kernels of pack_selected in Triton's interpreter, against the float64 oracle.

Needs TRITON_INTERPRET=1 from the start: test_gather_triton.py does that.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gather_problems import DTYPES, SHARES, check, check_overflow, problem, results, spread, strided
from triton_interpreter import backwards, races

from seq2exp.kernels import pack_selected, set_backend, unpack_selected
from seq2exp.kernels.gather import triton as module


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_dtypes(dtypes):
    check(module, problem(3, 35, 20, *dtypes), capacity=100)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("length", [1, 2049])
def test_lengths(length, share):
    check(module, problem(2, length, 5, share=share))


@pytest.mark.parametrize("channels", [1, 3, 31, 128, 1100])
def test_channels(channels):
    check(module, problem(2, 33, channels))


@pytest.mark.parametrize("capacity", [None, 60])
def test_more_tiles_than_are_summed_at_once(monkeypatch, capacity):
    monkeypatch.setattr(module, "SCAN", 4)
    monkeypatch.setattr(module, "TILE", 16)
    check(module, problem(7, 33, 1, share=0.2), capacity=capacity)


@pytest.mark.parametrize("layout", [strided, spread])
def test_strides(layout):
    check(module, layout(problem(3, 41, 20)), capacity=100)


def test_overflow():
    check_overflow(module)


@pytest.mark.parametrize("capacity", [None, 5_000])
def test_same_bits_in_every_order_and_no_races(capacity):
    p = problem(2, 2_100, 3)
    with races() as found:
        forwards = results(module, p, capacity)
    assert not found
    with backwards():
        assert all(torch.equal(x, forwards[name]) for name, x in results(module, p, capacity).items())


def test_op():
    p = problem(2, 37, 12)
    x, mask = p.x.requires_grad_(), p.mask.requires_grad_()
    found = []
    for backend in ("triton", "reference"):
        with set_backend(backend):
            packed = pack_selected(x, mask, capacity=60)
            back = unpack_selected(*packed, mask.shape)
            found.append((packed.values, back, *torch.autograd.grad(back, (x, mask), p.grad)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)
    with set_backend("triton"), pytest.raises(ValueError, match="and capacity is 3: pass capacity="):
        pack_selected(x, mask, capacity=3)
