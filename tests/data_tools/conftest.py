"""A simulated store, and a tiny set of build inputs that tests spoil one at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seq2exp.data_tools import Store, build_store, simulate
from seq2exp.data_tools.bigwig import write_bigwig
from seq2exp.data_tools.fasta import write_fasta

LENGTHS = {"chr1": 3_000, "chr2": 1_500}
GENES = """gene_id,chrom,tss,strand,target,split,gc
G1,chr1,500,+,0.5,train,0.1
G2,chr1,2900,-,,train,0.2
G3,chr2,20,+,1.5,test,0.3
"""


def simulation_fields(folder: Path) -> dict[str, Any]:
    return {
        "fasta": folder / "genome.fa",
        "track": {"H3K27ac": folder / "H3K27ac.bw", "DNase": folder / "DNase.bw"},
        "contacts": str(folder / "contacts.tsv"),
        "genes": folder / "genes.csv",
        "target": "target",
        "split": "split",
    }


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulation of 300 genes."""
    return simulate(tmp_path_factory.mktemp("simulated"), seed=7, genes=300)


@pytest.fixture(scope="session")
def store(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of that simulation."""
    return build_store(out=tmp_path_factory.mktemp("store") / "store.zarr", **simulation_fields(simulated))


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    """Fields of ``build_store`` for two short chromosomes, one track and three genes."""
    rng = np.random.default_rng(0)
    write_fasta(tmp_path / "genome.fa", {c: rng.integers(0, 4, n, dtype=np.uint8) for c, n in LENGTHS.items()})
    write_bigwig(tmp_path / "DNase.bw", {c: rng.random(n).round(3) for c, n in LENGTHS.items()})
    (tmp_path / "genes.csv").write_text(GENES)
    (tmp_path / "contacts.tsv").write_text(
        "chrom\tbin1\tbin2\tcontact\nchr1\t500\t500\t9\nchr1\t0\t500\t4\nchr1\t500\t1000\t2\nchr1\t1000\t1000\tnan\n"
    )
    return {
        "out": tmp_path / "store.zarr",
        "fasta": tmp_path / "genome.fa",
        "track": {"DNase": tmp_path / "DNase.bw"},
        "genes": tmp_path / "genes.csv",
        "target": "target",
        "split": "split",
    }
