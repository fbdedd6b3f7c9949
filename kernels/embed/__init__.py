"""Codes and signals of bases to the input of a model in one pass."""

from seq2exp.kernels.embed.ops import embed_bases

__all__ = ["embed_bases"]
