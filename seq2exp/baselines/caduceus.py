"""GeneExpBiMamba: the Caduceus baseline of Seq2Exp (ICLR 2025), without a mask."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from seq2exp.backbone import CaduceusBackbone
from seq2exp.baselines.base import Baseline, Inputs
from seq2exp.config import BackboneFields, Size
from seq2exp.embedding import Embedding
from seq2exp.model import ExpressionHead


class GeneExpBiMambaConfig(BackboneFields):
    """interact: "no_signal" reads the sequence alone, "signal" its concatenation with the signals.

    layers: of the backbone. The other fields are those of `Seq2ExpConfig`.
    """

    layers: Size = 4
    interact: Literal["no_signal", "signal"] = "no_signal"


class GeneExpBiMamba(Baseline):
    """One linear input layer, one Caduceus backbone, the mean of the centre, the head of Seq2Exp."""

    config_class = GeneExpBiMambaConfig
    config: GeneExpBiMambaConfig

    def __init__(self, config: GeneExpBiMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.reads_signals = config.interact == "signal"
        self.input_layer = nn.Linear(4 + (config.tracks if self.reads_signals else 0), config.d_model)
        self.backbone = CaduceusBackbone(
            config.d_model, config.layers, d_state=config.d_state, d_conv=config.d_conv, expand=config.expand,
            recompute=config.recompute,
        )  # fmt: skip
        self.head = ExpressionHead(config.d_model, config.gene_features)

    def hidden(self, batch: Inputs) -> Tensor:
        weight, bias = self.input_layer.weight, self.input_layer.bias
        embedding = Embedding(self.config, weight[:, :4], bias, weight[:, 4:] if self.reads_signals else None)
        stream = self.backbone.stream(embedding(batch.sequence, batch.signals if self.reads_signals else None))
        return self.backbone.normalised(*(x[:, self.centre] for x in stream))
