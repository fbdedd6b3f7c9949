"""The Caduceus backbone (Schiff et al. 2024): residual add, RMSNorm, bidirectional Mamba; and its language model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seq2exp.config import CaduceusConfig
from seq2exp.errors import UserError
from seq2exp.kernels import ScanWeights, add_norm, bimamba, bimamba_block
from seq2exp.kernels.selective_scan.ops import check_offsets
from seq2exp.pretrained import Pretrained

NORM_EPSILON = 1e-5
SHARING = "rc_equivariant_sharing"  # a buffer that state dicts of equivariant backbones have and others lack


class ScanDirection(nn.Module):
    """The weights of one direction of a mixer, initialised as in Mamba."""

    def __init__(self, d_inner: int, dt_rank: int, d_state: int, d_conv: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(d_conv)
        self.conv_weight = nn.Parameter(torch.empty(d_inner, 1, d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(d_inner).uniform_(-bound, bound))
        self.x_proj = nn.Parameter(linear_init(dt_rank + 2 * d_state, d_inner))
        self.dt_proj = nn.Parameter(torch.empty(d_inner, dt_rank).uniform_(-(dt_rank**-0.5), dt_rank**-0.5))
        dt = torch.exp(torch.rand(d_inner) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp_min(1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float()).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))

    def weights(self) -> ScanWeights:
        return ScanWeights(*(getattr(self, name) for name in ScanWeights._fields))


class BimambaMixer(nn.Module):
    """A bidirectional Mamba: (batch, L, d_model) -> the same.

    complement: h is the complementary strand in genome orientation. Its 5' end is the last base, so the weights of the
    two directions change places: what flipping along L, mixing and flipping back would give, without the flips.
    """

    def __init__(
        self, d_model: int, d_state: int, d_conv: int, expand: int, *, tied: bool = True, strategy: str = "add",
        out_scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        d_inner, dt_rank = expand * d_model, math.ceil(d_model / 16)
        self.strategy = strategy
        self.in_proj = nn.Parameter(linear_init(2 * d_inner, d_model))
        self.out_proj = nn.Parameter(linear_init(d_model, d_inner) * out_scale)
        self.rev_in_proj = None if tied else nn.Parameter(linear_init(2 * d_inner, d_model))
        self.rev_out_proj = None if tied else nn.Parameter(linear_init(d_model, d_inner) * out_scale)
        self.fwd = ScanDirection(d_inner, dt_rank, d_state, d_conv)
        self.rev = ScanDirection(d_inner, dt_rank, d_state, d_conv)

    def forward(self, h: Tensor, cu_seqlens: Tensor | None = None, *, complement: bool = False) -> Tensor:
        weights, options = self.weights(complement)
        return bimamba(h, *weights, **options, cu_seqlens=cu_seqlens)

    def weights(self, complement: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What `bimamba` takes besides h: positional and by name."""
        tied = self.rev_in_proj is None
        projections = [(self.in_proj, self.out_proj), (self.rev_in_proj, self.rev_out_proj)]
        directions = [self.fwd.weights(), self.rev.weights()]
        if complement:
            directions.reverse()
            if not tied:
                projections.reverse()
        options = {"rev_proj": None if tied else projections[1], "strategy": self.strategy}
        return (*projections[0], *directions), options


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, of residual + x where there is a residual."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return add_norm(x, residual, self.weight, epsilon=NORM_EPSILON)[0]


