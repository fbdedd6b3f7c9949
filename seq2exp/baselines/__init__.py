"""Models to compare with."""

from seq2exp.baselines.caduceus import GeneExpBiMamba, GeneExpBiMambaConfig
from seq2exp.baselines.hyenadna import HyenaDNA, HyenaDNAConfig
from seq2exp.baselines.published import PublishedForm

__all__ = ["GeneExpBiMamba", "GeneExpBiMambaConfig", "HyenaDNA", "HyenaDNAConfig", "PublishedForm"]
