"""The run list: every row with every seed on one store, with the paper's settings and what was given over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from seq2exp.errors import UserError
from seq2exp.registry import MODELS, entry
from seq2exp.runlist import slug
from seq2exp.training import TrainConfig
from seq2exp.training.config import defining, model_config, sentence, unknown_field

from .rows import ROWS, SEEDS, Row

Settings = dict[str, Any]
OF_THE_ROW = ("name", "preset", "source", "frozen")  # model fields that make a row what it is
SECTIONS = ("data", "model", "optimizer", "schedule", "kl")
REPORTING = ("log_every", "evaluate_every", "checkpoint_every")


@dataclass(frozen=True)
class TableRun:
    """One training: a row with a seed. training: of `TrainConfig`, without store, seed and model.source."""

    row: str
    cell_type: str
    seed: int
    store: str
    training: Settings

    @property
    def title(self) -> str:
        return f"{self.row}, {self.cell_type}, seed {self.seed}"

    @property
    def folder(self) -> str:
        return run_folder(self.row, self.seed)

    @property
    def source(self) -> str | None:
        """Folder of the run whose model is frozen in this one."""
        source = ROWS[self.row].source
        return None if source is None else run_folder(source, self.seed)

    def identity(self) -> dict[str, Any]:
        return asdict(self) | {"training": defining(self.training)}

    def config(self, out: Path) -> TrainConfig:
        """Of a run in that folder, whose source is done. Raises UserError."""
        fields = with_store(self.training, self.store) | {"seed": self.seed}
        if self.source is not None:
            fields["model"] = fields["model"] | {"source": str(out / self.source)}
        return _checked(fields)


def run_folder(row: str, seed: int) -> str:
    return f"runs/{slug(row)}_{seed}"


def run_list(
    store: Path, cell_type: str, given: Mapping[str, Any] | None = None, asked: Sequence[str] = tuple(ROWS)
) -> list[TableRun]:
    """The runs of all tables, whichever of them is asked for: tables share rows. Rows that the settings do not fit are
    left out.

    given: fields and sections of a training file that replace the paper's; of `model` each field where a row has it.

    Raises:
        UserError: an unknown field, or a value that does not fit a row that is asked for.
    """
    given = dict(given or {})
    _check_names(given)
    runs = []
    for name, row in ROWS.items():
        try:
            training = training_of(row, given)
        except UserError as error:
            if name in asked:
                raise UserError(f"settings of {name}: {error}") from None
            continue
        runs += [TableRun(name, cell_type, seed, str(store.absolute()), training) for seed in SEEDS]
    return runs


def training_of(row: Row, given: Mapping[str, Any]) -> Settings:
    """The settings of a row's runs. Where the steps are others than the paper's, the warm-up takes the same share."""
    name = row.model.get("name", "seq2exp")
    paper = checked_without_source(dict(row.model), {})
    schedule: Settings = {}
    if "steps" in given:
        share = paper.warmup_steps / paper.steps
        schedule = {"schedule": paper.schedule.model_dump(exclude_unset=True) | {"warmup_fraction": share}}
    own = entry(name).config.model_fields
    model = dict(row.model) | {field: value for field, value in given.get("model", {}).items() if field in own}
    fields = _over(schedule, {section: value for section, value in given.items() if section != "model"})
    training = checked_without_source(model, fields).model_dump(mode="json")
    del training["seed"], training["data"]["store"]
    return training | {"model": model}


def checked_without_source(model: Settings, fields: Settings) -> TrainConfig:
    """The settings, checked as if the frozen model of a retrained one were there, with the same windows and sizes."""
    if model.get("name") == "retrain":
        known = MODELS["seq2exp"].config.model_fields
        model = model | {"frozen": {name: value for name, value in model.items() if name in known and name != "packed"}}
    return _checked(with_store(fields, "store") | {"model": model})


def with_store(training: Mapping[str, Any], store: str) -> Settings:
    return dict(training) | {"data": dict(training.get("data", {})) | {"store": store}}


def changed_settings(row: str, training: Settings) -> list[str]:
    """A line for each setting of a row that is not the paper's and that its result depends on."""
    paper, ours = effective(training_of(ROWS[row], {})), effective(training)
    return [f"{name} is {ours[name]}, in the paper {paper[name]}" for name in ours if ours[name] != paper[name]]


