"""The functions of mamba-ssm and causal-conv1d over our ops: values, gradients, dtypes, what they return, errors."""

import mamba_reference as exact
import pytest
import torch
from scan_problems import rms_error
from torch.nn import functional as F

from seq2exp.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from seq2exp.compat.mamba_ssm.ops.selective_scan_interface import (
    mamba_inner_fn,
    mamba_inner_ref,
    selective_scan_fn,
    selective_scan_ref,
)
from seq2exp.compat.mamba_ssm.ops.triton import layer_norm, layernorm
from seq2exp.compat.mamba_ssm.ops.triton.selective_state_update import selective_state_update
from seq2exp.errors import UserError

BATCH, DIM, N, L = 2, 6, 4, 33
LIMITS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1e-2, 2e-2)}
DTYPES = list(LIMITS)


def draw(*shape, scale=1.0, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape))
    return (scale * torch.randn(*shape, generator=g, dtype=dtype)).requires_grad_()


def agree(function, oracle, inputs, dtype=torch.float32):
    """Value and the gradient of every input; inputs: by name, some None."""
    doubles = {name: exact.double(x) for name, x in inputs.items()}
    out, wanted = function(**inputs), oracle(**doubles)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    leaves = [name for name, x in inputs.items() if x is not None]
    ours = torch.autograd.grad(out, [inputs[name] for name in leaves], g.to(out.dtype))
    theirs = torch.autograd.grad(wanted, [doubles[name] for name in leaves], g.to(out.dtype).double())
    forward, backward = LIMITS[dtype]
    assert rms_error(out.detach(), wanted.detach()) <= forward
    for name, a, b in zip(leaves, ours, theirs, strict=True):
        assert a.dtype == inputs[name].dtype, name
        parts = [(a.real, b.real), (a.imag, b.imag)] if a.is_complex() else [(a, b)]
        for x, y in parts:
            assert rms_error(x, y) <= backward, name
    return out


FORMS = {"constant": (DIM, N), "variable": (BATCH, N, L), "groups": (BATCH, 3, N, L)}


def scan_inputs(dtype=torch.float32, b="variable", c="variable", D=True, z=True, bias=True):
    u, delta, gate = (draw(BATCH, DIM, L, seed=i).to(dtype).detach().requires_grad_() for i in range(3))
    B, C = (
        draw(*FORMS[form], seed=s).to(torch.float32 if form == "constant" else dtype).detach().requires_grad_()
        for form, s in ((b, 3), (c, 4))
    )
    A = (-torch.rand(DIM, N, generator=torch.Generator().manual_seed(5)) - 0.2).requires_grad_()
    return dict(
        u=u, delta=delta, A=A, B=B, C=C, D=draw(DIM, seed=6) if D else None, z=gate if z else None,
        delta_bias=draw(DIM, seed=7) if bias else None,
    )  # fmt: skip


