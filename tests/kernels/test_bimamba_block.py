"""The residual block against add_norm and bimamba one after the other, and what it saves."""

import pytest
import torch
from memory import memory, saved_bytes
from mixer_layers import BACKENDS, converted, layer, leaves, rebuilt
from scan_problems import rms_error

from seq2exp.kernels import add_norm, bimamba, bimamba_block, set_backend
from seq2exp.kernels.bimamba import mixer

OPTIONS = [
    pytest.param(residual, gate, cu, id=f"{residual}-{'gated' if gate else 'open'}-{'packed' if cu else 'dense'}")
    for residual in (None, torch.float32, torch.bfloat16)
    for gate in (False, True)
    for cu in (None, [0, 1, 40, 40, 130])
]


def problem(dtype=torch.float32, residual=torch.float32, gate=True, batch=1, length=130, d=16):
    """x, residual, norm_weight, gate (None where not asked for) and the mixer's weights, all leaves."""
    g = torch.Generator().manual_seed(3)
    fixed, _ = converted(*layer(d=d, batch=batch, length=length), torch.float32)
    x = fixed[0].detach().to(dtype).requires_grad_()
    stream = None if residual is None else torch.randn(x.shape, generator=g).to(residual).requires_grad_()
    norm_weight = (1 + 0.3 * torch.randn(d, generator=g)).requires_grad_()
    multiplier = torch.rand(batch, length, generator=g).requires_grad_() if gate else None
    return x, stream, norm_weight, multiplier, fixed[1:]


def in_two_ops(x, residual, norm_weight, *weights, gate, cu_seqlens=None):
    h, residual_out = add_norm(x, residual, norm_weight, gate=gate)
    return bimamba(h, *weights, cu_seqlens=cu_seqlens), residual_out


def gradients(outputs, x, residual, norm_weight, gate, weights):
    g = torch.Generator().manual_seed(5)
    inputs = [t for t in (x, residual, norm_weight, gate) if t is not None] + leaves((x, *weights), None)[1:]
    grads = [torch.randn(out.shape, generator=g).to(out.dtype) for out in outputs]
    return torch.autograd.grad(outputs, inputs, grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual,gate,cu", OPTIONS)
def test_equals_the_two_ops(backend, residual, gate, cu):
    x, stream, norm_weight, multiplier, weights = problem(residual=residual, gate=gate)
    options = dict(gate=multiplier, cu_seqlens=None if cu is None else torch.tensor(cu))
    with set_backend(backend):
        ours = bimamba_block(x, stream, norm_weight, *weights, **options)
        theirs = in_two_ops(x, stream, norm_weight, *weights, **options)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
        pairs = zip(
            *(gradients(outputs, x, stream, norm_weight, multiplier, weights) for outputs in (ours, theirs)),
            strict=True,
        )
    for i, (a, b) in enumerate(pairs):
        assert rms_error(a, b) <= (1e-2 if residual == torch.bfloat16 else 1e-5), i


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 2])
def test_some_rows_at_a_time_give_the_same(monkeypatch, backend, rows):
    x, stream, norm_weight, gate, weights = problem(batch=3, length=300)

    def run():
        out = bimamba_block(x, stream, norm_weight, *weights, gate=gate)
        alone = bimamba(x, *weights)
        return *out, alone, *gradients(out, x, stream, norm_weight, gate, weights), *torch.autograd.grad(alone.sum(), x)

    with set_backend(backend):
        together = run()
        for name in ("FORWARD_BASES", "BACKWARD_BASES"):
            monkeypatch.setattr(mixer, name, rows * 300)
        apart = run()
    for i, (a, b) in enumerate(zip(apart, together, strict=True)):
        assert a.dtype == b.dtype and rms_error(a, b) <= 1e-6, i