class BackboneLayer(nn.Module):
    """Residual add, norm, gate and mixer, on one strand: one op, which saves the residual stream and chunk states."""

    def __init__(self, d_model: int, d_state: int, d_conv: int, expand: int, **mixer: Any) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.mixer = BimambaMixer(d_model, d_state, d_conv, expand, **mixer)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, gate: Tensor | None = None, cu_seqlens: Tensor | None = None,
        complement: bool = False, recompute: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Output (batch, L, d_model), not yet added, and residual stream, both for the next layer.

        x: the output of the layer before, or the backbone's input with residual None. gate: (batch, L).
        """
        weights, options = self.mixer.weights(complement)
        return bimamba_block(
            x, residual, self.norm.weight, *weights, **options, gate=gate, epsilon=NORM_EPSILON, cu_seqlens=cu_seqlens,
            recompute=recompute,
        )  # fmt: skip


class CaduceusBackbone(nn.Module):
    """Embedded bases (batch, L, d_model) -> hidden states (batch, L, d_model).

    gate: (batch, L), multiplies the normalised input of every mixer. cu_seqlens: offsets of packed sequences, batch 1.
    recompute: "layer" keeps only the residual stream: the backward of each layer scans forward once more.
    rc_equivariant: both strands go in and come out, (2, batch, L, d_model), the bases and their complements, both in
        genome orientation; they share all weights and the gate (Caduceus-PS). Strands exchanged and reversed along L
        give the output exchanged and reversed. `published_layout` gives the published (batch, L, 2 d_model). No half
        of the channels is flipped in here, so d_model may be odd.

    Raises
    ------
    ValueError: x without its strands. UserError: a state dict of the other sharing.
    """

    def __init__(
        self, d_model: int, n_layers: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2, tied: bool = True,
        strategy: str = "add", recompute: str = "none", rc_equivariant: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        out_scale = 1 / math.sqrt(n_layers)  # GPT-2's rescaling of what adds to the residual stream
        self.layers = nn.ModuleList(
            BackboneLayer(d_model, d_state, d_conv, expand, tied=tied, strategy=strategy, out_scale=out_scale)
            for _ in range(n_layers)
        )
        self.norm = RMSNorm(d_model)
        self.recompute = recompute
        self.rc_equivariant = rc_equivariant
        if rc_equivariant:
            self.register_buffer(SHARING, torch.tensor(True))

    def forward(self, x: Tensor, *, gate: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        if not torch.compiler.is_compiling():  # inside compiled code the values are not known
            check_offsets("CaduceusBackbone", cu_seqlens, x.shape[-2])
        if not self.rc_equivariant:
            return self.normalised(*self.stream(x, gate=gate, cu_seqlens=cu_seqlens))
        if x.dim() != 4 or x.shape[0] != 2:
            raise ValueError(
                f"CaduceusBackbone: with rc_equivariant=True x must be both strands, (2, batch, L, d_model), "
                f"got {tuple(x.shape)}"
            )
        strands = zip(x.unbind(0), (False, True), strict=True)
        return torch.stack(
            [
                self.normalised(*self.stream(strand, gate=gate, cu_seqlens=cu_seqlens, complement=complement))
                for strand, complement in strands
            ]
        )

    def stream(
        self, x: Tensor, *, gate: Tensor | None = None, cu_seqlens: Tensor | None = None, complement: bool = False
    ) -> tuple[Tensor, Tensor]:
        """One strand, (batch, L, d_model): what the last layer puts out and the residual stream that it has not been
        added to, for `normalised`. The stream has the dtype of x. On a GPU the offsets are not checked."""
        stream: tuple[Tensor, Tensor | None] = (x, None)
        del x  # kept by autograd or not needed
        for layer in self.layers:
            stream = layer(*stream, gate, cu_seqlens, complement, self.recompute == "layer")
        out, residual = stream
        assert residual is not None, "a backbone without layers"
        return out, residual

    def normalised(self, x: Tensor, residual: Tensor) -> Tensor:
        """Hidden states, in the dtype of the stream; of all bases of `stream` or of some."""
        return self.norm(x.to(residual.dtype), residual)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        theirs = prefix + SHARING in state_dict
        if prefix + "norm.weight" in state_dict and theirs != self.rc_equivariant:
            raise UserError(
                f"the state dict is of a model with rc_equivariant={theirs}, this one has rc_equivariant={not theirs}: "
                "the same weights would compute something else"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


def published_layout(strands: Tensor) -> Tensor:
    """Both strands (2, batch, L, d) as Caduceus-PS has them: (batch, L, 2 d), the channels of the second reversed."""
    return torch.cat([strands[0], strands[1].flip(-1)], -1)


class CaduceusOutput(NamedTuple):
    """hidden: (batch, L, d_model), with rc_equivariant (batch, L, 2 d_model). logits: (batch, L, vocabulary)."""

    hidden: Tensor
    logits: Tensor


class Caduceus(Pretrained, nn.Module):
    """Caduceus masked language model: token ids (batch, L) int64 -> `CaduceusOutput`.

    rc_equivariant: False is the published "Ph", True "PS" (without its fused_add_norm, which exchanges the halves of
        the channels in every block): the reverse complement of the tokens gives the hidden states reversed along bases
        and channels, and the logits reversed along bases with their vocabulary complemented.
    complement_map: with rc_equivariant the complement of every token, token by token or as a mapping.
    backbone: options of `CaduceusBackbone`.

    Raises
    ------
    ValueError: a complement map that is missing, incomplete or no involution.
    """

    config_class = CaduceusConfig
    config: CaduceusConfig
    complement_map: Tensor | None

    def __init__(
        self, vocabulary: int, d_model: int, n_layers: int, *, rc_equivariant: bool = False,
        complement_map: Mapping[int, int] | Sequence[int] | None = None, **backbone: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        complements = _checked_complements(complement_map, vocabulary) if rc_equivariant else None
        self.config = CaduceusConfig(
            vocabulary=vocabulary, d_model=d_model, layers=n_layers, rc_equivariant=rc_equivariant,
            complement_map=None if complements is None else tuple(complements.tolist()), **backbone,
        )  # fmt: skip
        self.embedding = nn.Embedding(vocabulary, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = CaduceusBackbone(d_model, n_layers, rc_equivariant=rc_equivariant, **backbone)
        self.lm_head = nn.Linear(d_model, vocabulary, bias=False)
        self.register_buffer("complement_map", complements, persistent=False)

    @classmethod
    def from_config(cls, config: CaduceusConfig) -> Self:
        """A new model."""
        fields = config.model_dump()
        return cls(fields.pop("vocabulary"), fields.pop("d_model"), fields.pop("layers"), **fields)

    def forward(self, tokens: Tensor) -> CaduceusOutput:
        if self.complement_map is None:
            hidden = self.backbone(self.embedding(tokens))
            return CaduceusOutput(hidden, self.lm_head(hidden))
        strands = self.backbone(self.embedding(torch.stack([tokens, self.complement_map[tokens]])))
        return CaduceusOutput(published_layout(strands), self.strand_logits(strands))

    def strand_logits(self, strands: Tensor) -> Tensor:
        """Logits (batch, L, vocabulary) of both strands (2, batch, L, d_model): their sum, as published."""
        return self.lm_head(strands[0]) + F.linear(strands[1], self.lm_head.weight[self.complement_map])


def _checked_complements(complement_map: Mapping[int, int] | Sequence[int] | None, vocabulary: int) -> Tensor:
    if complement_map is None:
        raise ValueError("Caduceus: rc_equivariant=True needs complement_map, the complement of every token")
    tokens = range(vocabulary)
    known = complement_map.keys() if isinstance(complement_map, Mapping) else range(len(complement_map))
    if set(known) != set(tokens):
        raise ValueError(f"Caduceus: complement_map must map each of the tokens 0..{vocabulary - 1}, and no other")
    complements = [int(complement_map[token]) for token in tokens]
    for token, other in enumerate(complements):
        if not 0 <= other < vocabulary or complements[other] != token:
            raise ValueError(
                f"Caduceus: complement_map is not an involution: {other} is the complement of {token}, "
                f"{complements[other] if 0 <= other < vocabulary else 'nothing'} that of {other}"
            )
    return torch.tensor(complements)


def linear_init(out_features: int, in_features: int) -> Tensor:
    """torch's default for a linear layer."""
    bound = 1 / math.sqrt(in_features)
    return torch.empty(out_features, in_features).uniform_(-bound, bound)
