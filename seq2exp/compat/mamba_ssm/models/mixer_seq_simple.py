"""A stack of Mamba blocks on token embeddings, and the language model on it."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from seq2exp.compat.mamba_ssm.models.config_mamba import MambaConfig
from seq2exp.compat.mamba_ssm.modules.block import add_then_norm
from seq2exp.compat.mamba_ssm.modules.mamba_simple import Block, Mamba
from seq2exp.compat.mamba_ssm.ops.triton.layer_norm import RMSNorm
from seq2exp.errors import UserError

__all__ = ["MambaLMHeadModel", "MixerModel", "create_block"]

CONFIG, WEIGHTS = "config.json", ("pytorch_model.bin", "model.safetensors")


def create_block(
    d_model: int, ssm_cfg: dict[str, Any] | None = None, norm_epsilon: float = 1e-5, rms_norm: bool = False,
    residual_in_fp32: bool = False, fused_add_norm: bool = False, layer_idx: int | None = None, device: Any = None,
    dtype: Any = None, *, d_intermediate: int = 0, attn_layer_idx: Any = None, attn_cfg: Any = None,
) -> Block:  # fmt: skip
    """A block with a Mamba mixer. ssm_cfg: options of `Mamba`. rms_norm: RMSNorm in place of LayerNorm.

    Raises
    ------
    UserError: an MLP (d_intermediate), attention (attn_layer_idx, attn_cfg) or another mixer, which 2.x has.
    """
    mixer_options = dict(ssm_cfg or {})
    layer = mixer_options.pop("layer", "Mamba1")
    asked = {"d_intermediate": d_intermediate, "attn_layer_idx": attn_layer_idx, "attn_cfg": attn_cfg}
    for name, value in asked.items():
        if value:
            raise UserError(f"seq2exp.compat: {name}={value!r} is not supported; stacks of Mamba blocks alone are")
    if layer != "Mamba1":
        raise UserError(f"seq2exp.compat: the mixer {layer!r} in ssm_cfg is not supported; 'Mamba1' is")
    options = {"device": device, "dtype": dtype}
    mixer_cls = partial(Mamba, layer_idx=layer_idx, **mixer_options, **options)
    norm_cls = partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **options)
    block = Block(d_model, mixer_cls, norm_cls, fused_add_norm, residual_in_fp32)
    block.layer_idx = layer_idx  # type: ignore[assignment]
    return block


def _init_weights(
    module: nn.Module, n_layer: int, initializer_range: float = 0.02, rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:  # fmt: skip
    """For `Module.apply`: biases 0, embeddings normal, what adds to the residual stream as GPT-2 scales it."""
    if isinstance(module, nn.Linear) and module.bias is not None and not getattr(module.bias, "_no_reinit", False):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    if rescale_prenorm_residual:
        weights = dict(module.named_parameters())
        for weight in [weights[name] for name in ("out_proj.weight", "fc2.weight") if name in weights]:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # nn.Linear's own
            weight.data.div_(math.sqrt(n_residuals_per_layer * n_layer))


class MixerModel(nn.Module):
    """Tokens (batch, L) -> hidden states (batch, L, d_model), normed.

    initializer_cfg: options of `_init_weights`. The last three are those of mamba-ssm 2.x; see `create_block`.
    """

    def __init__(
        self, d_model: int, n_layer: int, vocab_size: int, ssm_cfg: dict[str, Any] | None = None,
        norm_epsilon: float = 1e-5, rms_norm: bool = False, initializer_cfg: dict[str, Any] | None = None,
        fused_add_norm: bool = False, residual_in_fp32: bool = False, device: Any = None, dtype: Any = None, *,
        d_intermediate: int = 0, attn_layer_idx: Any = None, attn_cfg: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, **options)
        self.layers = nn.ModuleList(
            create_block(
                d_model, ssm_cfg, norm_epsilon, rms_norm, residual_in_fp32, fused_add_norm, i, **options,
                d_intermediate=d_intermediate, attn_layer_idx=attn_layer_idx, attn_cfg=attn_cfg,
            )
            for i in range(n_layer)
        )  # fmt: skip
        self.norm_f = (RMSNorm if rms_norm else nn.LayerNorm)(d_model, eps=norm_epsilon, **options)
        self.apply(partial(_init_weights, n_layer=n_layer, **(initializer_cfg or {})))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """Zero states by layer index, for `InferenceParams.key_value_memory_dict`."""
        return {
            i: layer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)  # type: ignore[operator]
            for i, layer in enumerate(self.layers)
        }

    def forward(self, input_ids: Tensor, inference_params: Any = None) -> Tensor:
        hidden_states, residual = self.embedding(input_ids), None
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual, inference_params=inference_params)
        return add_then_norm(self.norm_f, hidden_states, residual, self.fused_add_norm, self.residual_in_fp32)[0]


class CausalLMOutput(NamedTuple):
    """logits: (batch, L, vocabulary)."""

    logits: Tensor


class MambaLMHeadModel(nn.Module):
    """`MixerModel` and a linear head that shares the embedding's weight; the vocabulary is padded to the multiple."""

    def __init__(
        self, config: MambaConfig, initializer_cfg: dict[str, Any] | None = None, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.config = config
        vocab_size = -(-config.vocab_size // config.pad_vocab_size_multiple) * config.pad_vocab_size_multiple
        self.backbone = MixerModel(
            config.d_model, config.n_layer, vocab_size, config.ssm_cfg, rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg, fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32, **options, d_intermediate=config.d_intermediate,
            attn_layer_idx=config.attn_layer_idx, attn_cfg=config.attn_cfg,
        )  # fmt: skip
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False, **options)
        self.apply(partial(_init_weights, n_layer=config.n_layer, **(initializer_cfg or {})))
        self.tie_weights()

    def tie_weights(self) -> None:
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor | None = None, inference_params: Any = None,
        num_last_tokens: int = 0,
    ) -> CausalLMOutput:  # fmt: skip
        """num_last_tokens: logits of that many last positions only. position_ids: not looked at."""
        hidden_states = self.backbone(input_ids, inference_params=inference_params)
        if num_last_tokens > 0:
            hidden_states = hidden_states[:, -num_last_tokens:]
        return CausalLMOutput(self.lm_head(hidden_states))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name: str | Path, device: Any = None, dtype: Any = None, **kwargs: Any
    ) -> MambaLMHeadModel:
        """From a folder with config.json and pytorch_model.bin or model.safetensors; nothing is downloaded.

        Raises
        ------
        UserError: a file is missing, or config.json has a field that `MambaConfig` has not.
        """
        folder = Path(pretrained_model_name)
        weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if weights is None or not (folder / CONFIG).is_file():
            raise UserError(
                f"{pretrained_model_name} is no folder with {CONFIG} and {' or '.join(WEIGHTS)}; seq2exp.compat "
                "downloads nothing, so fetch the model first and give the folder"
            )
        fields = json.loads((folder / CONFIG).read_text())
        known = {field.name for field in dataclasses.fields(MambaConfig)}
        if unknown := sorted(fields.keys() - known):
            raise UserError(f"{folder / CONFIG}: {', '.join(unknown)} not supported; {', '.join(sorted(known))} are")
        model = cls(MambaConfig(**fields), device=device, dtype=dtype, **kwargs)
        binary = weights.suffix == ".bin"
        state = torch.load(weights, map_location="cpu", weights_only=True) if binary else load_file(weights)
        if "lm_head.weight" not in state and model.config.tie_embeddings:  # safetensors keep shared tensors once
            state["lm_head.weight"] = state["backbone.embedding.weight"]
        model.load_state_dict(state)
        return model

    def save_pretrained(self, save_directory: str | Path) -> None:
        """pytorch_model.bin and config.json."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / WEIGHTS[0])
        (folder / CONFIG).write_text(json.dumps(dataclasses.asdict(self.config), indent=4))
