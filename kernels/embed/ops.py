"""`embed_bases`: checks, the registered op (schema, fake, autograd) and the choice of implementation."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor

from seq2exp.kernels import backend as backends
from seq2exp.kernels.embed.bases import CODES, Bases, Wanted

_MODULES = {"reference": "reference", "cpu": "native", "triton": "triton", "cuda": "cuda"}
_STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INPUTS = "Tensor codes, Tensor table, Tensor? signals, Tensor? signal_weight, Tensor? positions, Tensor? mask, "
_INPUTS += "Tensor? indices, bool complement, "


def implementation(backend: str) -> ModuleType:
    """Imported when first used: `import seq2exp` needs no Triton."""
    return importlib.import_module(f"seq2exp.kernels.embed.{_MODULES[backend]}")


@torch.library.custom_op(
    "seq2exp::embed_bases_fwd", mutates_args=(), schema=f"({_INPUTS}ScalarType dtype, str backend) -> Tensor"
)
def _forward(
    codes: Tensor, table: Tensor, signals: Tensor | None, signal_weight: Tensor | None, positions: Tensor | None,
    mask: Tensor | None, indices: Tensor | None, complement: bool, dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    check_codes(codes)
    x = Bases(codes, table, signals, signal_weight, positions, mask, indices, complement)
    return implementation(backend).forward(x, dtype)


@_forward.register_fake
def _(codes, table, signals, signal_weight, positions, mask, indices, complement, dtype, backend):
    return table.new_empty(Bases(codes, table, indices=indices).out_shape, dtype=dtype)


@torch.library.custom_op(
    "seq2exp::embed_bases_bwd", mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}bool for_positions, bool for_mask, bool for_signals, str backend) -> Tensor[]",
)  # fmt: skip
def _backward(
    grad: Tensor, codes: Tensor, table: Tensor, signals: Tensor | None, signal_weight: Tensor | None,
    positions: Tensor | None, mask: Tensor | None, indices: Tensor | None, complement: bool, for_positions: bool,
    for_mask: bool, for_signals: bool, backend: str,
) -> list[Tensor]:  # fmt: skip
    """dtable, dsignal_weight if there are signals, then those of positions, mask and signals that are asked for."""
    x = Bases(codes, table, signals, signal_weight, positions, mask, indices, complement)
    grads = implementation(backend).backward(grad, x, Wanted(for_positions, for_mask, for_signals))
    return [g for g in grads if g is not None]


@_backward.register_fake
def _(
    grad, codes, table, signals, signal_weight, positions, mask, indices, complement, for_positions, for_mask,
    for_signals, backend,
):  # fmt: skip
    shapes = [table.shape]
    shapes += [signal_weight.shape] if signals is not None else []
    shapes += [(codes.shape[1], table.shape[1])] if for_positions else []
    shapes += [codes.shape] if for_mask else []
    shapes += [signals.shape] if for_signals else []
    return [table.new_empty(shape) for shape in shapes]


def _setup_context(ctx, inputs, output) -> None:
    codes, table, signals, signal_weight, positions, mask, indices, ctx.complement, _, ctx.backend = inputs
    for_mask = ctx.needs_input_grad[5]
    ctx.save_for_backward(codes, table, signals, signal_weight, positions if for_mask else None, mask, indices)


def _autograd(ctx, grad):
    _, _, signals, *_ = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[i] for i in (4, 5, 2)]  # positions, mask, signals
    left = iter(_backward(grad, *ctx.saved_tensors, ctx.complement, *wanted, ctx.backend))
    dtable = next(left)
    dweight = None if signals is None else next(left)
    dpositions, dmask, dsignals = (next(left) if asked else None for asked in wanted)
    if dsignals is not None:
        dsignals = dsignals.to(signals.dtype)
    return None, dtable, dsignals, dweight, dpositions, dmask, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def embed_bases(
    codes: Tensor, table: Tensor, *, signals: Tensor | None = None, signal_weight: Tensor | None = None,
    positions: Tensor | None = None, mask: Tensor | None = None, indices: Tensor | None = None,
    complement: bool = False, dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """The input of a model from the codes and signals of bases, in one pass and without a one-hot tensor:

        out[b, l] = (table[codes[b, l]] + positions[l] + sum_t signals[b, l, t] * signal_weight[:, t]) * mask[b, l]

    Parameters
    ----------
    codes: (batch, L) uint8, A C G T N = 0..4. A GPU reads codes above 4 as N; elsewhere they are refused.
    table: (5, d), floating point, a row for each code, biases included. float64 gives float64 throughout.
    signals: (batch, L, tracks) in float32, bfloat16, float16 or float64, any strides; read as they lie (but float64
        with a table of another dtype, which is rounded to float32 first). signal_weight: (d, tracks). Both or neither.
    positions: (L, d). mask: (batch, L). Floating point; both in float32 and with adjacent channels are not copied.
    indices: int64 (total,) into batch * L, in any order, each base at most once: only these are computed. One from
        batch * L on is padding and gives zeros; a negative one marks a selection that overflowed and gives NaN. Neither
        has a gradient.
    complement: the other strand: code c is read as 3 - c where c < 4.
    dtype: of the output, by default the table's. Sums are formed in float32 (float64) and rounded once.

    Returns
    -------
    (batch, L, d), or (total, d) with indices; contiguous.

    Gradients flow to all floating point inputs; they are the same bits in every run. Kept for the backward are codes,
    signals, mask, indices and the weights.

    Raises
    ------
    TypeError: not tensors, wrong dtypes. ValueError: shapes or devices that do not fit, codes above 4.
    """
    x = Bases(codes, table, signals, signal_weight, positions, mask, indices, complement)
    check(x)
    dtype = table.dtype if dtype is None else dtype
    if dtype not in _STORAGE:
        raise TypeError(f"embed_bases: dtype is {dtype}; use float32, bfloat16, float16 or float64")
    wide = torch.promote_types(table.dtype, torch.float32)
    kind = torch.float64 if torch.float64 in (wide, dtype) else dtype
    empty = 0 in x.out_shape
    backend = "reference" if empty else backends.resolve("embed_bases", codes.device, kind)
    table, signal_weight, positions, mask = (
        None if t is None else t.to(wide) for t in (table, signal_weight, positions, mask)
    )
    return _forward(codes, table, signals, signal_weight, positions, mask, indices, complement, dtype, backend)


def check_codes(codes: Tensor) -> None:
    """ValueError for codes above 4; on the CPU only, a GPU would have to be waited for."""
    if codes.device.type == "cpu" and codes.numel() and (largest := int(codes.max())) >= CODES:
        raise ValueError(f"embed_bases: codes holds {largest}; codes are A C G T N = 0..4")


def check(x: Bases) -> None:
    """TypeError, ValueError."""
    for name, t in zip(x._fields[:-1], x[:-1], strict=True):
        if t is None and name not in ("codes", "table"):
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"embed_bases: {name} must be a tensor, not {type(t).__name__}")
        if t.device != x.codes.device:
            raise ValueError(f"embed_bases: {name} is on {t.device}, codes on {x.codes.device}")
        if name in ("codes", "indices"):
            needed = torch.uint8 if name == "codes" else torch.int64
            if t.dtype != needed:
                raise TypeError(f"embed_bases: {name} is {t.dtype}; {needed} is needed")
        elif t.dtype not in _STORAGE:
            raise TypeError(f"embed_bases: {name} is {t.dtype}; use float32, bfloat16, float16 or float64")
    if x.codes.dim() != 2:
        raise ValueError(f"embed_bases: codes must be (batch, L), got {tuple(x.codes.shape)}")
    if x.table.dim() != 2 or x.table.shape[0] != CODES or x.table.shape[1] < 1:
        raise ValueError(f"embed_bases: table must be (5, d), a row for each of A C G T N, got {tuple(x.table.shape)}")
    if (x.signals is None) != (x.signal_weight is None):
        given, missing = ("signals", "signal_weight") if x.signal_weight is None else ("signal_weight", "signals")
        raise ValueError(f"embed_bases: {given} is given without {missing}; give both or neither")
    (batch, length), d = x.codes.shape, x.table.shape[1]
    tracks = x.signals.shape[-1] if x.signals is not None and x.signals.dim() else 0
    expected = {
        "signals": (batch, length, tracks), "signal_weight": (d, tracks), "positions": (length, d),
        "mask": (batch, length),
    }  # fmt: skip
    for name, shape in expected.items():
        t = getattr(x, name)
        if t is not None and t.shape != shape:
            raise ValueError(f"embed_bases: {name} must have shape {shape}, got {tuple(t.shape)}")
    if x.indices is not None and x.indices.dim() != 1:
        raise ValueError(f"embed_bases: indices must be (total,), got {tuple(x.indices.shape)}")