def effective(training: Settings) -> dict[str, Any]:
    """All settings that a result depends on, section.field -> value, defaults filled in; the warm-up as a share of the
    steps."""
    fields = {name: value for name, value in training.items() if name != "model"}
    config = checked_without_source(training["model"], fields)
    model = model_config(config.model).model_dump()
    model.pop("frozen", None)
    settings = defining(config.model_dump(mode="json") | {"model": model})
    del settings["data"]["store"], settings["seed"], settings["schedule"]["warmup_steps"]
    if settings["schedule"]["warmup_fraction"] is None:
        settings["schedule"]["warmup_fraction"] = config.warmup_steps / config.steps
    flat = {f"{s}.{name}": value for s in SECTIONS for name, value in settings[s].items()}
    return flat | {name: value for name, value in settings.items() if name not in (*SECTIONS, *REPORTING)}


def read_settings(path: Path | None, steps: int | None) -> Settings:
    """What is given over the paper's settings. Raises UserError when the file is none."""
    fields: Any = {}
    if path is not None:
        try:
            fields = yaml.safe_load(path.read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{path}: expected fields such as 'data:' and 'model:', found {type(fields).__name__}")
    return fields if steps is None else fields | {"steps": steps}


def chosen(names: str | None, table_rows: Sequence[str]) -> tuple[str, ...]:
    """The rows of a comma-separated list, written in any case and punctuation; those of the table without one."""
    if names is None:
        return tuple(table_rows)
    known = {slug(row): row for row in ROWS}
    for name in names.split(","):
        if slug(name) not in known:
            raise UserError(f"row {name.strip()!r} is unknown: one of {', '.join(ROWS)}")
    return tuple(dict.fromkeys(known[slug(name)] for name in names.split(",")))


def chosen_seeds(text: str | None) -> tuple[int, ...]:
    """The seeds of a comma-separated list; the paper's without one."""
    if text is None:
        return SEEDS
    known = {str(seed): seed for seed in SEEDS}
    for name in text.split(","):
        if name.strip() not in known:
            raise UserError(f"seed {name.strip()!r} is none of the paper's: {', '.join(known)}")
    return tuple(dict.fromkeys(known[name.strip()] for name in text.split(",")))


def _check_names(given: Settings) -> None:
    sections = [name for name in TrainConfig.model_fields if name != "seed"]
    for name, value in given.items():
        if name not in sections:
            raise UserError(f"settings: {name}: {unknown_field(name, sections)}")
        if name in SECTIONS and not isinstance(value, dict):
            raise UserError(f"settings: {name}: expected fields, found {value!r}")
    if "store" in given.get("data", {}):
        raise UserError("settings: data.store: the store is given by --store")
    fields = {field for row in ROWS.values() for field in entry(row.model.get("name", "seq2exp")).config.model_fields}
    for name in given.get("model", {}):
        if name in OF_THE_ROW:
            raise UserError(f"settings: model.{name} makes a row what it is: choose rows with --rows")
        if name not in fields:
            raise UserError(f"settings: model.{name}: {unknown_field(name, sorted(fields - set(OF_THE_ROW)))}")


def _over(below: Settings, above: Settings) -> Settings:
    """`above`, and of `below` what is not in it, section by section."""
    both = {name: below[name] | above[name] for name in below.keys() & above.keys() if isinstance(below[name], dict)}
    return below | above | both


def _checked(fields: Settings) -> TrainConfig:
    try:
        return TrainConfig.model_validate(fields)
    except ValidationError as error:
        raise UserError(sentence(error, TrainConfig)) from None
