"""Mixers and blocks."""
