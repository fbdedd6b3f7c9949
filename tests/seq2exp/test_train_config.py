from __future__ import annotations

import copy
from typing import Any

import pytest

from seq2exp import Seq2ExpConfig
from seq2exp.errors import UserError
from seq2exp.seeds import derive_seed
from seq2exp.training.config import TrainConfig, load_config, model_config, save_config
from seq2exp.training.schedule import kl_weight, learning_rate


def test_defaults_are_those_of_the_paper():
    config = TrainConfig.model_validate({"data": {"store": "s.zarr"}})
    assert (config.steps, config.data.batch_size, config.precision) == (50_000, 8, "bf16")
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.betas) == (5e-4, 1e-6, (0.9, 0.95))
    assert [learning_rate(config, step) for step in (0, 2_500, 5_000)] == pytest.approx([1e-5, 2.55e-4, 5e-4])
    assert learning_rate(config, 27_500) == pytest.approx(3e-4)  # half of the cosine
    assert learning_rate(config, 50_000) == pytest.approx(1e-4)
    assert {kl_weight(config, step) for step in (0, 49_999)} == {0.01}


def test_kl_weight_waits_and_then_grows_linearly():
    kl = {"weight": 0.02, "start_fraction": 0.4, "ramp_fraction": 0.2}
    config = TrainConfig.model_validate(
        {"data": {"store": "s"}, "steps": 100, "schedule": {"warmup_fraction": 0.1}, "kl": kl}
    )
    assert [kl_weight(config, step) for step in (0, 39, 40, 50, 60, 99)] == pytest.approx([0, 0, 0, 0.01, 0.02, 0.02])


def test_model_section_becomes_the_configuration():
    got = model_config({"preset": "soft", "length": 1_000, "center": 100}, tracks=3, gene_features=0)
    assert got == Seq2ExpConfig.soft(length=1_000, center=100, tracks=3, gene_features=0)
    top = model_config({"preset": "top_fraction", "top_fraction": 0.2})
    assert top == Seq2ExpConfig.top_fraction(0.2)
    assert model_config({"name": "caduceus"}).interact != model_config({"name": "caduceus_signals"}).interact


def test_what_the_store_holds_gives_way_to_what_is_written():
    assert model_config({"preset": "soft", "gene_features": 4}, gene_features=9).gene_features == 4


def test_written_settings_are_read_back(settings, tmp_path):
    config = TrainConfig.model_validate(settings)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


WRONG = [
    ({"stepz": 3}, "stepz: unknown field, did you mean steps?"),
    ({"data": {"stor": "x"}}, "data.store: this field is required"),
    ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate: unknown field, the fields are lr, weight_decay"),
    ({"optimizer": {"lr": -1}}, "optimizer.lr: input should be greater than 0, got -1"),
    ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas.1: input should be less than 1"),
    ({"optimizer": {"clip": float("nan")}}, "optimizer.clip: input should be"),
    ({"steps": "many"}, "steps: input should be a valid integer"),
    ({"parallel": "tensor"}, "parallel: input should be 'ddp' or 'fsdp', got 'tensor'"),
    ({"data": {"store": "x", "accumulate": 0}}, "data.accumulate: input should be greater than or equal to 1, got 0"),
    ({"precision": "fp8"}, "precision: input should be 'fp32' or 'bf16', got 'fp8'"),
    ({"data": {"store": "x", "rc_augmentation": 1.5}}, "data.rc_augmentation: input should be less than or equal to 1"),
    ({"model": {"preset": "mushy"}}, "model.preset 'mushy' is unknown: one of soft, hard, top_fraction, discovery"),
    ({"model": {"preset": "soft", "name": "caduceus"}}, "model.preset is of seq2exp, caduceus has none"),
    ({"model": {"d_modell": 8}}, "model.d_modell: unknown field, did you mean d_model?"),
    ({"model": {"d_model": -8}}, "model.d_model: "),
    ({"model": 7}, "model: input should be a valid dictionary"),
    ({"schedule": {"warmup_steps": 7}}, "schedule.warmup_steps is 7, more than steps (6)"),
    ({"kl": {"start_fraction": 0.6, "ramp_fraction": 0.6}}, "kl.start_fraction + kl.ramp_fraction is above 1"),
    ({"model": {"length": 127, "center": 16}}, "model.length - model.center to be even, got 127 - 16"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said for _, said in WRONG])
def test_one_sentence_names_file_and_field(settings, write_yaml, change: dict[str, Any], said: str):
    path = write_yaml(copy.deepcopy(settings) | change)
    with pytest.raises(UserError) as error:
        load_config(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and said in message and "\n" not in message


@pytest.mark.parametrize(("text", "said"), [("a: [", "not a YAML file"), ("", "expected fields"), ("- 1", "expected")])
def test_not_settings_at_all(tmp_path, text, said):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_config(path)
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "absent.yaml")


def test_seeds_differ_by_purpose_and_step():
    seeds = {derive_seed(seed, purpose, step) for seed in (1, 2) for purpose in "ab" for step in range(50)}
    assert len(seeds) == 200 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(2, "mask", 5) == derive_seed(2, "mask", 5)
