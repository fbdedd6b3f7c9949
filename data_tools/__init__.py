"""Files in, windows out: the simulator, the store builder and the dataset. Knows files and arrays, not models."""

from seq2exp.data_tools.build import build_store
from seq2exp.data_tools.config import BuildConfig
from seq2exp.data_tools.official import import_official
from seq2exp.data_tools.simulate import SimulationParameters, simulate
from seq2exp.data_tools.store import Store, open_store
from seq2exp.data_tools.windows import GeneWindows, collate

__all__ = [
    "BuildConfig",
    "GeneWindows",
    "SimulationParameters",
    "Store",
    "build_store",
    "collate",
    "import_official",
    "open_store",
    "simulate",
]
