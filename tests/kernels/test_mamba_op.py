"""The mixer of one direction and its convolution: against the reference, under opcheck, compile and autocast."""

import pytest
import torch
from mamba_reference import mixer_weights
from memory import saved_bytes
from mixer_layers import BACKENDS
from scan_problems import rms_error
from torch.nn import functional as F

from seq2exp.kernels import ScanWeights, set_backend
from seq2exp.kernels.bimamba import causal_convolution, mamba, reference

WIDTHS = [2, 3, 4]


def run(flat):
    return mamba(*flat[:3], ScanWeights(*flat[3:]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_equals_the_reference(backend, width):
    flat = mixer_weights(width=width)
    with set_backend(backend):
        out = run(flat)
        g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        ours = torch.autograd.grad(out, flat, g)
    exact = [x.detach().double() for x in flat]
    wanted = reference.mamba_forward(*exact[:3], ScanWeights(*exact[3:]))
    grad_h, grad_in, grad_out, grads = reference.mamba_backward(g.double(), *exact[:3], ScanWeights(*exact[3:]))
    assert rms_error(out.detach(), wanted) <= 1e-5
    for name, a, b in zip(("h", "in", "out", *grads._fields), ours, (grad_h, grad_in, grad_out, *grads), strict=True):
        assert rms_error(a, b) <= 1e-4, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend):
    """The dtype is autocast's, gradients have that of the weights."""
    flat = mixer_weights()
    exact = run([x.detach().double() for x in flat])
    with set_backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(flat)
    assert out.dtype == torch.bfloat16
    assert rms_error(out.detach(), exact) <= 2e-2
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.float().sum(), flat))


def test_saves_the_input_and_chunk_states():
    """At d_model 128 in bfloat16: 256 bytes a base of h and 64 of states."""

    def forward(length):
        flat = mixer_weights(d=128, length=length, batch=1, rank=8)
        flat[0] = flat[0].detach().bfloat16().requires_grad_()
        return lambda: run(flat)

    with set_backend("cpu"):
        short, long = (saved_bytes(forward(n)) for n in (2048, 8192))
    assert (long - short) / 6144 <= 330


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    flat = [x.detach().requires_grad_() for x in mixer_weights(d=4, length=20, state=2)]
    torch.library.opcheck(torch.ops.seq2exp.mamba_fwd.default, (flat[0], flat[1:], backend, True))
    x = torch.randn(2, 8, 20)[:, 2:6].requires_grad_()
    args = (x, torch.randn(4, 3, requires_grad=True), torch.randn(4, requires_grad=True), backend)
    torch.library.opcheck(torch.ops.seq2exp.causal_convolution_fwd.default, args)


def test_compile_fullgraph():
    flat = mixer_weights(d=4, length=20, state=2)

    def loss(*flat):
        x = causal_convolution(flat[0].transpose(1, 2), flat[3][:4, 0], flat[4][:4])
        return run([x.transpose(1, 2), *flat[1:]]).square().sum()

    wanted = torch.autograd.grad(loss(*flat), flat)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*flat), flat)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width,bias", [(2, True), (3, False), (4, True)])
@pytest.mark.parametrize("length", [1, 3, 77])
def test_convolution(backend, width, bias, length):
    g = torch.Generator().manual_seed(width)
    x = torch.randn(2, 12, length, generator=g).requires_grad_()
    weight, b = (torch.randn(*shape, generator=g).requires_grad_() for shape in ((6, width), (6,)))
    inputs = [x, weight, *([b] if bias else [])]

    def exact(x, weight, b=None):
        return F.silu(F.conv1d(F.pad(x[:, 3:9], (width - 1, 0)), weight[:, None], b, groups=6))

    with set_backend(backend):
        out = causal_convolution(x[:, 3:9], *inputs[1:])
        grad = torch.randn(out.shape, generator=g)
        ours = torch.autograd.grad(out, inputs, grad)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    wanted = exact(*doubles)
    assert rms_error(out.detach(), wanted.detach()) <= 1e-5
    for a, e in zip(ours, torch.autograd.grad(wanted, doubles, grad.double()), strict=True):
        assert rms_error(a, e) <= 1e-4


@pytest.mark.parametrize(
    "change,message",
    [({"x": (2, 3)}, "x must be"), ({"weight": (4, 5)}, "2 to 4"), ({"bias": (3,)}, "bias must be")],
)
def test_bad_convolution_is_named(change, message):
    shapes = {"x": (2, 4, 9), "weight": (4, 4), "bias": (4,)} | change
    with pytest.raises(ValueError, match=message):
        causal_convolution(*(torch.zeros(shape) for shape in shapes.values()))
