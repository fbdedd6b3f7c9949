"""The settings: the presets hold the published numbers, and what cannot be is refused in words."""

import pickle

import pytest
from pydantic import ValidationError

from seq2exp import Seq2ExpConfig
from seq2exp.baselines import GeneExpBiMambaConfig

PUBLISHED = {
    "length": 200_000, "center": 2_000, "tracks": 3, "gene_features": 9, "d_model": 128, "d_state": 16, "d_conv": 4,
    "expand": 2, "generator_layers": 4, "predictor_layers": 4, "signal_weights": (0.4, 0.4, 0.2),
    "signal_betas": (1.5, 0.2, 1.0), "z_scale": 1.0, "threshold": 0.5, "rule": "sum", "mask_placement": "input",
    "select_bias": 0.0,
}  # fmt: skip
SOFT = PUBLISHED | {
    "signal_scale": 10.0, "beta_min": 1.0, "prior_mean": 0.1, "prior_scale": 10.0, "generator_input": "sequence",
    "share_backbone": False, "position_embedding": False, "hard": False, "packed": False, "top_fraction": None,
}  # fmt: skip
PRESETS = {
    "soft": SOFT,
    "hard": PUBLISHED | {
        "signal_scale": 1.0, "beta_min": 0.0, "prior_mean": 0.45, "prior_scale": 0.1,
        "generator_input": "sequence+signals", "share_backbone": True, "position_embedding": True, "hard": True,
        "packed": True, "top_fraction": None, "task_gradient": True,
    },
    "top_fraction": SOFT | {"top_fraction": 0.1, "hard": True},
    "discovery": SOFT | {
        "mask_placement": "every_layer", "signal_scale": 3.0, "beta_min": 0.0, "prior_mean": 0.1, "prior_scale": 1.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    config = getattr(Seq2ExpConfig, name)()
    assert {field: getattr(config, field) for field in PRESETS[name]} == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_any_field_of_a_preset_can_be_overridden(name):
    config = getattr(Seq2ExpConfig, name)(length=64, center=8, signal_scale=2.5)
    assert (config.length, config.center, config.signal_scale) == (64, 8, 2.5)
    assert config.prior_mean == PRESETS[name]["prior_mean"]


def test_hard_and_top_fraction_are_constructors_of_the_class_and_values_of_its_instances():
    assert Seq2ExpConfig.hard(d_model=8).hard is True
    assert Seq2ExpConfig.soft().hard is False
    assert Seq2ExpConfig.top_fraction(0.25).top_fraction == 0.25
    assert Seq2ExpConfig.top_fraction(0.25, hard=False).hard is False


def test_replace_checks_and_leaves_the_original():
    config = Seq2ExpConfig.hard(length=64, center=8)
    other = config.replace(center=4, d_model=16)
    assert (other.center, other.d_model, other.packed) == (4, 16, True)
    assert (config.center, config.d_model) == (8, 128)
    with pytest.raises(ValidationError, match="center is 65, longer than length"):
        config.replace(center=65)
    with pytest.raises(ValidationError, match="d_modle"):
        config.replace(d_modle=16)
    with pytest.raises(ValidationError, match="frozen"):
        config.center = 4


def test_survives_json_and_pickle():
    config = Seq2ExpConfig.hard(length=64, center=8)
    assert Seq2ExpConfig.model_validate_json(config.model_dump_json()) == config
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"n_layers": 2}, "n_layers"),
        ({"length": 0}, "length"),
        ({"length": 100}, "center is 2000, longer than length"),
        ({"d_state": 257}, "d_state"),
        ({"gene_features": -1}, "gene_features"),
        ({"prior_mean": 1.0}, "prior_mean"),
        ({"prior_scale": 0}, "prior_scale"),
        ({"signal_scale": float("inf")}, "signal_scale"),
        ({"beta_min": -0.1}, "beta_min"),
        ({"threshold": 1.5}, "threshold"),
        ({"top_fraction": 1.1}, "top_fraction"),
        ({"rule": "mean"}, "rule"),
        ({"mask_placement": "output"}, "mask_placement"),
        ({"recompute": "all"}, "recompute"),
        ({"packed": True}, "packed needs hard=True"),
        ({"share_backbone": True, "generator_layers": 2}, "as many generator_layers"),
        ({"tracks": 2}, "signal_weights has 3 numbers, tracks is 2"),
        ({"tracks": 4, "signal_weights": (1, 1, 1, 1)}, "signal_betas has 3 numbers, tracks is 4"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Seq2ExpConfig.soft(**fields)


def test_other_numbers_of_tracks_with_their_weights():
    config = Seq2ExpConfig.soft(tracks=2, signal_weights=(0.7, 0.3), signal_betas=(1.5, 1.0))
    assert config.tracks == 2


def test_baseline_refuses_the_fields_of_the_mask():
    assert GeneExpBiMambaConfig(interact="signal", tracks=5).tracks == 5
    with pytest.raises(ValidationError, match="prior_mean"):
        GeneExpBiMambaConfig(prior_mean=0.1)
