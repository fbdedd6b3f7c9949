"""Training settings: one YAML file, every field checked, mistakes said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from seq2exp.errors import UserError

PRESETS = ("soft", "hard", "top_fraction", "discovery")
# How a run is computed, not what: these may change between a checkpoint and its continuation.
COMPUTING = ("data.workers", "data.accumulate", "model.recompute", "compile", "parallel")

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """What is read and how: the store, reader processes, share of reverse-complemented windows.

    batch_size: windows per step, over all ranks. accumulate: in how many micro-batches each rank processes its share.
    max_shift: training windows are moved by up to so many bases, anew in every epoch.
    """

    store: Annotated[Path, AfterValidator(Path.absolute)]
    batch_size: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    workers: int = Field(default=0, ge=0, le=64)
    rc_augmentation: Fraction = 0.0
    max_shift: int = Field(default=0, ge=0)


class OptimizerConfig(Section):
    """AdamW and the norm at which gradients are clipped. Defaults: the paper."""

    lr: float = Field(default=5e-4, gt=0, le=1)
    weight_decay: float = Field(default=1e-6, ge=0, le=1)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    clip: float = Field(default=1.0, gt=0)


class ScheduleConfig(Section):
    """Linear warm-up from ``start_lr`` to ``optimizer.lr``, then a cosine down to ``end_lr``. Defaults: the paper."""

    warmup_steps: int = Field(default=5_000, ge=0)
    warmup_fraction: Fraction | None = Field(default=None, description="share of all steps; replaces warmup_steps")
    start_lr: float = Field(default=1e-5, ge=0)
    end_lr: float = Field(default=1e-4, ge=0)


class KLConfig(Section):
    """KL weight: 0 for ``start_fraction`` of the steps, then linear to ``weight`` over ``ramp_fraction`` of them.

    The best model is chosen among the evaluations at full weight.
    """

    weight: float = Field(default=0.01, ge=0)
    start_fraction: Fraction = 0.0
    ramp_fraction: Fraction = 0.0


class PretrainedConfig(Section):
    """A pretrained Caduceus that the backbones of a seq2exp start from.

    path: a folder of ``seq2exp convert``, or a published checkpoint. parts: which backbones. freeze: their layers are
    not trained.
    """

    path: Annotated[Path, AfterValidator(Path.absolute)]
    parts: tuple[Literal["generator", "predictor"], ...] = ("generator", "predictor")
    freeze: bool = False

    @field_validator("parts")
    @classmethod
    def _some(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if not parts:
            raise ValueError("give generator, predictor or both")
        return parts


class TrainConfig(Section):
    """All settings of one training run.

    model: ``name`` (of ``seq2exp.registry``; without one seq2exp, which has a ``preset``) and fields of that model's
        configuration. The name of a baseline brings the paper's batch size and learning rate where none are given.
    pretrained: a Caduceus to start from; without it the backbones start at random.
    start_from: a run or a saved model of the same kind and sizes, whose weights training starts from: for longer
        windows, or another cell type.
    compile: torch.compile for the training step.
    parallel: what several ranks do, "ddp" each hold the whole model, "fsdp" each hold a share of it.
    """

    data: DataConfig
    model: dict[str, Any] = Field(default_factory=lambda: {"preset": "soft"})
    pretrained: PretrainedConfig | None = None
    start_from: Annotated[Path, AfterValidator(Path.absolute)] | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    kl: KLConfig = KLConfig()
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    steps: int = Field(default=50_000, ge=1)
    seed: int = Field(default=2, ge=0, lt=2**31)
    log_every: int = Field(default=50, ge=1)
    evaluate_every: int = Field(default=1_000, ge=1)
    checkpoint_every: int = Field(default=1_000, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_paper(cls, fields: Any) -> Any:
        """The registry's settings for the model, below those that are given."""
        from seq2exp.registry import MODELS

        model = fields.get("model") if isinstance(fields, dict) else None
        named = MODELS.get(str(model.get("name"))) if isinstance(model, dict) else None
        return fields if named is None else _filled(fields, named.training)

    @field_validator("model")
    @classmethod
    def _model_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        if isinstance(fields.get("source"), str):
            fields = fields | {"source": str(Path(fields["source"]).absolute())}
        model_config(fields)
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps}, more than steps ({self.steps}): "
                "lower it or give schedule.warmup_fraction"
            )
        if self.kl.start_fraction + self.kl.ramp_fraction > 1 + 1e-9:
            raise ValueError("kl.start_fraction + kl.ramp_fraction is above 1: the KL weight would never be reached")
        name = self.model.get("name", "seq2exp")
        if self.pretrained and name != "seq2exp":
            raise ValueError(f"pretrained is for seq2exp, model.name is {name}: leave it out")
        if self.pretrained and self.start_from:
            raise ValueError("pretrained and start_from: training starts from one of them, leave the other out")
        model = model_config(self.model)
        if self.data.rc_augmentation and (model.length - model.center) % 2:
            raise ValueError(
                "data.rc_augmentation needs model.length - model.center to be even, "
                f"got {model.length} - {model.center}"
            )
        return self

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        if self.schedule.warmup_fraction is None:
            return self.schedule.warmup_steps
        return round(self.schedule.warmup_fraction * self.steps)


