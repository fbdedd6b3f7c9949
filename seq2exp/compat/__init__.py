"""Published names over our kernels: training scripts written for mamba-ssm and causal-conv1d run as they are.

    python -m seq2exp.compat train.py --epochs 3        # as `python train.py --epochs 3`; also `-m package.module`
    torchrun -m seq2exp.compat train.py                 # on several GPUs
    import seq2exp.compat; seq2exp.compat.install()     # or inside a program, before it imports mamba_ssm

From then on `mamba_ssm` and `causal_conv1d` are the modules beside this file, also where the real packages are
installed; where these are imported already, `install` refuses. Nothing here is imported by `import seq2exp`.

Offered, on CPU and CUDA, in float32, bfloat16 and float16, forward and backward:

    mamba_ssm                                 Mamba, MambaLMHeadModel, mamba_inner_fn, selective_scan_fn
    mamba_ssm.modules.mamba_simple            Mamba, Block (of mamba-ssm 1.x)
    mamba_ssm.modules.block                   Block (of 2.x)
    mamba_ssm.ops.selective_scan_interface    selective_scan_fn, selective_scan_ref, mamba_inner_fn, mamba_inner_ref
    mamba_ssm.ops.triton.layernorm            RMSNorm, layer_norm_fn, rms_norm_fn (argument order of 1.x)
    mamba_ssm.ops.triton.layer_norm           the same (of 2.x)
    mamba_ssm.ops.triton.selective_state_update    selective_state_update
    mamba_ssm.models.mixer_seq_simple         MixerModel, MambaLMHeadModel, create_block, _init_weights
    mamba_ssm.models.config_mamba             MambaConfig
    mamba_ssm.utils.generation                InferenceParams
    causal_conv1d                             causal_conv1d_fn, causal_conv1d_update

State dicts are those of mamba-ssm, and a seed draws the same initial weights. Results are the same to rounding, and
ours the same from run to run in the backward too. `Mamba` saves its input and chunk states for the backward, not what
the scan reads. A complex A and constant B or C work; the complex scan goes position by position.

Not offered, and said so by an error: Mamba-2 and -3, attention and MLP in `MixerModel`, generation of text, downloads
(`from_pretrained` takes a folder). The compiled modules `selective_scan_cuda` and `causal_conv1d_cuda` have no
counterpart. `__version__` and `importlib.metadata` say 1.2.2+seq2exp and 1.4.0+seq2exp.

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
