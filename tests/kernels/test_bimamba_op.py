"""The registered mixer: what it saves, how exact it is in 16 bits, and how it behaves under compile and autocast."""

import published_layer
import pytest
import torch
from memory import memory, saved_bytes
from mixer_layers import BACKENDS, converted, gradients, layer, leaves, published_form, rebuilt
from scan_problems import rms_error

from seq2exp.kernels import bimamba, set_backend
from seq2exp.kernels.backend import resolve
from seq2exp.kernels.bimamba import mixer, ops, reference

OPTIONS = [
    pytest.param(untied, strategy, cu, id=f"{'untied' if untied else 'tied'}-{strategy}-{'packed' if cu else 'dense'}")
    for untied in (False, True)
    for strategy in ("add", "ew_multiply")
    for cu in (None, [0, 1, 40, 40, 130])
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("untied,strategy,cu", OPTIONS)
def test_equals_the_published_form_in_float32(backend, untied, strategy, cu):
    problem = layer(untied=untied, batch=1 if cu else 2)
    cu = None if cu is None else torch.tensor(cu, dtype=torch.int32)
    fixed, rev_proj = converted(*problem, torch.float32)
    with set_backend(backend):
        out = bimamba(*fixed, rev_proj=rev_proj, strategy=strategy, cu_seqlens=cu)
        g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        ours = gradients(out, fixed, rev_proj, g)
    fixed, rev_proj = converted(*problem, torch.float64)
    exact = reference.bimamba_forward(*fixed, rev_proj, strategy, cu)
    assert rms_error(out.detach(), exact.detach()) <= 1e-5
    for i, (a, b) in enumerate(zip(ours, gradients(exact, fixed, rev_proj, g), strict=True)):
        assert rms_error(a, b) <= 1e-4, i


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strategy", ["add", "ew_multiply"])
def test_bfloat16_error_is_that_of_the_published_form(backend, strategy):
    """At most 1.5 times, forward and every gradient, over four draws."""
    errors = torch.tensor([bfloat16_errors(backend, strategy, seed) for seed in range(4)])  # (draws, tensors, 2)
    ours, theirs = errors.square().mean(0).sqrt().unbind(-1)
    assert (ours <= 1.5 * theirs).all(), (ours / theirs).tolist()


def bfloat16_errors(backend, strategy, seed):
    """(ours, the published form's) of the output and of every gradient."""
    problem = layer(d=32, length=300, seed=seed)
    fixed, _ = converted(*problem, torch.float64)
    exact = reference.bimamba_forward(*fixed, None, strategy)
    g = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = [exact, *gradients(exact, fixed, None, g)]

    fixed, _ = converted(*problem, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = published_form(*fixed, strategy)
        theirs = [out, *gradients(out, fixed, None, g)]
    with torch.autocast("cpu", dtype=torch.bfloat16), set_backend(backend):
        out = bimamba(*fixed, strategy=strategy)
        ours = [out, *gradients(out, fixed, None, g)]
    assert out.dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for x in ours[1:])
    return [[rms_error(x.detach(), e.detach()) for x in pair] for *pair, e in zip(ours, theirs, wanted, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_saves_the_input_and_chunk_states(backend):
    """At most 400 bytes a base in bfloat16 at d_model 128, and nothing on the side."""

    def forward(length):
        fixed, _ = converted(*layer(d=128, length=length), torch.float32)
        fixed = (fixed[0].detach().bfloat16().requires_grad_(), *fixed[1:])
        return lambda: bimamba(*fixed)

    with set_backend(backend):
        short, long = (2048, 8192)
        saved = [saved_bytes(forward(n)) for n in (short, long)]
        live = [memory(forward(n), lambda out: out.sum().backward()).live for n in (short, long)]
    # h is a leaf here: the caller's tensor, which the op keeps alive
    per_base = (saved[1] - saved[0]) / (long - short) + 2 * 128
    assert 256 < per_base <= 400
    # the output (2 bytes x 128) is live as well, h is not among what was allocated
    assert (live[1] - live[0]) / (long - short) == pytest.approx(per_base, rel=0.1)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_memory_is_at_most_half_of_the_published_forms(backend, dtype):
    fixed, _ = converted(*layer(d=128, length=8192), dtype)

    def peak(form):
        return memory(lambda: form(*fixed), lambda out: torch.autograd.grad(out, leaves(fixed, None), out)).peak

    with set_backend(backend):
        ours, theirs = peak(bimamba), peak(published_layer.bimamba)
    assert ours <= theirs / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_saves_nothing(backend):
    fixed, _ = layer(d=16, length=512)
    with set_backend(backend), torch.no_grad():
        _, fwd, rev = mixer.forward(
            resolve("bimamba", torch.device("cpu"), torch.float32), fixed[0],
            ops.cast(torch.float32, *fixed[1:], None), False, None, ops.needs_backward(*leaves(fixed, None)),
        )  # fmt: skip
    assert fwd.numel() == rev.numel() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("untied", [False, True])
def test_opcheck(backend, untied):
    fixed, rev_proj = converted(*layer(d=4, state=3, length=70, untied=untied), torch.float32)
    flat = [x.detach().requires_grad_() for x in ops.cast(torch.float32, *fixed[1:], rev_proj)]
    for multiply, cu in ((False, None), (True, torch.tensor([0, 30, 70]))):
        torch.library.opcheck(torch.ops.seq2exp.bimamba_fwd.default, (fixed[0], flat, multiply, cu, backend, True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("half", [False, True])
def test_compile_fullgraph(backend, half):
    fixed, _ = converted(*layer(length=64), torch.float32)
    cu = torch.tensor([0, 20, 64])

    def loss(*flat):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return bimamba(*rebuilt(flat, False)[0], cu_seqlens=cu).float().square().sum()

    flat = leaves(fixed, None)
    with set_backend(backend):
        eager = torch.autograd.grad(loss(*flat), flat)
        compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*flat), flat)
    for i, (a, b) in enumerate(zip(compiled, eager, strict=True)):
        assert rms_error(a, b) <= (1e-2 if half else 1e-5), i


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_again(backend):
    fixed, _ = converted(*layer(length=300), torch.float32)
    with set_backend(backend):
        runs = []
        for _ in range(2):
            out = bimamba(*fixed)
            runs.append([out, *gradients(out, fixed, None, torch.ones_like(out))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_empty_input():
    fixed, _ = layer(batch=0)
    assert bimamba(*fixed).shape == (0, 130, 16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(strategy="sum"), ValueError, "strategy 'sum' is none of add, ew_multiply"),
        (dict(h=torch.zeros(130, 16)), ValueError, r"h must be \(batch, L, d\)"),
        (dict(h=torch.zeros(1, 130, 16, dtype=torch.int64)), TypeError, "h is torch.int64"),
        (dict(h=torch.zeros(1, 130, 12)), ValueError, r"in_proj must be \(2 d_inner, d\)"),
        (dict(out_proj=torch.zeros(16, 32, dtype=torch.int32)), TypeError, "out_proj is torch.int32"),
        (dict(fwd=dict(conv_weight=torch.zeros(32, 1, 5))), ValueError, "fwd.conv_weight is 5 wide; widths of 2 to 4"),
        (dict(rev=dict(conv_weight=torch.zeros(32, 1, 1))), ValueError, "rev.conv_weight is 1 wide; widths of 2 to 4"),
        (
            dict(rev=dict(conv_weight=torch.zeros(32, 1, 3))),
            ValueError,
            "the convolutions of fwd and rev must be of one",
        ),
        (dict(rev=dict(D=torch.zeros(5))), ValueError, r"rev.D must be \(32,\)"),
        (dict(fwd=dict(A_log=torch.zeros(32, 8))), ValueError, "fwd.x_proj must be"),
        (dict(cu_seqlens=torch.tensor([0, 100])), ValueError, "cu_seqlens must rise from 0 to L = 130"),
        (dict(cu_seqlens=torch.tensor([0.0, 130.0])), TypeError, "cu_seqlens must be an int32 or int64 vector"),
        (dict(h=torch.zeros(2, 130, 16), cu_seqlens=torch.tensor([0, 130])), ValueError, "cu_seqlens needs batch 1"),
        (dict(rev_proj=(torch.zeros(64, 16), torch.zeros(16, 31))), ValueError, "rev_proj in_proj must be"),
    ],
)
def test_bad_input_is_named(change, error, message):
    (h, in_proj, out_proj, fwd, rev), _ = layer()
    given = dict(h=h, in_proj=in_proj, out_proj=out_proj, fwd=fwd, rev=rev)
    for name, value in change.items():
        given[name] = given[name]._replace(**value) if isinstance(value, dict) else value
    with pytest.raises(error, match=f"bimamba: {message}"):
        bimamba(**given)
