"""`patch_caduceus`: the bidirectional layers of an already built published model, computed by our kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from seq2exp.errors import UserError
from seq2exp.kernels import ScanWeights, bimamba
from seq2exp.kernels.bimamba.ops import check

# Of one direction, in the order of ScanWeights.
_WEIGHTS = ("conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D")
_PROJECTIONS = ("in_proj.weight", "out_proj.weight")
_DIRECTIONS = ("mamba_fwd", "mamba_rev")


def patch_caduceus(model: nn.Module) -> int:
    """Compute every bidirectional Mamba layer of a published Caduceus or Seq2Exp model with our kernels, in place.

    Parameters
    ----------
    model: holds layers with two Mamba modules, `mamba_fwd` and `mamba_rev` (the published BiMambaWrapper), tied or not,
        "add" or "ew_multiply", also inside the wrappers of Caduceus-PS. They are told by their attributes and shapes.

    Returns
    -------
    How many layers were replaced; 0 for a model that is patched already. Modules, parameters, hooks and the keys of
    state dicts stay what they are, so that an optimizer made before goes on. Outputs have the dtype that
    `seq2exp.kernels.bimamba` documents.

    Raises
    ------
    UserError: a model without such layers, or a layer that our kernels do not have. Nothing is replaced then.
    """
    layers = {name: module for name, module in model.named_modules() if _is_bidirectional(module)}
    if not layers:
        raise UserError(
            f"patch_caduceus: {type(model).__name__} has no bidirectional layers, modules with mamba_fwd and mamba_rev"
        )
    for name, layer in layers.items():
        _check(name, layer)
    todo = [layer for layer in layers.values() if not _is_patched(layer)]
    for layer in todo:
        # On the instance: hooks, parameters and the place in the model are untouched. A partial, unlike a bound
        # method, is pickled and deep-copied together with the layer.
        layer.forward = partial(_forward, layer)
    return len(todo)


def unpatch_caduceus(model: nn.Module) -> int:
    """Undo `patch_caduceus`; returns how many layers compute as published again."""
    patched = [module for module in model.modules() if _is_patched(module)]
    for layer in patched:
        del layer.forward  # the class's is underneath
    return len(patched)


def _forward(layer: nn.Module, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
    """(batch, L, d_model) -> the same, as the published layer's forward."""
    if inference_params is not None:
        raise UserError("patch_caduceus: a patched layer reads whole sequences, without inference_params")
    weights, options = _arguments(layer)
    return bimamba(hidden_states, *weights, **options)


def _arguments(layer: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `bimamba` takes besides its input: positional and by name. The parameters as they are now: a state dict may
    have put others in their place."""
    fwd, rev = (
        {key: layer.get_parameter(f"{direction}.{key}") for key in (*_PROJECTIONS, *_WEIGHTS)}
        for direction in _DIRECTIONS
    )
    projections, reverse = ([own[key] for key in _PROJECTIONS] for own in (fwd, rev))
    tied = all(a is b for a, b in zip(projections, reverse, strict=True))
    directions = (ScanWeights(*(own[key] for key in _WEIGHTS)) for own in (fwd, rev))
    strategy = getattr(layer, "bidirectional_strategy", None) or "add"
    return (*projections, *directions), {"rev_proj": None if tied else tuple(reverse), "strategy": strategy}


def _is_bidirectional(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Module) for name in _DIRECTIONS)


def _is_patched(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func is _forward


def _check(name: str, layer: nn.Module) -> None:
    """That `bimamba` takes the layer, whose check of an input without bases this is."""
    for direction in _DIRECTIONS:
        found = dict(getattr(layer, direction).named_parameters()).keys()
        wanted = {*_PROJECTIONS, *_WEIGHTS}
        if found != wanted:
            lacks, has = sorted(wanted - found), sorted(found - wanted)
            said = f"lacks {lacks[0]}" if lacks else f"has {has[0]} too"
            raise UserError(
                f"patch_caduceus: {name}.{direction} {said}; supported is Mamba-1 with conv_bias=True, bias=False"
            )
    weights, options = _arguments(layer)
    try:
        check(weights[0].new_empty(1, 0, weights[0].shape[1]), *weights, **options, cu_seqlens=None)
    except (ValueError, TypeError) as error:
        raise UserError(f"patch_caduceus: {name} does not fit our kernels: {error}") from None
