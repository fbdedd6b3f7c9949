"""Settings of the Seq2Exp model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(ge=1)]


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, as "field: reason"."""
    first = error.errors()[0]
    field, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{field}: {reason}" if field else reason


class WindowFields(BaseModel):
    """Fields that every model of the package has. Lengths are in bases."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    length: Size = 200_000
    center: Size = 2_000
    tracks: Size = 3
    gene_features: int = Field(default=9, ge=0)

    @model_validator(mode="after")
    def _center_fits(self) -> Self:
        if self.center > self.length:
            raise ValueError(f"center is {self.center}, longer than length ({self.length})")
        return self

    def replace(self, **fields: Any) -> Self:
        """A copy with other values, checked. Raises pydantic's ValidationError for an unknown field or a bad value."""
        return type(self).model_validate(self.model_dump() | fields)


class BackboneFields(WindowFields):
    """Fields of every model with a Caduceus backbone."""

    d_model: Size = 128
    d_state: int = Field(default=16, ge=1, le=256)
    d_conv: Size = 4
    expand: Size = 2
    recompute: Literal["none", "layer"] = "none"
    residual_dtype: Literal["fp32", "bf16"] = "bf16"


class CaduceusConfig(BaseModel):
    """Settings of `Caduceus`, by the names of its arguments; layers: its n_layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: Size
    d_model: Size
    layers: Size
    rc_equivariant: bool = False
    complement_map: tuple[int, ...] | None = None
    d_state: int = Field(default=16, ge=1, le=256)
    d_conv: Size = 4
    expand: Size = 2
    tied: bool = True
    strategy: Literal["add", "ew_multiply"] = "add"
    recompute: Literal["none", "layer"] = "none"


class _Presets(type(BackboneFields)):  # type: ignore[misc]
    """The four presets of `Seq2ExpConfig`. On the metaclass because `hard` and `top_fraction` are fields of its
    instances: `Seq2ExpConfig.hard(...)` makes a configuration, `config.hard` is a bool."""

    def soft(cls, **fields: Any) -> Any:
        """The paper's soft mask: the mask is the Beta sample (mean in evaluation), the predictor is dense."""
        return cls(**fields)

    def hard(cls, **fields: Any) -> Any:
        """The paper's hard mask: threshold 0.5, packed predictor, one shared backbone, learned position embedding."""
        published: dict[str, Any] = dict(
            hard=True, packed=True, share_backbone=True, position_embedding=True, generator_input="sequence+signals",
            signal_scale=1.0, beta_min=0.0, prior_mean=0.45, prior_scale=0.1,
        )  # fmt: skip
        return cls(**published | fields)

    def top_fraction(cls, fraction: float = 0.10, **fields: Any) -> Any:
        """The paper's top-k mask: the soft model, its `fraction` largest means set to 1, a dense predictor."""
        return cls(**dict(top_fraction=fraction, hard=True) | fields)

    def discovery(cls, **fields: Any) -> Any:
        """Our settings, under which the mask learns which elements are causal (bench/results/simulated.md)."""
        ours: dict[str, Any] = dict(
            mask_placement="every_layer",
            signal_scale=3.0,
            beta_min=0.0,
            prior_mean=0.1,
            prior_scale=1.0,
        )
        return cls(**ours | fields)


