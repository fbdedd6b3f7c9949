"""Models to compare with."""

from seq2exp.baselines.caduceus import GeneExpBiMamba, GeneExpBiMambaConfig

__all__ = ["GeneExpBiMamba", "GeneExpBiMambaConfig"]
