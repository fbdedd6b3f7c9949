"""Peaks of a track, called by MACS3 where that program is installed."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from seq2exp.data_tools.bigwig import BigWig
from seq2exp.data_tools.tables import check_file, first_line, read_bed
from seq2exp.errors import UserError


def call_peaks(track: Path, out: Path, *, cutoff: float, min_length: int = 200, max_gap: int = 30) -> int:
    """Calls the peaks of a bigWig with ``macs3 bdgpeakcall`` and writes them as narrowPeak.

    Args:
        cutoff: the least value of a peak, in the units of the track.
        min_length, max_gap: bases; stretches above the cutoff closer than max_gap are one peak. Defaults of MACS3.

    Returns:
        the number of peaks, overlapping ones counted once.

    Raises:
        UserError: MACS3 is not installed, or it fails; no such track.
    """
    program = shutil.which("macs3")
    if program is None:
        raise UserError(
            "MACS3 is not installed (no program macs3 on the PATH): pip install macs3, or take any narrowPeak file of "
            "peaks."
        )
    check_file(track, "the track")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: there is no such folder to write to.")
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".peaks-") as folder:
        values, peaks = Path(folder) / "track.bedGraph", Path(folder) / "peaks.narrowPeak"
        with BigWig(track) as file, values.open("w") as handle:
            lengths = file.lengths
            for chrom in sorted(lengths):
                handle.writelines(f"{chrom}\t{s}\t{e}\t{value:g}\n" for s, e, value in file.intervals(chrom))
        command = [program, "bdgpeakcall", "-i", str(values), "-o", str(peaks), "-c", f"{cutoff:g}"]
        command += ["-l", str(min_length), "-g", str(max_gap)]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode or not peaks.is_file():
            said = first_line(RuntimeError("\n".join(child.stderr.strip().split("\n")[-1:])))
            raise UserError(f"{track}: macs3 bdgpeakcall failed (exit code {child.returncode}): {said}")
        found = read_bed(peaks, lengths)
        peaks.replace(out)
    return sum(map(len, found.values()))