class Seq2ExpConfig(BackboneFields, metaclass=_Presets):
    """All settings of `Seq2Exp`. Make one with `.soft`, `.hard`, `.top_fraction` (the paper's) or `.discovery` (ours).

    length, center: window and centre, in bases. tracks: signals per base. gene_features: numbers per gene beside them.
    generator_layers, predictor_layers, d_model, d_state, d_conv, expand: the two Caduceus backbones.
    generator_input: what the generator reads, the sequence embedding or the sum with the signal embedding.
    share_backbone: generator and predictor are one backbone. position_embedding: a learned (length, d_model) is added.
    rc_equivariant: the reverse complement of a window (its tracks and regions reversed along) gets the same expression
        and the reversed mask; in training, whose mask is drawn, so are their distributions. Both backbones run on both
        strands with the same weights (Caduceus-PS). Needs length - center even.
    mask_placement: the mask multiplies the predictor's input, or also the normalised input of every layer.
    packed: the predictor processes the selected bases only (needs a binary mask).
    task_gradient: with a binary mask the prediction loss reaches the mask straight-through; False is as published.
    keep_threshold: with a soft mask, the predictor leaves out the bases whose mask is below it, and is packed as with a
        binary mask; at 0 nothing is left out.
    capacity: with a packed predictor, for how many selected bases there is room, as a share of those of the batch. The
        shapes are then fixed, and nothing waits for the device to count them: for CUDA graphs and torch.compile. None:
        as many as there are.
    select_bias: initial bias of the select logit.
    recompute: "layer" keeps only the residual stream for the backward, and not the chunk states of the scans.
    residual_dtype: of the residual stream under bfloat16 autocast, where "bf16", as published, halves most of what is
        kept for the backward. Without autocast it has the dtype of the weights.
    signal_weights, signal_betas, beta_min, signal_scale, z_scale, prior_mean, prior_scale, hard, threshold,
    top_fraction, smooth, rule: as in `seq2exp.kernels.beta_mask`.
    """

    generator_layers: Size = 4
    predictor_layers: Size = 4
    generator_input: Literal["sequence", "sequence+signals"] = "sequence"
    share_backbone: bool = False
    position_embedding: bool = False
    rc_equivariant: bool = False
    mask_placement: Literal["input", "every_layer"] = "input"
    packed: bool = False
    task_gradient: bool = True
    keep_threshold: Fraction = 0.0
    capacity: Annotated[float, Field(gt=0, le=1)] | None = None
    select_bias: float = 0.0

    signal_weights: tuple[float, ...] = (0.4, 0.4, 0.2)
    signal_betas: tuple[float, ...] = (1.5, 0.2, 1.0)
    beta_min: float = Field(default=1.0, ge=0)
    signal_scale: Positive = 10.0
    z_scale: Positive = 1.0
    prior_mean: Annotated[float, Field(gt=0, lt=1)] = 0.1
    prior_scale: Positive = 10.0
    hard: bool = False
    threshold: Fraction = 0.5
    top_fraction: Fraction | None = None
    smooth: Size = 1
    rule: Literal["sum", "product"] = "sum"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("signal_weights", "signal_betas"):
            given = getattr(self, name)
            if len(given) != self.tracks:
                raise ValueError(
                    f"{name} has {len(given)} numbers, tracks is {self.tracks}: give one per track, contacts last"
                )
        if self.rc_equivariant and (self.length - self.center) % 2:
            raise ValueError(
                f"rc_equivariant needs length - center to be even, got {self.length} - {self.center}: otherwise the "
                "centre of the reversed window is another one"
            )
        if self.smooth % 2 == 0:
            raise ValueError(f"smooth is {self.smooth}: a width around each base, it must be odd")
        if self.smooth > 1 and not (self.hard or self.top_fraction is not None):
            raise ValueError("smooth widens what is selected: it needs hard=True or top_fraction")
        if self.packed and not self.hard:
            raise ValueError("packed needs hard=True: only a binary mask selects bases (a soft one: keep_threshold)")
        if self.keep_threshold and self.hard:
            raise ValueError("keep_threshold is for a soft mask; of a binary one packed=True leaves out the zeros")
        if self.capacity is not None and not self.packs:
            raise ValueError("capacity needs a packed predictor: packed=True, or keep_threshold with a soft mask")
        if self.share_backbone and self.generator_layers != self.predictor_layers:
            raise ValueError(
                f"share_backbone needs as many generator_layers ({self.generator_layers}) as predictor_layers "
                f"({self.predictor_layers})"
            )
        return self

    @property
    def packs(self) -> bool:
        """Whether the predictor processes selected bases only."""
        return self.packed or self.keep_threshold > 0
