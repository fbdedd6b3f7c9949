"""Scans and norms."""