def model_config(fields: dict[str, Any], **from_store: Any) -> Any:
    """The configuration that a ``model:`` section describes, of the class that its name has in ``seq2exp.registry``.

    Args:
        fields: the section: ``name``, for seq2exp ``preset``, and any field of that configuration.
        from_store: fields that follow from what the store holds; used where the section does not say.

    Raises:
        UserError: an unknown name or preset, an unknown field or a value out of range.
    """
    from seq2exp.registry import entry

    fields = dict(fields)
    name, preset = fields.pop("name", "seq2exp"), fields.pop("preset", None)
    kind, _, own, _ = entry(name)
    if preset is not None and name != "seq2exp":
        raise UserError(f"preset is of seq2exp, {name} has none: leave it out")
    if preset not in (None, *PRESETS):
        raise UserError(f"preset {preset!r} is unknown: one of {', '.join(PRESETS)}")
    if isinstance(weights := fields.get("signal_weights"), list | tuple):
        from_store = {"tracks": len(weights)} | from_store  # the store may not be open yet
    for field in fields:
        if field not in kind.model_fields:
            raise UserError(f"{field}: {unknown_field(field, list(kind.model_fields))}")
    fields = {name: value for name, value in from_store.items() if name in kind.model_fields} | dict(own) | fields
    try:
        return kind.model_validate(fields) if preset is None else getattr(kind, preset)(**fields)
    except ValidationError as error:
        raise UserError(sentence(error, kind)) from error


def load_config(path: str | Path, **overrides: Any) -> TrainConfig:
    """Read and check a YAML file.

    Args:
        path: the file; ``data.store`` in it is relative to the working directory.
        overrides: top-level fields that replace those of the file.

    Raises:
        UserError: no such file, not YAML, a field unknown or out of range; the sentence names file and field.
    """
    path = Path(path)
    try:
        fields = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected fields such as 'data:' and 'model:', found {type(fields).__name__}")
    try:
        return TrainConfig.model_validate(fields | overrides)
    except ValidationError as error:
        raise UserError(f"{path}: {sentence(error, TrainConfig)}") from None


def defining(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that the result of a run depends on: all but those of ``COMPUTING``."""
    kept = {name: dict(value) if isinstance(value, dict) else value for name, value in settings.items()}
    for name in COMPUTING:
        section, _, field = name.rpartition(".")
        (kept[section] if section else kept).pop(field, None)
    return kept


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the settings as YAML. Paths in it are absolute."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def sentence(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first problem of a pydantic error as ``field: what is wrong``."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: {unknown_field(str(first['loc'][-1]), _siblings(model, first['loc']))}"
    if first["type"] == "missing":
        return f"{where}: this field is required"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}.{message}" if where == "model" else message if not where else f"{where}: {message}"
    return f"{where}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def _filled(given: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, and of ``defaults`` what is not in it, section by section."""
    filled = dict(given)
    for name, value in defaults.items():
        there = given.get(name)
        if isinstance(value, Mapping) and isinstance(there, Section):
            there = there.model_dump(exclude_unset=True)
        if isinstance(value, Mapping) and isinstance(there, dict):
            filled[name] = {**value, **there}
        elif name not in given:
            filled[name] = value
    return filled


def unknown_field(name: str, known: list[str]) -> str:
    """``unknown field`` with the nearest known names, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown field, did you mean {near[0]}?" if near else f"unknown field, the fields are {', '.join(known)}"


def _siblings(model: type[BaseModel] | None, loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields beside the one at ``loc``."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part)) if model else None
        kinds = (get_args(field.annotation) or (field.annotation,)) if field else ()  # of a section that may be absent
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return list(model.model_fields) if model else []
