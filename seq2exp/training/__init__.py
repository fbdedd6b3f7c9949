"""Training: settings, loop, checkpoints."""

from .config import TrainConfig, load_config
from .trainer import Trainer, TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "Trainer", "load_config", "train"]
