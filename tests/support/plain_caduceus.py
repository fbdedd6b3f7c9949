"""The published backbones in plain torch operations, on published state dicts: what the conversions are held against.

Written from the papers' equations and the documented layout of the halves, base by base, in the dtype of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-5
Weights = dict[str, Tensor]


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * weight


def mamba(h: Tensor, w: Weights, at: str) -> Tensor:
    """A Mamba module from left to right, h (batch, L, d); `at`: the prefix of its keys."""
    x, z = F.linear(h, w[f"{at}in_proj.weight"]).chunk(2, -1)
    conv = w[f"{at}conv1d.weight"]
    width, length = conv.shape[-1], h.shape[1]
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    x = F.silu(F.conv1d(padded, conv, w[f"{at}conv1d.bias"], groups=conv.shape[0])).transpose(1, 2)
    A = -w[f"{at}A_log"].exp()
    rank = w[f"{at}dt_proj.weight"].shape[1]
    low, B, C = F.linear(x, w[f"{at}x_proj.weight"]).split([rank, A.shape[1], A.shape[1]], -1)
    delta = F.softplus(F.linear(low, w[f"{at}dt_proj.weight"], w[f"{at}dt_proj.bias"]))
    state, out = torch.zeros_like(A).expand(h.shape[0], *A.shape), []
    for t in range(length):
        state = state * (delta[:, t, :, None] * A).exp() + (delta[:, t] * x[:, t])[..., None] * B[:, t, None, :]
        out.append((state * C[:, t, None, :]).sum(-1) + w[f"{at}D"] * x[:, t])
    return F.linear(torch.stack(out, 1) * F.silu(z), w[f"{at}out_proj.weight"])


def both_ways(h: Tensor, w: Weights, at: str, strategy: str = "add") -> Tensor:
    forward, reverse = mamba(h, w, f"{at}mamba_fwd."), mamba(h.flip(1), w, f"{at}mamba_rev.").flip(1)
    return forward + reverse if strategy == "add" else forward * reverse


def count(w: Weights, at: str) -> int:
    return 1 + max(int(key.removeprefix(f"{at}layers.").split(".")[0]) for key in w if key.startswith(f"{at}layers."))


def mixer_model(ids: Tensor, w: Weights, at: str = "model.") -> Tensor:
    """Hidden states of the one-directional language model's backbone."""
    x, residual = w[f"{at}embedding.weight"][ids], None
    for i in range(count(w, at)):
        residual = x if residual is None else residual + x
        x = mamba(rms_norm(residual, w[f"{at}layers.{i}.norm.weight"]), w, f"{at}layers.{i}.mixer.")
    return rms_norm(residual + x, w[f"{at}norm_f.weight"])


def reverse_complement(x: Tensor) -> Tensor:
    return x.flip(1, 2)


def equivariant(ids: Tensor, w: Weights, complements: Tensor, *, fused: bool) -> tuple[Tensor, Tensor]:
    """Hidden states (batch, L, 2 d) and logits of the equivariant Caduceus, with its fused add and norm or without."""
    at, inner = "caduceus.backbone.", "" if fused else "submodule."
    table = w[f"{at}embeddings.word_embeddings.embedding.weight"]
    x = torch.cat([table[ids], reverse_complement(table[complements[ids.flip(1)]])], -1)
    d, residual = table.shape[1], None

    for i in range(count(w, at)):
        residual = x if residual is None else residual + x
        norm = w[f"{at}layers.{i}.norm.{inner}weight"]
        if (
            fused
        ):  # the first half of what comes out is made of the second half of what goes in, and the other way round
            one, two = residual[..., d:], residual[..., :d]
            residual = torch.cat([one, two], -1)
        else:
            one, two = residual[..., :d], residual[..., d:]
        one, two = rms_norm(one, norm), reverse_complement(rms_norm(reverse_complement(two), norm))
        layer = f"{at}layers.{i}.mixer.submodule."
        x = torch.cat([both_ways(one, w, layer), reverse_complement(both_ways(reverse_complement(two), w, layer))], -1)
    norm = w[f"{at}norm_f.{inner}weight"]
    one, two = (residual + x).split(d, -1)
    hidden = torch.cat([rms_norm(one, norm), reverse_complement(rms_norm(reverse_complement(two), norm))], -1)
    head = w["lm_head.lm_head.weight"]
    logits = F.linear(hidden[..., :d], head) + F.linear(hidden[..., d:].flip(-1), head[complements])
    return hidden, logits
