"""The C++ parts of a mixer against plain PyTorch in float64: every instruction set of this CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from mixer_problems import SIGNALS, check_convolution, check_scan, direction, scan_backward, taps
from scan_problems import far_apart, rms_error
from torch import Tensor

from seq2exp.kernels import _extension
from seq2exp.kernels.bimamba import composed, native
from seq2exp.kernels.bimamba.direction import Direction, Taps
from seq2exp.kernels.selective_scan import native as scan_native

pytestmark = pytest.mark.skipif(_extension.load() is not None, reason=f"compiled extension: {_extension.load()}")

SETS = [] if _extension.load() else torch.ops.seq2exp_native.cpu_instruction_sets()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PACKED = [[0, 300], [0, 0, 1, 2, 64, 64, 128, 256, 257, 299, 300, 300], [0, 20, 126, 131, 300]]


@pytest.fixture(params=SETS)
def isa(request) -> Iterator[str]:
    before = torch.ops.seq2exp_native.cpu_instruction_set()
    torch.ops.seq2exp_native.set_cpu_instruction_set(request.param)
    yield request.param
    torch.ops.seq2exp_native.set_cpu_instruction_set(before)


def spread(x: Tensor) -> Tensor:
    """x at every other place of memory, with NaN between and around."""
    wide = torch.full([2 * n + 1 for n in x.shape], torch.nan, dtype=x.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in x.shape)]
    return view.copy_(x)


def reversed_in_memory(x: Tensor) -> Tensor:
    """x (batch, rows, L) as (L, batch, rows) in memory."""
    return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)


def signal(dim: int, length: int, dtype: torch.dtype, batch: int = 2, channels_last: bool = True) -> Tensor:
    g = torch.Generator().manual_seed(0)
    if channels_last:  # the first half of a wider tensor, as x in xz
        return torch.randn(batch, length, 2 * dim, generator=g).to(dtype).transpose(1, 2)[:, :dim]
    return torch.randn(batch, dim, length, generator=g).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 63, 130, 257])
def test_scan_dtypes_and_lengths(isa, dtype, length):
    check_scan(native, direction(length=length, dtype=dtype))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [255, 256, 2047, 2049])
def test_scan_around_chunks(isa, length, reverse):
    check_scan(native, direction(batch=1, dim=9, length=length, reverse=reverse, channels_last=True))


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_very_long(reverse):
    check_scan(native, direction(batch=1, dim=5, state=4, length=65_537, reverse=reverse))


@pytest.mark.slow
def test_scan_of_a_window():
    check_scan(native, direction(batch=1, dim=20, length=200_000, rank=8, channels_last=True))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scan_layout_and_direction(isa, channels_last, reverse, dtype):
    d = direction(dim=32, length=150, rank=8, channels_last=channels_last, reverse=reverse, dtype=dtype)
    check_scan(native, d)
    out, states = native.scan(d)
    grads = scan_backward(native, torch.ones_like(d.u), d, states, True)
    for x in (out, grads.u, grads.delta, grads.y):
        assert x.stride() == d.u.stride()
    assert grads.z.stride() == d.z.stride()
    assert (grads.B.stride(1) == 1) == (grads.C.stride(1) == 1) == channels_last


@pytest.mark.parametrize("layout", [spread, reversed_in_memory])
def test_scan_any_strides(isa, layout):
    d = direction(length=140)
    check_scan(native, d._replace(**{name: layout(getattr(d, name)) for name in SIGNALS}))


@pytest.mark.parametrize("rank", [1, 8, 9, 17])
@pytest.mark.parametrize("channels_last", [False, True])
def test_scan_ranks(isa, rank, channels_last):
    check_scan(native, direction(rank=rank, length=70, channels_last=channels_last))


@pytest.mark.parametrize("state", [1, 5, 17])
def test_scan_states(isa, state):
    check_scan(native, direction(state=state, length=67, dim=18))


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_scan_without_gate_or_summand(isa, gate, add):
    check_scan(native, direction(length=75, gate=gate, add=add))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cu_seqlens", PACKED, ids=str)
def test_scan_packed_sequences(isa, cu_seqlens, reverse):
    check_scan(native, direction(batch=1, length=300, cu_seqlens=cu_seqlens, reverse=reverse))


def test_scan_equals_the_plain_scan(isa):
    """Given the same step sizes, to the rounding of delta."""
    d = direction(length=300, gate=True, add=False)
    delta = torch.einsum("dr,brl->bdl", d.dt_proj, d.low)
    plain, _, states = scan_native.forward(
        d.u, delta, d.A, d.B[:, None], d.C[:, None], d.D, d.z, d.dt_bias, True, False, None
    )
    out, mixer_states = native.scan(d)
    assert rms_error(out, plain) <= 1e-6 and rms_error(mixer_states, states) <= 1e-6


def test_scan_extreme_values(isa):
    d = direction(length=300)
    d.A[0] *= 1e4
    d.A[1] = 0.05  # grows
    d.A[2] = 0
    d.dt_bias[3], d.dt_bias[4] = -80, 200
    d.z[0, 5], d.z[0, 4], d.z[0, 3] = 1e4, -1e4, -80
    check_scan(native, d)


def test_scan_nan_stays_in_its_row(isa):
    d = direction(length=300, add=False)
    clean, _ = native.scan(d)
    d.u[0, 3, 50] = torch.nan
    d.z[1, 7, 20] = torch.nan
    out, states = native.scan(d)
    touched = torch.zeros(out.shape, dtype=torch.bool)
    touched[0, 3, 50:] = True
    touched[1, 7, 20] = True
    assert torch.equal(out[~touched], clean[~touched]) and out[touched].isnan().all()
    for closing in (False, True):
        grads = scan_backward(native, torch.ones_like(d.u), d, states, closing)
        rows = torch.ones(out.shape[:2], dtype=torch.bool)
        rows[0, 3] = rows[1, 7] = False
        for x in (grads.u, grads.delta, grads.y):
            assert x[rows].isfinite().all()


@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_crosses_a_boundary(isa, reverse):
    """Two sequences are NaN from end to end; those around and between them do not notice."""
    d = direction(batch=1, dim=32, length=300, cu_seqlens=[0, 60, 64, 250, 257, 300], reverse=reverse)
    poison = torch.zeros(300, dtype=torch.bool)
    poison[60:64] = poison[250:257] = True
    d.u[..., poison] = torch.nan
    out, states = native.scan(d)
    assert out[..., ~poison].isfinite().all() and out[..., poison].isnan().all()
    grads = scan_backward(native, torch.ones_like(d.u), d, states, True)
    for x in (grads.u, grads.delta, grads.y, grads.z, grads.B, grads.C):
        assert x[..., ~poison].isfinite().all()

    fwd, rev = taps(32, 4), taps(32, 4, seed=1)
    for c in native.convolve(d.u, fwd, rev, d.cu_seqlens):
        assert c[..., ~poison].isfinite().all() and c[..., poison].isnan().all()
    dx = native.convolve_backward(d.u, d.z, d.z, fwd, rev, d.cu_seqlens).x
    assert dx[..., ~poison].isfinite().all() and dx[..., poison].isnan().all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_scan_offsets_past_two_to_the_31(isa, dim, reverse):
    d = direction(batch=2, dim=3, state=2, length=130, dtype=torch.bfloat16, reverse=reverse)
    check_scan(native, d._replace(**{name: far_apart(getattr(d, name).contiguous(), dim) for name in SIGNALS}))


@pytest.mark.parametrize(
    "shape", [{}, {"batch": 1, "dim": 100, "length": 700, "reverse": True}, {"channels_last": True, "rank": 8}], ids=str
)
def test_scan_same_bits_for_any_number_of_threads(isa, shape):
    d = direction(**shape)

    def run() -> list[Tensor]:
        out, states = native.scan(d)
        closing, other = (scan_backward(native, torch.ones_like(d.u), d, states, closing) for closing in (True, False))
        return [out, states, *closing, *other[:-1]]

    assert_same_bits(run)


def assert_same_bits(run) -> None:
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            runs.append(run())
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_scan_refuses_what_would_read_out_of_bounds():
    d = direction(length=70)
    _, states = native.scan(d)
    wrong = {
        "low": d.low[:, 1:], "dt_proj": d.dt_proj[1:], "A": d.A[:, 1:], "B": d.B[..., 1:], "C": d.C[:1],
        "D": d.D[1:], "dt_bias": d.dt_bias.double(), "z": d.z[:, 1:], "add": d.add[..., 1:],
        "cu_seqlens": torch.tensor([0, 70]),
    }  # fmt: skip
    for name, x in wrong.items():
        bad = d._replace(**{name: x})
        with pytest.raises(RuntimeError):
            native.scan(bad)
        with pytest.raises(RuntimeError):
            scan_backward(native, torch.ones_like(d.u), bad, states, True)
    for grad, saved in ((torch.ones_like(d.u)[1:], states), (torch.ones_like(d.u), states[:, :, 1:])):
        with pytest.raises(RuntimeError):
            scan_backward(native, grad, d, saved, True)
    with pytest.raises(RuntimeError, match="cu_seqlens must rise from 0 to L"):
        native.scan(direction(batch=1, length=70, cu_seqlens=[0, 60, 50, 70]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 63, 128, 130, 257])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_dtypes_and_lengths(isa, dtype, length, channels_last):
    x = signal(32, length, dtype, channels_last=channels_last)
    check_convolution(native, x, taps(32, 4), taps(32, 4, seed=1), None)


@pytest.mark.parametrize("dim", [1, 20, 256, 300])
@pytest.mark.parametrize("widths", [(2, 2), (3, 3), (4, 2), (3, None), (None, 4)], ids=str)
def test_convolution_widths(isa, dim, widths):
    fwd, rev = (None if width is None else taps(dim, width, seed=width) for width in widths)
    check_convolution(native, signal(dim, 140, torch.float32), fwd, rev, None)


@pytest.mark.parametrize("cu_seqlens", PACKED, ids=str)
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_packed_sequences(isa, cu_seqlens, width, channels_last):
    x = signal(32, 300, torch.float32, batch=1, channels_last=channels_last)
    check_convolution(native, x, taps(32, width), taps(32, width, seed=1), torch.tensor(cu_seqlens))


@pytest.mark.parametrize("layout", [spread, reversed_in_memory])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_convolution_any_strides(isa, layout, dtype):
    check_convolution(native, layout(signal(40, 140, dtype)), taps(40, 4), taps(40, 4, seed=1), None)


def test_convolution_gradients_laid_out_otherwise(isa):
    x, fwd, rev = signal(32, 140, torch.float32), taps(32, 4), taps(32, 4, seed=1)
    grads = [torch.randn(2, 32, 140, generator=torch.Generator().manual_seed(i)) for i in (5, 6)]
    got = native.convolve_backward(x, grads[0], grads[1].mT.contiguous().mT, fwd, rev, None)
    want = composed.convolve_backward(x, *grads, fwd, rev, None)
    for a, b in ((got.x, want.x), *zip(got.fwd, want.fwd, strict=True), *zip(got.rev, want.rev, strict=True)):
        assert rms_error(a, b) <= 1e-5


@pytest.mark.parametrize("length", [65_537, pytest.param(200_000, marks=pytest.mark.slow)])
def test_convolution_very_long(length):
    check_convolution(native, signal(20, length, torch.float32, batch=1), taps(20, 4), taps(20, 4, seed=1), None)


def test_convolution_layout_and_absent_direction(isa):
    x = signal(32, 70, torch.bfloat16)
    c_fwd, c_rev = native.convolve(x, taps(32, 4), None, None)
    assert c_rev is None and c_fwd is not None and c_fwd.stride() == (70 * 32, 1, 32)
    got = native.convolve_backward(x, c_fwd, None, taps(32, 4), None, None)
    assert got.rev is None and got.x.stride() == c_fwd.stride()


def test_convolution_nan_stays_within_its_taps(isa):
    x, fwd, rev = signal(32, 200, torch.float32), taps(32, 4), taps(32, 4, seed=1)
    clean = native.convolve(x, fwd, rev, None)
    x[1, 5, 127] = torch.nan
    for out, before, near in zip(
        native.convolve(x, fwd, rev, None), clean, (slice(127, 131), slice(124, 128)), strict=True
    ):
        touched = torch.zeros(out.shape, dtype=torch.bool)
        touched[1, 5, near] = True
        assert torch.equal(out[~touched], before[~touched]) and out[touched].isnan().all()


@pytest.mark.parametrize("dim", [1, -1])
def test_convolution_offsets_past_two_to_the_31(isa, dim):
    x = far_apart(signal(3, 130, torch.bfloat16, channels_last=False), dim)
    check_convolution(native, x, taps(3, 4), taps(3, 3), None)


@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_same_bits_for_any_number_of_threads(isa, channels_last):
    x, fwd, rev = signal(272, 700, torch.float32, channels_last=channels_last), taps(272, 4), taps(272, 4, seed=1)

    def run() -> list[Tensor]:
        c = native.convolve(x, fwd, rev, None)
        got = native.convolve_backward(x, *c, fwd, rev, None)
        return [*c, got.x, *got.fwd, *got.rev]

    assert_same_bits(run)


def test_convolution_refuses_what_would_read_out_of_bounds():
    x, good = signal(32, 70, torch.float32), taps(32, 4)
    c = torch.ones_like(x)
    for bad in (
        taps(31, 4), taps(32, 5), taps(32, 1), Taps(good.weight, good.bias[1:]), Taps(good.weight.double(), good.bias),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            native.convolve(x, good, bad, None)
        with pytest.raises(RuntimeError):
            native.convolve_backward(x, c, c, bad, good, None)
    for grad in (None, c[1:], c[:, 1:], c[..., 1:]):
        with pytest.raises(RuntimeError):
            native.convolve_backward(x, c, grad, good, good, None)
    with pytest.raises(RuntimeError):
        native.convolve(x, good, good, torch.tensor([0, 70]))
    with pytest.raises(RuntimeError, match="cu_seqlens must rise from 0 to L"):
        native.convolve(x[:1], good, good, torch.tensor([0, 60]))


def test_native_states_are_those_of_the_plain_scan():
    d: Direction = direction(length=600)
    _, states = native.scan(d)
    assert list(states.shape) == native.states_shape(2, 20, 16, 600, None) == [2, 3, 16, 20]
