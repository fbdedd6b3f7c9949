"""Files in, windows out: the simulator, the store builder and the dataset. Knows files and arrays, not models."""

from seq2exp.data_tools.batches import collate, expand, stack
from seq2exp.data_tools.build import build_store
from seq2exp.data_tools.config import BuildConfig
from seq2exp.data_tools.loader import EpochBatches, WindowLoader
from seq2exp.data_tools.official import import_official
from seq2exp.data_tools.repair import find_damage, repair_store
from seq2exp.data_tools.simulate import SimulationParameters, simulate
from seq2exp.data_tools.store import Store, open_store
from seq2exp.data_tools.windows import GeneWindows

__all__ = [
    "BuildConfig",
    "EpochBatches",
    "GeneWindows",
    "SimulationParameters",
    "Store",
    "WindowLoader",
    "build_store",
    "collate",
    "expand",
    "find_damage",
    "import_official",
    "open_store",
    "repair_store",
    "simulate",
    "stack",
]
