"""The settings of the published models under their published names, and what of them we do not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from seq2exp.errors import UserError
from seq2exp.official.settings import check_supported

# Those of the published recipe (soft). What a field does: the published configuration files.
_RECIPE: dict[str, Any] = {
    "d_model": 128, "n_layer": 4, "gen_n_layer": 4, "enc_n_layer": 4, "center_len": 2000, "seq_range": 0,
    "base_size": 4, "signal_size": 3, "rna_feat_dim": 9, "useRNAFeat": True, "vocab_size": 12, "interact": "concat",
    "gen_signal": False, "pretrained_model": False, "aux_loss_kl": True, "aux_loss_con": True,
    # the mask
    "prior_signal": "all", "prior_beta": "1.5,0.2,1.0", "prior_weight": "2,2,1", "prior_scale_factor": 10.0,
    "beta_min": 1.0, "z_scale": 1.0, "marginal_mean": 0.1, "marginal_scale": 10.0, "post_sample": True,
    "post_dist": "beta", "post_hard_dist": False, "sample_threshold": 0.5, "decouple_x": True, "only_x_sig": False,
    "dist_param_grad": False, "use_gumbel": False, "max_pool_size": 0, "pool_mask": 0, "merge_mask": 0,
    "enc_prd_ps": False, "pos_enc": False, "use_include_list": False, "mask_region_hard": True,
    "test_top": False, "test_top_percent": 0.1, "test_top_soft": False, "test_soft": True, "test_hard": False,
    # masks from elsewhere
    "use_bio_mask": False, "use_peak_mask": False, "merge_peak_mask": False, "use_mask_model": False, "mask_model": "",
    "top_mask_percent": 0.0,
    # the backbones
    "ssm_cfg": None, "rms_norm": True, "fused_add_norm": True, "residual_in_fp32": False, "norm_epsilon": 1e-5,
    "pad_vocab_size_multiple": 8, "initializer_cfg": None, "bidirectional": True, "bidirectional_strategy": "add",
    "bidirectional_weight_tie": True, "rcps": False, "complement_map": None,
}  # fmt: skip

# Beside what `seq2exp.official` does not have either: what a class does not train, or initialise, as published.
_ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "GeneBiMambaMIRNP": {"dist_param_grad": (False,)},
    "GeneExpBiMamba": {"pretrained_model": (False,)},
    "GeneExpMamba": {},
}
_SSM_ONLY: dict[str, tuple[Any, ...]] = {
    "dt_min": (0.001,), "dt_max": (0.1,), "dt_init": ("random",), "dt_scale": (1.0,), "dt_init_floor": (1e-4,),
}  # fmt: skip
# A mask that forward is given is an input here; `load_official` has no model that takes one.
_GIVEN = {"GeneBiMambaMIRNP": {"use_bio_mask": False, "use_peak_mask": False}}
_SIZES = ("d_model", "vocab_size", "signal_size", "rna_feat_dim", "n_layer", "gen_n_layer", "enc_n_layer")


class CaduceusConfig:
    """Settings by attribute, under their published names; those not given are the published recipe's for soft masks.

    As in the published class, a name that no model reads is taken and kept.
    """

    def __init__(self, **fields: Any) -> None:
        one_test = {"test_soft": not (fields.get("test_top") or fields.get("test_hard"))}
        vars(self).update({name: _number(value) for name, value in (_RECIPE | one_test | fields).items()})
        ssm = vars(self)["ssm_cfg"] or {}
        self.ssm_cfg: dict[str, Any] = {name: _number(value) for name, value in ssm.items()}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"CaduceusConfig has no field {name!r}")

    @classmethod
    def of(cls, config: Any) -> CaduceusConfig:
        """Itself, or the fields of a mapping (also OmegaConf's) or of any object that has them as attributes."""
        if isinstance(config, cls):
            return config
        if isinstance(config, Mapping):
            return cls(**{str(name): value for name, value in config.items()})
        found = {name: getattr(config, name) for name in _RECIPE if hasattr(config, name)}
        if not found:
            raise UserError(
                f"config is a {type(config).__name__} without any of the published fields; give a CaduceusConfig, or a "
                "dict or object with fields like d_model and center_len"
            )
        return cls(**found)

    @property
    def mixer_sizes(self) -> dict[str, int]:
        """d_state, d_conv and expand, those that are given."""
        return {name: self.ssm_cfg[name] for name in ("d_state", "d_conv", "expand") if name in self.ssm_cfg}

    @property
    def gene_features(self) -> int:
        return self.rna_feat_dim if self.useRNAFeat else 0

    def numbers(self, name: str) -> list[float]:
        """A field like "2,2,1", one number for each track at least."""
        try:
            found = [float(x) for x in str(getattr(self, name)).split(",")]
        except ValueError:
            found = []
        if len(found) < self.signal_size:
            raise UserError(
                f"{name}={getattr(self, name)!r} is not a list of numbers like '2,2,1', one for each of the "
                f"{self.signal_size} tracks"
            )
        return found

    def shared_fields(self, length: int) -> dict[str, Any]:
        """The fields that all our configurations have, for windows of `length` bases."""
        return {
            "length": length, "center": self.center_len or length, "tracks": self.signal_size,
            "gene_features": self.gene_features, "d_model": self.d_model,
            "residual_dtype": "fp32" if self.residual_in_fp32 else "bf16",
        } | self.mixer_sizes  # fmt: skip


def check(kind: str, config: CaduceusConfig) -> None:
    """That we have what the settings ask of a model of class `kind`; UserError names what not, and what instead."""
    sizes = {name: getattr(config, name) for name in _SIZES} | config.mixer_sizes
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{kind}: {name}={value!r} must be a whole number, at least 1")
    for only, found, section in ((_ONLY[kind], vars(config), ""), (_SSM_ONLY, config.ssm_cfg, "ssm_cfg.")):
        for name, values in only.items():
            if name in found and found[name] not in values:
                said = f"{section}{name}={found[name]!r} is not supported"
                raise UserError(f"{kind}: {said} (supported: {', '.join(map(repr, values))})")
    with in_the_name_of(kind):
        check_supported(kind, vars(config) | _GIVEN.get(kind, {}))


@contextmanager
def in_the_name_of(kind: str) -> Iterator[None]:
    """Sentences of `load_official`, which has the same settings, said of a class."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("load_official", kind, 1)) from None


def _number(value: Any) -> Any:
    """ "1e-5" is a string in the published YAML files for readers of YAML 1.1."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
