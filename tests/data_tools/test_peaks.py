"""narrowPeak files, and MACS3 as a program that may or may not be there."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from seq2exp.cli.data import app
from seq2exp.data_tools import build_store
from seq2exp.data_tools.bigwig import write_bigwig
from seq2exp.data_tools.peaks import call_peaks
from seq2exp.data_tools.tables import read_bed
from seq2exp.errors import UserError

PEAK = "chr1\t100\t400\tp1\t50\t.\t7.5\t-1\t-1\t120\n"

# What macs3 bdgpeakcall does with -i, -o, -c, -l and -g, on lines of one value per stretch.
MACS3 = """#!{python}
import sys
assert sys.argv[1] == "bdgpeakcall", sys.argv
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
cutoff, length, gap = float(options["-c"]), int(options["-l"]), int(options["-g"])
if cutoff > 100:
    sys.exit("CRITICAL\\nno such cutoff")
peaks = []
for line in open(options["-i"]):
    chrom, start, end, value = line.split("\\t")
    if float(value) >= cutoff:
        if peaks and peaks[-1][0] == chrom and int(start) - peaks[-1][2] <= gap:
            peaks[-1][2] = int(end)
        else:
            peaks.append([chrom, int(start), int(end)])
with open(options["-o"], "w") as out:
    print('track type=narrowPeak name="x"', file=out)
    for chrom, start, end in peaks:
        if end - start >= length:
            print(chrom, start, end, "p", 1, ".", 1, 0, 0, 0, sep="\\t", file=out)
"""


@pytest.fixture
def track(tmp_path: Path) -> Path:
    values = np.zeros(3_000)
    values[100:250], values[260:400], values[900:1_000] = 5, 6, 7
    write_bigwig(tmp_path / "DNase.bw", {"chr1": values})
    return tmp_path / "DNase.bw"


@pytest.fixture
def macs3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    program = tmp_path / "bin" / "macs3"
    program.parent.mkdir()
    program.write_text(MACS3.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_peaks_of_macs3(track, macs3, tmp_path):
    out = tmp_path / "peaks.narrowPeak"
    assert call_peaks(track, out, cutoff=4) == 1
    assert read_bed(out, {"chr1": 3_000})["chr1"].tolist() == [[100, 400]]
    assert call_peaks(track, out, cutoff=4, min_length=100, max_gap=5) == 3
    assert call_peaks(track, out, cutoff=50) == 0
    result = CliRunner().invoke(app, ["peaks", str(track), "--out", str(out), "--cutoff", "4"])
    assert result.exit_code == 0 and "1 peaks" in result.output
    with pytest.raises(UserError, match=r"macs3 bdgpeakcall failed \(exit code 1\): no such cutoff"):
        call_peaks(track, out, cutoff=200)
    assert not list(tmp_path.glob(".peaks-*"))
    with pytest.raises(UserError, match="no such folder"):
        call_peaks(track, tmp_path / "no" / "peaks.narrowPeak", cutoff=4)


def test_without_macs3(track, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"MACS3 is not installed .* pip install macs3, or take any narrowPeak file"):
        call_peaks(track, tmp_path / "peaks.narrowPeak", cutoff=4)


def test_peaks_in_a_store(inputs, tmp_path):
    peaks = tmp_path / "DNase.narrowPeak"
    peaks.write_text(PEAK + PEAK.replace("100\t400", "350\t700") + PEAK.replace("chr1", "chr9"))
    store = build_store(**inputs, peaks=peaks)
    assert store.region_size("peaks") == (1, 600)
    assert np.flatnonzero(store.regions("peaks", "chr1", 0, 3_000)).tolist() == list(range(100, 700))
    assert not store.regions("exclude", "chr1", 0, 3_000).any()  # a peak mask is not an exclusion
    assert "peaks" in store.info["sources"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PEAK + "chr1\t100\t400\tp2\t50\n", "line 2 is not narrowPeak .10 columns"),
        (PEAK.replace("120", "x"), "line 1 is not narrowPeak"),
        (PEAK.replace("120", "300"), "line 1: the summit, 300, is not within the 300 bases"),
        (PEAK.replace("400", "3001"), "line 1: chr1:100-3001 is not an interval of chr1, which has 3,000"),
        (PEAK.replace("chr1", "1"), "none of its chromosomes is one of the genes': '1' is not, which calls it 'chr1'"),
        ("\x80", "not a readable BED file|is not narrowPeak"),
    ],
)
def test_wrong_narrow_peaks(tmp_path, text, said):
    path = tmp_path / "a.narrowPeak"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said) as error:
        read_bed(path, {"chr1": 3_000})
    assert str(path) in str(error.value)
