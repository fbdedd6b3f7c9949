"""seq2exp: gene expression from 200 kb of DNA and epigenomic signals, with custom kernels."""

from seq2exp.backbone import Caduceus, CaduceusBackbone
from seq2exp.config import Seq2ExpConfig
from seq2exp.errors import UserError
from seq2exp.loss import seq2exp_loss
from seq2exp.model import Seq2Exp, Seq2ExpOutput
from seq2exp.official import load_official
from seq2exp.start import start_from_pretrained

__version__ = "0.1.0"

__all__ = [
    "Caduceus",
    "CaduceusBackbone",
    "Seq2Exp",
    "Seq2ExpConfig",
    "Seq2ExpOutput",
    "UserError",
    "load_official",
    "seq2exp_loss",
    "start_from_pretrained",
]