def test_temporaries_do_not_grow_with_the_batch(monkeypatch):
    length = 2048
    monkeypatch.setattr(mixer, "FORWARD_BASES", length)
    monkeypatch.setattr(mixer, "BACKWARD_BASES", length)

    def temporaries(batch):
        x, stream, norm_weight, _, weights = problem(gate=False, batch=batch, length=length, d=128)
        used = memory(
            lambda: bimamba_block(x, stream, norm_weight, *weights),
            lambda outs: torch.autograd.backward(sum(outs).sum()),
        )
        return used.peak - used.live

    row = length * 128 * 4
    assert temporaries(4) - temporaries(2) <= 2 * 5 * row  # gradients of the outputs and of the inputs, no more


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual", [torch.float32, torch.bfloat16])
def test_under_autocast(backend, residual):
    """The stream keeps its dtype, the mixer computes in 16 bits."""
    x, stream, norm_weight, gate, weights = problem(torch.bfloat16, residual)
    with set_backend(backend):
        exact = bimamba_block(x.float(), stream.float(), norm_weight, *weights, gate=gate)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, residual_out = bimamba_block(x, stream, norm_weight, *weights, gate=gate)
            first, same = bimamba_block(x.detach().float(), None, norm_weight, *weights, gate=gate)
    assert (out.dtype, residual_out.dtype, first.dtype, same.dtype) == (
        torch.bfloat16, residual, torch.bfloat16, torch.float32
    )  # fmt: skip
    for a, b in zip((out, residual_out), exact, strict=True):
        assert rms_error(a.detach(), b.detach()) <= 2e-2
    assert all(g.isfinite().all() for g in gradients((out, residual_out), x, stream, norm_weight, gate, weights))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_layer_saves_the_stream_and_chunk_states(backend):
    """At most 400 bytes a base in bfloat16 at d_model 128, the residual stream included, and nothing on the side."""

    def forward(length):
        x, stream, norm_weight, _, weights = problem(torch.bfloat16, torch.bfloat16, False, length=length, d=128)
        return lambda: bimamba_block(x, stream, norm_weight, *weights)

    with set_backend(backend):
        short, long = (2048, 8192)
        saved = [saved_bytes(forward(n)) for n in (short, long)]
        live = [memory(forward(n), lambda outs: sum(outs).sum().backward()).live for n in (short, long)]
    per_base = (saved[1] - saved[0]) / (long - short)
    assert 256 < per_base <= 400
    output = 2 * 128  # is live as well
    assert (live[1] - live[0]) / (long - short) - output == pytest.approx(per_base, rel=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual", [None, torch.float32])
def test_opcheck(backend, residual):
    x, stream, norm_weight, gate, weights = problem(residual=residual, length=40, d=4)
    from seq2exp.kernels.bimamba import ops

    flat = [w.detach().requires_grad_() for w in ops.cast(torch.float32, *weights, None)]
    for multiplier, cu in ((gate, None), (None, torch.tensor([0, 10, 40]))):
        args = (x, stream, norm_weight, multiplier, 1e-5, flat, False, cu, backend, backend, True)
        torch.library.opcheck(torch.ops.seq2exp.bimamba_block_fwd.default, args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_fullgraph(backend):
    x, stream, norm_weight, gate, weights = problem(length=64)

    def loss(x, stream, norm_weight, gate, *flat):
        fixed, _ = rebuilt([x, *flat], False)
        out, residual = bimamba_block(x, stream, norm_weight, *fixed[1:], gate=gate)
        return (out + residual).square().sum()

    inputs = [x, stream, norm_weight, gate, *leaves((x, *weights), None)[1:]]
    with set_backend(backend):
        eager = torch.autograd.grad(loss(*inputs), inputs)
        compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    for i, (a, b) in enumerate(zip(compiled, eager, strict=True)):
        assert rms_error(a, b) <= 1e-5, i


@pytest.mark.parametrize("which", [0, 1])
def test_only_one_output_is_used(which):
    x, stream, norm_weight, gate, weights = problem(length=33)
    inputs = [x, stream, norm_weight, gate, weights[0]]
    ours, theirs = (
        torch.autograd.grad(form(x, stream, norm_weight, *weights, gate=gate)[which].sum(), inputs, allow_unused=True)
        for form in (bimamba_block, in_two_ops)
    )
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert rms_error(a, torch.zeros_like(a) if b is None else b) <= 1e-5 or (b is None and not a.any()), i


def test_bad_input_is_named():
    x, stream, norm_weight, gate, weights = problem(length=33)
    with pytest.raises(ValueError, match="residual has shape"):
        bimamba_block(x, stream[:, :5], norm_weight, *weights)
    with pytest.raises(ValueError, match="gate must have shape"):
        bimamba_block(x, stream, norm_weight, *weights, gate=gate[:, :5])
    with pytest.raises(ValueError, match=r"fwd.D must be"):
        bimamba_block(x, stream, norm_weight, *weights[:2], weights[2]._replace(D=norm_weight), weights[3])