def positive(function):
    """With softplus, as mamba-ssm is used: without, step sizes may be negative."""
    return lambda **inputs: function(**inputs, delta_softplus=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {}, {"b": "groups", "c": "constant"}, {"b": "constant", "c": "groups"}, {"D": False}, {"z": False},
        {"bias": False, "D": False, "z": False, "b": "constant", "c": "constant"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("function", [selective_scan_fn, selective_scan_ref])
def test_scan(function, options, dtype):
    inputs = scan_inputs(dtype, **options)
    out = agree(positive(function), positive(exact.scan), inputs, dtype)
    assert out.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["constant", "variable"])
def test_last_state_is_float32_and_has_no_gradient(dtype, form):
    inputs = scan_inputs(dtype, b=form)
    out, last = selective_scan_fn(*inputs.values(), True, True)
    assert out.dtype == dtype and last.dtype == torch.float32 and not last.requires_grad
    keys = ("u", "delta", "A", "B", "delta_bias")
    wanted = exact.last_state(**{k: exact.double(inputs[k]) for k in keys}, delta_softplus=True)
    assert last.shape == (BATCH, DIM, N)
    assert rms_error(last, wanted.detach()) <= 1e-5
    _, reference = selective_scan_ref(*inputs.values(), True, True)
    assert rms_error(reference.detach(), wanted.detach()) <= 1e-5


@pytest.mark.parametrize("function", [selective_scan_fn, selective_scan_ref])
@pytest.mark.parametrize("constant", [False, True])
def test_complex_scan(function, constant):
    """Variable B and C come with real and imaginary parts in turn."""
    inputs = scan_inputs()
    inputs["A"] = torch.complex(inputs["A"].detach(), draw(DIM, N).detach()).requires_grad_()
    for name, seed in (("B", 3), ("C", 4)):
        form = (DIM, N) if constant else (BATCH, N, 2 * L)
        inputs[name] = draw(*form, dtype=torch.complex64 if constant else torch.float32, seed=seed)
    agree(positive(function), positive(exact.scan), inputs)
    out, last = selective_scan_fn(*inputs.values(), True, True)
    assert out.dtype == torch.float32 and last.dtype == torch.complex64 and not last.requires_grad


def test_scan_refuses_mixed_dtypes():
    inputs = scan_inputs(torch.bfloat16)
    with pytest.raises(TypeError, match=r"delta is torch\.float32, u is torch\.bfloat16"):
        selective_scan_fn(*(inputs | {"delta": inputs["delta"].float()}).values())


def inner_inputs(dtype=torch.float32, complex_A=False, **options):
    """Of mamba_inner_fn; options: which of the optional ones are there."""
    rank, d, states = 3, 5, N * (2 if complex_A else 1)
    A = (-torch.rand(DIM, N, generator=torch.Generator().manual_seed(5)) - 0.2).requires_grad_()
    given = dict(
        conv1d_bias=(DIM,), out_proj_bias=(d,), B=(DIM, N), C=(BATCH, N, L), D=(DIM,), delta_bias=(DIM,),
        B_proj_bias=(states,), C_proj_bias=(states,),
    )  # fmt: skip
    there = {name: draw(*shape, seed=i) if options.get(name) else None for i, (name, shape) in enumerate(given.items())}
    projections = dict(
        x_proj_weight=draw(rank + 2 * states, DIM), delta_proj_weight=draw(DIM, rank), out_proj_weight=draw(d, DIM)
    )
    half = {
        name: x.to(dtype).detach().requires_grad_()
        for name, x in (projections | {"xz": draw(BATCH, 2 * DIM, L)}).items()
    }
    return dict(
        xz=half["xz"], conv1d_weight=draw(DIM, 1, 4), conv1d_bias=there["conv1d_bias"],
        x_proj_weight=half["x_proj_weight"], delta_proj_weight=half["delta_proj_weight"],
        out_proj_weight=half["out_proj_weight"], out_proj_bias=there["out_proj_bias"],
        A=torch.complex(A.detach(), draw(DIM, N).detach()).requires_grad_() if complex_A else A,
        **{name: there[name] for name in ("B", "C", "D", "delta_bias", "B_proj_bias", "C_proj_bias")},
    )  # fmt: skip


INNER = [
    {"conv1d_bias": True, "D": True, "delta_bias": True},
    {"out_proj_bias": True, "B": True, "D": True},
    {"C": True, "B_proj_bias": True, "delta_bias": True},
    {"B_proj_bias": True, "C_proj_bias": True, "conv1d_bias": True, "complex_A": True},
]


@pytest.mark.parametrize("function", [mamba_inner_fn, mamba_inner_ref])
@pytest.mark.parametrize("options", INNER, ids=lambda o: "+".join(o))
def test_inner(function, options):
    agree(lambda **x: function(*x.values()), lambda **x: exact.inner(*x.values()), inner_inputs(**options))


def test_inner_in_bfloat16_and_under_autocast():
    """Projections in the dtype of xz; under autocast in autocast's, whatever they are, gradients in their own."""
    options = INNER[0]
    wanted = exact.inner(*(exact.double(x) for x in inner_inputs(**options).values()))
    half = inner_inputs(torch.bfloat16, **options)
    full = inner_inputs(**options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mamba_inner_fn(*full.values())
    for out, inputs in ((mamba_inner_fn(*half.values()), half), (mixed, full)):
        assert out.dtype == torch.bfloat16
        assert rms_error(out.detach(), wanted.detach()) <= 2e-2
        out.float().sum().backward()
        assert all(x.grad is not None and x.grad.dtype == x.dtype for x in inputs.values() if x is not None)


# --- norms ------------------------------------------------------------------------------------------------------------


def oracle(x, weight, bias=None, residual=None, rms=False, eps=1e-6):
    total = x if residual is None else x + residual
    centred = total if rms else total - total.mean(-1, keepdim=True)
    out = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return out if bias is None else out + bias


@pytest.mark.parametrize("module", [layernorm, layer_norm])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_norm(module, rms, bias, residual):
    inputs = dict(
        x=draw(2, 7, 12), weight=draw(12, seed=1), bias=draw(12, seed=2) if bias else None,
        residual=draw(2, 7, 12, seed=3) if residual else None,
    )  # fmt: skip
    function = module.rms_norm_fn if rms else module.layer_norm_fn
    agree(lambda **x: function(**x), lambda **x: oracle(**x, rms=rms), inputs)
    agree(lambda **x: function(**x, prenorm=True)[0] * 1, lambda **x: oracle(**x, rms=rms), inputs)
    chosen = module.layer_norm_fn(**inputs, is_rms_norm=rms)
    torch.testing.assert_close(chosen, function(**inputs), rtol=0, atol=0)


@pytest.mark.parametrize("function", [layernorm.rms_norm_fn, layer_norm.layer_norm_fn])
@pytest.mark.parametrize("residual_dtype,in_fp32", [(None, False), (None, True), (torch.float32, False)])
def test_norm_dtypes(function, residual_dtype, in_fp32):
    """y in x's dtype, the stream in the residual's; without one in x's or float32. Gradients of both reach x."""
    x = draw(3, 16).bfloat16().detach().requires_grad_()
    residual = None if residual_dtype is None else draw(3, 16, seed=1).to(residual_dtype)
    y, stream = function(x, draw(16), None, residual=residual, prenorm=True, residual_in_fp32=in_fp32)
    assert y.dtype == torch.bfloat16
    assert stream.dtype == (residual_dtype or (torch.float32 if in_fp32 else torch.bfloat16))
    torch.testing.assert_close(stream.float(), x.float() if residual is None else x.float() + residual)
    (y.float().square().sum() + stream.float().sum()).backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert function(x.float(), draw(16), None).dtype == torch.float32


def test_norm_positional_order():
    x, w, r = draw(3, 8), draw(8), draw(3, 8, seed=5)
    torch.testing.assert_close(
        layernorm.rms_norm_fn(x, w, None, r, True, False, 0.5)[0], oracle(x, w, None, r, True, 0.5)
    )
    torch.testing.assert_close(layernorm.layer_norm_fn(x, w, None, r, 0.5), oracle(x, w, None, r, False, 0.5))
    torch.testing.assert_close(
        layer_norm.layer_norm_fn(x, w, None, r, None, None, None, 0.5), oracle(x, w, None, r, False, 0.5)
    )


def test_norm_of_two_branches_with_dropout():
    """2.x: x1, a second norm, row scale, and masks that say what was kept."""
    torch.manual_seed(0)
    x, x1, r = (draw(40, 64, seed=i) for i in range(3))
    w, w1, b1 = (draw(64, seed=i) for i in range(3))
    options = dict(x1=x1, weight1=w1, bias1=b1, dropout_p=0.25, prenorm=True, return_dropout_mask=True)
    y, y1, stream, mask, mask1 = layer_norm.rms_norm_fn(x, w, None, r, **options)
    assert mask.dtype == mask1.dtype == torch.bool and 0.7 < mask.float().mean() < 0.8 and not torch.equal(mask, mask1)
    total = x * mask / 0.75 + x1 * mask1 / 0.75 + r
    torch.testing.assert_close(stream, total)
    torch.testing.assert_close(y, oracle(total, w, rms=True))
    torch.testing.assert_close(y1, oracle(total, w1, b1, rms=True))
    scale = draw(40)
    scaled, none, none1 = layer_norm.layer_norm_fn(x, w, None, rowscale=scale, return_dropout_mask=True)
    assert none is None and none1 is None
    torch.testing.assert_close(scaled, oracle(x * scale[:, None], w))
    with pytest.raises(UserError, match="rowscale"):
        layer_norm.rms_norm_fn(x, w, None, x1=x1, rowscale=scale)


def test_rms_norm_module():
    norm = layernorm.RMSNorm(12, eps=0.1)
    assert layer_norm.RMSNorm is layernorm.RMSNorm
    assert list(norm.state_dict()) == ["weight"] and norm.bias is None
    x, r = draw(4, 12), draw(4, 12, seed=3)
    torch.testing.assert_close(norm(x), oracle(x, norm.weight, rms=True, eps=0.1))
    torch.testing.assert_close(norm(x, r, prenorm=True)[1], x + r)
    assert norm(x.bfloat16(), prenorm=True, residual_in_fp32=True)[1].dtype == torch.float32
    dropping = layer_norm.RMSNorm(12, dropout_p=0.5)
    assert (dropping(x) == 0).any() and not (dropping.eval()(x) == 0).any()


# --- the convolution --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution(dtype, activation, bias):
    def wanted(x, weight, bias):
        out = exact.convolution(x, weight, bias)
        return out if activation is None else out / (1 + torch.exp(-out))

    x = draw(BATCH, DIM, L).to(dtype).detach().requires_grad_()
    inputs = dict(x=x, weight=draw(DIM, 4), bias=draw(DIM) if bias else None)
    out = agree(lambda **i: causal_conv1d_fn(**i, activation=activation), wanted, inputs, dtype)
    assert out.dtype == dtype
    torch.testing.assert_close(causal_conv1d_fn(*inputs.values(), activation), out, rtol=0, atol=0)  # as of 1.0


@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution_of_packed_sequences(activation):
    x, weight, bias = draw(2, DIM, 12), draw(DIM, 4), draw(DIM)
    seq_idx = torch.tensor([[0] * 5 + [1] * 2 + [2] * 5, [3] * 10 + [-1] * 2], dtype=torch.int32)
    out = causal_conv1d_fn(x, weight, bias, seq_idx, activation=activation)
    for row, start, end in ((0, 0, 5), (0, 5, 7), (0, 7, 12), (1, 0, 10)):
        alone = causal_conv1d_fn(x[row : row + 1, :, start:end], weight, bias, activation=activation)
        torch.testing.assert_close(out[row : row + 1, :, start:end], alone)
    assert (out[1, :, 10:] == 0).all()
    with pytest.raises(ValueError, match="seq_idx"):
        causal_conv1d_fn(x, weight, bias, seq_idx, return_final_states=True)


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_convolution_goes_on_from_its_states(cut):
    x, weight, bias = draw(2, DIM, 30), draw(DIM, 4), draw(DIM)
    whole, end = causal_conv1d_fn(x, weight, bias, return_final_states=True, activation="silu")
    torch.testing.assert_close(end, x[..., -3:])
    first, states = causal_conv1d_fn(x[..., :cut], weight, bias, return_final_states=True, activation="silu")
    out = torch.empty(2, DIM, 3)
    rest, final = causal_conv1d_fn(x[..., cut:], weight, bias, None, states, True, out, "silu")
    torch.testing.assert_close(torch.cat([first, rest], -1), whole)
    assert final.data_ptr() == out.data_ptr()
    torch.testing.assert_close(final, end)


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("states,steps", [(3, 1), (4, 1), (6, 3)])
def test_convolution_step_by_step(ring, states, steps):
    """The last inputs in order or in a ring, in rows of a larger cache."""
    x, weight, bias = draw(2, DIM, 12).detach(), draw(DIM, 4), draw(DIM)
    whole = causal_conv1d_fn(x, weight, bias, activation="silu")
    cache, rows = torch.zeros(5, DIM, states), torch.tensor([3, 1], dtype=torch.int32)
    outs = []
    for t in range(0, 12, steps):
        at = torch.full((2,), t, dtype=torch.int32) if ring else None
        new = x[..., t] if steps == 1 else x[..., t : t + steps]
        out = causal_conv1d_update(new, cache, weight, bias, "silu", at, rows)
        assert out.shape == new.shape
        outs.append(out.reshape(2, DIM, -1))
    torch.testing.assert_close(torch.cat(outs, -1), whole)
    assert (cache[[0, 2, 4]] == 0).all()
    order = [t % states for t in range(12 - states, 12)] if ring else list(range(states))
    torch.testing.assert_close(cache[[3, 1]][..., order], x[..., -states:])


def test_convolution_errors():
    x, weight = draw(1, 2, 5), draw(2, 4)
    for call in (lambda: causal_conv1d_fn(x, weight, activation="relu"),
                 lambda: causal_conv1d_update(x, torch.zeros(1, 2, 4), weight, activation="relu")):  # fmt: skip
        with pytest.raises(NotImplementedError, match="None, silu, or swish, not 'relu'"):
            call()
    with pytest.raises(ValueError, match="keeps 2 inputs, the weight needs 3"):
        causal_conv1d_update(x[..., 0], torch.zeros(1, 2, 2), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plain", [False, True])
def test_state_update_is_a_position_of_the_scan(dtype, plain):
    inputs = scan_inputs(D=not plain, z=not plain, bias=not plain)
    whole, last = selective_scan_fn(*inputs.values(), True, True)
    state = torch.zeros(BATCH, DIM, N)
    at = {name: x if x is None or x.dim() < 3 else x.to(dtype) for name, x in inputs.items()}
    with torch.no_grad():
        outs = []
        for t in range(L):
            now = {name: x[..., t] if x is not None and x.dim() == 3 else x for name, x in at.items()}
            u, delta, A, B, C, D, z, bias = now.values()
            outs.append(selective_state_update(state, u, delta, A, B, C, D, z, bias, dt_softplus=True))
    assert outs[0].dtype == dtype
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    assert rms_error(torch.stack(outs, -1), whole.detach()) <= limit
    assert rms_error(state, last) <= limit


def test_reference_convolution_is_that_of_torch():
    """The oracle of this file itself."""
    x, weight = draw(1, DIM, 9).detach(), draw(DIM, 4).detach()
    torch.testing.assert_close(exact.convolution(x, weight), F.conv1d(F.pad(x, (3, 0)), weight[:, None], groups=DIM))
