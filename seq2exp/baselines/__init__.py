"""Models to compare with. `seq2exp.registry` has their names in training files."""

from seq2exp.baselines.caduceus import GeneExpBiMamba, GeneExpBiMambaConfig
from seq2exp.baselines.enformer import Enformer, EnformerConfig
from seq2exp.baselines.epinformer import EPInformer, EPInformerConfig
from seq2exp.baselines.hyenadna import HyenaDNA, HyenaDNAConfig
from seq2exp.baselines.mamba import GeneExpMamba, GeneExpMambaConfig
from seq2exp.baselines.masked import AbcMasked, AbcMaskedConfig, MaskedConfig, PeakMasked, Retrained, RetrainedConfig
from seq2exp.baselines.published import PublishedForm
from seq2exp.baselines.ridge import Ridge, RidgeConfig

__all__ = [
    "AbcMasked",
    "AbcMaskedConfig",
    "EPInformer",
    "EPInformerConfig",
    "Enformer",
    "EnformerConfig",
    "GeneExpBiMamba",
    "GeneExpBiMambaConfig",
    "GeneExpMamba",
    "GeneExpMambaConfig",
    "HyenaDNA",
    "HyenaDNAConfig",
    "MaskedConfig",
    "PeakMasked",
    "PublishedForm",
    "Retrained",
    "RetrainedConfig",
    "Ridge",
    "RidgeConfig",
]
