"""Norms and the step of a scan; in mamba-ssm these are Triton kernels, here our ops."""
