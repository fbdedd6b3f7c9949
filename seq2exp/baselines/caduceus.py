"""GeneExpBiMamba: the Caduceus baseline of Seq2Exp (ICLR 2025), without a mask."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from seq2exp.backbone import CaduceusBackbone
from seq2exp.config import BackboneFields, Size
from seq2exp.embedding import Embedding
from seq2exp.kernels.beta_mask.settings import centre_slice
from seq2exp.model import ExpressionHead, Seq2ExpOutput, check_inputs
from seq2exp.pretrained import Pretrained


class GeneExpBiMambaConfig(BackboneFields):
    """interact: "no_signal" reads the sequence alone, "signal" its concatenation with the signals.

    layers: of the backbone. The other fields are those of `Seq2ExpConfig`.
    """

    layers: Size = 4
    interact: Literal["no_signal", "signal"] = "no_signal"


class GeneExpBiMamba(Pretrained, nn.Module):
    """One linear input layer, one Caduceus backbone, the mean of the centre, the head of Seq2Exp."""

    config_class = GeneExpBiMambaConfig
    config: GeneExpBiMambaConfig

    def __init__(self, config: GeneExpBiMambaConfig) -> None:
        super().__init__()
        self.config = config
        inputs = 4 + (config.tracks if config.interact == "signal" else 0)
        self.input_layer = nn.Linear(inputs, config.d_model)
        self.backbone = CaduceusBackbone(
            config.d_model, config.layers, d_state=config.d_state, d_conv=config.d_conv, expand=config.expand,
            recompute=config.recompute,
        )  # fmt: skip
        self.head = ExpressionHead(config.d_model, config.gene_features)

    def forward(
        self,
        sequence: Tensor,
        signals: Tensor | None = None,
        gene_features: Tensor | None = None,
        exclude: Tensor | None = None,
        include: Tensor | None = None,
        seed: int | None = None,
        rows: Tensor | None = None,
    ) -> Seq2ExpOutput:
        """Inputs as of `Seq2Exp.forward`, so that the two can be exchanged; exclude, include, seed and rows have no
        effect, nor have signals with interact="no_signal". Only `expression` of the output is set."""
        with_signals = self.config.interact == "signal"
        if with_signals and signals is None:
            raise ValueError("GeneExpBiMamba with interact='signal' needs signals (batch, L, tracks)")
        check_inputs(self.config, sequence, signals if with_signals else None, gene_features)
        weight, bias = self.input_layer.weight, self.input_layer.bias
        embedding = Embedding(self.config, weight[:, :4], bias, weight[:, 4:] if with_signals else None)
        stream = self.backbone.stream(embedding(sequence, signals if with_signals else None))
        centre = centre_slice(self.config.length, self.config.center)
        hidden = self.backbone.normalised(*(x[:, centre] for x in stream))
        return Seq2ExpOutput(self.head(hidden.mean(1), gene_features))
