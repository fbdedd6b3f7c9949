"""The Mamba mixer (Gu and Dao 2023), and the block of mamba-ssm 1.x around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2exp.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from seq2exp.compat.mamba_ssm.modules.block import add_then_norm, check_norm
from seq2exp.compat.mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
from seq2exp.compat.mamba_ssm.ops.triton.selective_state_update import selective_state_update
from seq2exp.errors import UserError
from seq2exp.kernels import ScanWeights
from seq2exp.kernels.bimamba import mamba

__all__ = ["Block", "Mamba"]

_DT_INITS = ("random", "constant")


class Mamba(nn.Module):
    """(batch, L, d_model) -> the same; weights, their names and their order of initialisation as in mamba-ssm.

    use_fast_path: one op, which saves its input and chunk states, where it applies (no bias of in_proj, d_conv 2 to 4);
    else and when reading with a cache the convolution and the scan are ops of their own. A_log and D stay float32.

    Raises
    ------
    NotImplementedError: dt_init that is neither "random" nor "constant".
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: float = 2, dt_rank: int | str = "auto",
        dt_min: float = 0.001, dt_max: float = 0.1, dt_init: str = "random", dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4, conv_bias: bool = True, bias: bool = False, use_fast_path: bool = True,
        layer_idx: int | None = None, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if dt_init not in _DT_INITS:
            raise NotImplementedError(f"Mamba: dt_init {dt_init!r} is none of {', '.join(_DT_INITS)}")
        options = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **options)
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1, bias=conv_bias, **options
        )
        self.activation, self.act = "silu", nn.SiLU()
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **options)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, **options)
        bound = dt_scale * self.dt_rank**-0.5
        with torch.no_grad():
            if dt_init == "constant":
                self.dt_proj.weight.fill_(bound)
            else:
                self.dt_proj.weight.uniform_(-bound, bound)
            span = math.log(dt_max) - math.log(dt_min)
            step = torch.exp(torch.rand(self.d_inner, **options) * span + math.log(dt_min)).clamp(min=dt_init_floor)
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(bias) = step
        states = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(torch.log(states).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner, device=device))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **options)
        # What optimisers and initialisers of published code look for.
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]
        self.A_log._no_weight_decay = self.D._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        if inference_params is not None:
            states = self._get_states_from_cache(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *states)[0]
            return self._read(hidden_states, *states)
        if self.use_fast_path and self.in_proj.bias is None and 2 <= self.d_conv <= 4:
            return self._fused(hidden_states)
        return mamba_inner_fn(
            self._project(hidden_states), self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight,
            self.out_proj.weight, self.out_proj.bias, self._A(), D=self.D.float(),
            delta_bias=self.dt_proj.bias.float(),
        )  # fmt: skip

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One position (batch, 1, d_model) -> the same and the states, which are updated in place.

        Raises
        ------
        UserError: more than one position.
        """
        if hidden_states.shape[1] != 1:
            raise UserError(f"Mamba.step takes one position at a time, got {hidden_states.shape[1]}")
        x, z = self.in_proj(hidden_states[:, 0]).chunk(2, -1)
        x = causal_conv1d_update(x, conv_state, self.conv1d.weight[:, 0], self.conv1d.bias, self.activation)
        low, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        delta = F.linear(low, self.dt_proj.weight)
        y = selective_state_update(
            ssm_state, x, delta, self._A(), B, C, self.D, z, self.dt_proj.bias, dt_softplus=True
        )  # fmt: skip
        return self.out_proj(y)[:, None], conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states: of the convolution (batch, d_inner, d_conv), of the scan (batch, d_inner, d_state)."""
        conv, scan = self.conv1d.weight, self.dt_proj.weight
        return (
            conv.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype),
            scan.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype),
        )

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        if self.layer_idx is None:
            raise UserError("Mamba: a cache needs layer_idx, the layer's number, at construction")
        cache = inference_params.key_value_memory_dict
        if self.layer_idx not in cache:
            cache[self.layer_idx] = self.allocate_inference_cache(batch_size, 0)
        conv_state, ssm_state = cache[self.layer_idx]
        if conv_state.shape[0] != batch_size:
            raise UserError(f"Mamba: the cache is of batch {conv_state.shape[0]}, the input of batch {batch_size}")
        if initialize_states:
            conv_state.zero_()
            ssm_state.zero_()
        return conv_state, ssm_state

    def _fused(self, hidden_states: Tensor) -> Tensor:
        bias = self.conv1d.bias
        weights = ScanWeights(
            self.conv1d.weight, self.conv1d.weight.new_zeros(self.d_inner) if bias is None else bias,
            self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias, self.A_log, self.D,
        )  # fmt: skip
        out = mamba(hidden_states, self.in_proj.weight, self.out_proj.weight, weights)
        return out if self.out_proj.bias is None else out + self.out_proj.bias.to(out.dtype)

    def _read(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        """The whole input, leaving in the states what `step` goes on from."""
        x, z = self._project(hidden_states).chunk(2, 1)
        conv_state.copy_(F.pad(x.detach(), (self.d_conv - x.shape[2], 0)))  # a negative padding cuts
        c: Any = causal_conv1d_fn(x, self.conv1d.weight[:, 0], self.conv1d.bias, activation=self.activation)
        low, B, C = self.x_proj(c.transpose(1, 2)).transpose(1, 2).split([self.dt_rank, self.d_state, self.d_state], 1)
        delta = F.linear(low.transpose(1, 2), self.dt_proj.weight).transpose(1, 2)
        y, last_state = selective_scan_fn(
            c.to(delta.dtype), delta, self._A(), B, C, self.D.float(), z.to(delta.dtype), self.dt_proj.bias.float(),
            delta_softplus=True, return_last_state=True,
        )  # fmt: skip
        ssm_state.copy_(last_state)
        return self.out_proj(y.transpose(1, 2))

    def _project(self, hidden_states: Tensor) -> Tensor:
        """xz: (batch, 2 d_inner, L)."""
        xz = torch.bmm(self.in_proj.weight.expand(hidden_states.shape[0], -1, -1), hidden_states.transpose(1, 2))
        return xz if self.in_proj.bias is None else xz + self.in_proj.bias.to(xz.dtype)[:, None]

    def _A(self) -> Tensor:
        return -torch.exp(self.A_log.float())


class Block(nn.Module):
    """Residual add, norm, mixer: (batch, L, dim) -> the same, not yet added, and the stream. See `modules.block`."""

    def __init__(
        self, dim: int, mixer_cls: Callable[..., nn.Module], norm_cls: Callable[..., nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False, residual_in_fp32: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.mixer: Any = mixer_cls(dim)
        self.norm = norm_cls(dim)
        check_norm(self.norm, fused_add_norm)

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None = None, inference_params: Any = None
    ) -> tuple[Tensor, Tensor]:
        hidden_states, residual = add_then_norm(
            self.norm, hidden_states, residual, self.fused_add_norm, self.residual_in_fp32
        )
        return self.mixer(hidden_states, inference_params=inference_params), residual

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        return self.mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)
