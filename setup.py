from setuptools import setup

setup(
    packages=[
        "seq2exp",
        "seq2exp.cli",
        "seq2exp.training",
        "seq2exp.baselines",
        "seq2exp.kernels",
        "seq2exp.kernels.selective_scan",
        "seq2exp.kernels.bimamba",
        "seq2exp.kernels.beta_mask",
        "seq2exp.kernels.gather",
        "seq2exp.data_tools",
    ]
)
