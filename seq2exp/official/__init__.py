"""Published checkpoints: read without running anything in them, loaded into our models, converted, exported."""

from seq2exp.official.loading import load_official
from seq2exp.official.names import official_name

__all__ = ["load_official", "official_name"]
