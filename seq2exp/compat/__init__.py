"""Published names over our kernels: training scripts written for mamba-ssm and causal-conv1d run as they are.

    python -m seq2exp.compat train.py --epochs 3        # as `python train.py --epochs 3`; also `-m package.module`
    import seq2exp.compat; seq2exp.compat.install()     # or inside a program, before it imports mamba_ssm

From then on `mamba_ssm` and `causal_conv1d` are the modules beside this file, also where the real packages are
installed. Nothing here is imported by `import seq2exp`.

`patch_caduceus` and `unpatch_caduceus` are for models that are built already; `seq2exp.compat.official` has the
published model classes.
"""

from typing import Any

from seq2exp.compat.aliases import install, uninstall

__all__ = ["install", "patch_caduceus", "uninstall", "unpatch_caduceus"]


def __getattr__(name: str) -> Any:
    if name in ("patch_caduceus", "unpatch_caduceus"):  # when first used: `install` needs no kernels
        from seq2exp.compat import patch

        return getattr(patch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
