"""The names of mamba-ssm 1.2, and those that 2.x gave the same things (`modules.block`, `ops.triton.layer_norm`)."""

from seq2exp.compat.mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from seq2exp.compat.mamba_ssm.modules.mamba_simple import Mamba
from seq2exp.compat.mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn

__version__ = "1.2.2+seq2exp"
__all__ = ["Mamba", "MambaLMHeadModel", "mamba_inner_fn", "selective_scan_fn"]
