"""The names of mamba-ssm."""

__version__ = "1.2.2+seq2exp"
