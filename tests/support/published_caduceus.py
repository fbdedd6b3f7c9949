"""Caduceus checkpoints as Hugging Face has them: settings, and state dicts of small models."""

import torch
from published_models import published

from seq2exp import Caduceus

D, TOKENS, LENGTH = 6, 16, 21
COMPLEMENTS = {7: 10, 8: 9, 9: 8, 10: 7}
MAP = torch.tensor([COMPLEMENTS.get(token, token) for token in range(TOKENS)])
CONFIG = {
    "architectures": ["CaduceusForMaskedLM"], "model_type": "caduceus", "d_model": D, "vocab_size": 12,
    "pad_vocab_size_multiple": 8, "rms_norm": True, "residual_in_fp32": False, "bidirectional": True,
    "bidirectional_strategy": "add", "bidirectional_weight_tie": True, "norm_epsilon": 1e-5,
    "ssm_cfg": {"d_state": 4, "d_conv": 4, "expand": 2, "dt_rank": "auto", "conv_bias": True, "bias": False},
}  # fmt: skip
PS = CONFIG | {"rcps": True, "complement_map": {str(i): int(j) for i, j in enumerate(MAP[:12])}}


def wrapped(weights, fused):
    """A plain Caduceus state dict as the equivariant class saves one, embedding and head tied."""
    inner = "" if fused else "submodule."
    found = {}
    for key, value in weights.items():
        key = key.replace(".mixer.", ".mixer.submodule.").replace("norm.weight", f"norm.{inner}weight")
        key = key.replace("norm_f.weight", f"norm_f.{inner}weight").replace(
            "word_embeddings.", "word_embeddings.embedding."
        )
        found[key.replace("lm_head.", "lm_head.lm_head.")] = value
    found["lm_head.lm_head.weight"] = found["caduceus.backbone.embeddings.word_embeddings.embedding.weight"].clone()
    return found | {
        "lm_head.complement_map": MAP.clone(),
        "caduceus.backbone.embeddings.word_embeddings.complement_map": MAP.clone(),
    }


def plain_weights(layers, tied=True):
    """A state dict of the not equivariant class, no weight of which is a constant or symmetric."""
    torch.manual_seed(layers)
    weights = published(Caduceus(TOKENS, D, layers, d_state=4))
    for key in weights:
        if "norm" in key or key.endswith((".D", "A_log")):
            weights[key] = weights[key] + 0.3 * torch.rand_like(weights[key])
        if "word_embeddings" in key:
            weights[key] = torch.randn_like(weights[key])
        if not tied and ".mamba_rev.in_proj" in key:
            weights[key] = weights[key] + 0.3 * torch.rand_like(weights[key])
    return weights
