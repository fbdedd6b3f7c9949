"""The ops of seq2exp. They know tensors, not models. Always imported as `seq2exp.kernels`."""

from seq2exp.kernels.add_norm import add_norm
from seq2exp.kernels.backend import backends, set_backend
from seq2exp.kernels.beta_mask import BetaMask, beta_mask
from seq2exp.kernels.bimamba import ScanWeights, bimamba, bimamba_block
from seq2exp.kernels.embed import embed_bases
from seq2exp.kernels.gather import Packed, pack_selected, unpack_selected
from seq2exp.kernels.selective_scan import selective_scan

__all__ = [
    "BetaMask",
    "Packed",
    "ScanWeights",
    "add_norm",
    "backends",
    "beta_mask",
    "bimamba",
    "bimamba_block",
    "embed_bases",
    "pack_selected",
    "selective_scan",
    "set_backend",
    "unpack_selected",
]
