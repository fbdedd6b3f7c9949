"""Rows of .hic, .cool and .mcool contact maps, read by hictkpy in a process of its own.

Once hictkpy is imported, a later fork of the same process can hang in its fork handler (seen with 1.4.0), which would
stop DataLoader workers. So the parent never imports it: it starts ``map_reader.py``, sends a request as JSON and reads
back an .npz. A map that makes the library crash ends in a sentence too.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seq2exp.errors import UserError

_READER = Path(__file__).with_name("map_reader.py")


def read_map(
    path: Path,
    resolution: int,
    value: str | None,
    chroms: list[str],
    tss: list[int],
    reach: int,
    lengths: Mapping[str, int] | None = None,
) -> tuple[np.ndarray, int, str]:
    """Contacts of the bin of each TSS with `reach` bins on each side.

    Args:
        resolution: bases a bin, one of those in a .hic or .mcool; a .cool has one of its own.
        value: a normalisation of the file, "NONE" for raw counts; default the first there is of KR, VC, VC_SQRT,
            SCALE, weight, ICE, else NONE.
        lengths: chromosome -> bases, from the FASTA; a map of another assembly is refused.

    Returns:
        float64 (genes, 2 * reach + 1), NaN where not measured; the resolution; the normalisation.

    Raises:
        UserError: damaged file; no such resolution or normalisation, saying which there are.
    """
    request = {
        "path": str(path),
        "resolution": resolution,
        "value": value,
        "chroms": chroms,
        "tss": tss,
        "reach": reach,
        "lengths": dict(lengths or {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.npz"
        child = subprocess.run(
            [sys.executable, "-P", str(_READER), str(out)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
        )
        if child.returncode == 2:
            raise UserError(child.stderr.strip())
        if child.returncode != 0:
            last = child.stderr.strip().split("\n")[-1] or f"exit code {child.returncode}"
            raise UserError(f"{path}: cannot be read as a contact map ({last}).")
        with np.load(out) as result:
            return result["rows"], int(result["resolution"]), str(result["value"])
