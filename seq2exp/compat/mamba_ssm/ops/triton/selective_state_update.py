"""One position of a selective scan."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def selective_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = False,
) -> Tensor:  # fmt: skip
    """state (batch, dim, N) is updated in place; x, dt, z (batch, dim), A (dim, N), B, C (batch, N), D, dt_bias (dim,).

    Returns
    -------
    (batch, dim) in x's dtype, computed in float32.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    step = dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias
    step = F.softplus(step) if dt_softplus else step
    new = state * torch.exp(step[..., None] * A) + (step * x)[..., None] * B[:, None]
    state.copy_(new.detach())
    y = (new * C[:, None]).sum(-1)
    y = y if D is None else y + D * x
    return (y if z is None else y * F.silu(z.to(wide))).to(x.dtype)
