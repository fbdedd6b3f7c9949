"""Simulated genomes with known regulatory elements, in the file formats that ``build_store`` reads.

A gene's window holds three kinds of element, all of one width, without overlaps and outside the centre: *causal* (motif
copies and a peak in both tracks), *peak_only* (the same peaks, no motif) and *motif_only* (motif copies, no peak).
Only causal elements raise expression:

    target = log10(1 + sum over causal elements of strength * amplitude * contact) + noise

so neither the tracks nor the sequence tells the causal elements apart, only both together.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from seq2exp.data_tools.bigwig import write_bigwig
from seq2exp.data_tools.fasta import write_fasta
from seq2exp.errors import UserError

TRACKS = ("H3K27ac", "DNase")
KINDS = ("causal", "peak_only", "motif_only")
_COMPLEMENT = np.array([3, 2, 1, 0], dtype=np.uint8)


@dataclass(frozen=True)
class SimulationParameters:
    """What is simulated; counts are inclusive ranges per gene, widths and distances are in bases."""

    seed: int
    genes: int = 2_600
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    chromosomes: int = 5  # the last is test, the one before valid, the rest train
    length: int = 512
    center: int = 32
    element_width: int = 48
    causal: tuple[int, int] = (0, 2)
    peak_only: tuple[int, int] = (1, 3)
    motif_only: tuple[int, int] = (1, 2)
    motif: str = "TGACTC"  # several, of one length: commas between them; an element has copies of one of them
    motif_copies: int = 4
    amplitude: tuple[float, float] = (1.0, 3.0)
    track_jitter: float = 0.2  # sigma of the lognormal factor of a peak in each track
    track_noise: float = 0.1  # sigma of |N| at every base
    contact_decay: float = 400.0
    contact_bin: int = 16
    strength: float = 3.0
    noise: float = 0.05  # sigma of the target's noise

    def __post_init__(self) -> None:
        slots = 2 * self._slots_per_side()
        most = sum(high for _, high in (self.causal, self.peak_only, self.motif_only))
        if self.genes < self.chromosomes or self.chromosomes < 3:
            raise UserError("simulate: needs at least 3 chromosomes and as many genes as chromosomes.")
        if min(self.held_out()) < 1 or self.genes - sum(self.held_out()) < self.chromosomes - 2:
            raise UserError("simulate: every chromosome needs a gene; change genes, valid_fraction or test_fraction.")
        sizes = {len(motif) for motif in self.motifs}
        if not set(self.motif) <= set("ACGT,") or len(sizes) > 1 or self.motif_copies * max(sizes) > self.element_width:
            raise UserError(
                "simulate: the motif must be of A C G T, several must be of one length, and the copies must fit into "
                "element_width."
            )
        if self.contact_bin < 1:
            raise UserError("simulate: contact_bin must be at least 1.")
        if any(low < 0 or high < low for low, high in (self.causal, self.peak_only, self.motif_only)):
            raise UserError("simulate: element counts must be ranges low..high with 0 <= low <= high.")
        if most > slots:
            raise UserError(
                f"simulate: up to {most} elements of {self.element_width} do not fit into {slots} places; raise length."
            )
        if sum(self.peak_only) < sum(self.causal):
            raise UserError("simulate: there must be at least as many peak_only decoys as causal elements.")

    @property
    def motifs(self) -> list[str]:
        return self.motif.split(",")

    def held_out(self) -> tuple[int, int]:
        """Number of valid and of test genes."""
        return round(self.genes * self.valid_fraction), round(self.genes * self.test_fraction)

    def _slots_per_side(self) -> int:
        return (self.length - self.center) // 2 // self.element_width


def simulate(out_dir: str | Path, *, seed: int, **parameters: object) -> Path:
    """Writes genome.fa (.fai), H3K27ac.bw, DNase.bw, contacts.tsv, genes.csv, truth.bed, elements.bed, peaks.bed and
    params.json.

    truth.bed: the causal elements (chrom, start, end, gene_id, strength * amplitude * contact, strand of the gene);
    elements.bed: all elements (chrom, start, end, gene_id, kind); peaks.bed: those with a peak in the tracks. The same
    seed and parameters give the same files.

    Args:
        parameters: fields of ``SimulationParameters``.

    Returns:
        out_dir.

    Raises:
        UserError: impossible parameters, or the folder cannot be written.
    """
    try:
        p = SimulationParameters(seed=seed, **parameters)  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"simulate: {error}.") from error
    out = Path(out_dir)
    rng = np.random.default_rng(seed)
    genes = _place_genes(p, rng)
    elements = _place_elements(p, genes, rng)
    genes["target"] = _expression(p, genes, elements, rng)
    lengths = {chrom: (len(rows) + 1) * 2 * p.length for chrom, rows in genes.groupby("chrom", sort=False)}
    sequence = {c: _sequence(p, n, elements[elements["chrom"] == c], rng) for c, n in lengths.items()}
    tracks = {
        name: {c: _track(p, n, elements[elements["chrom"] == c], rng) for c, n in lengths.items()} for name in TRACKS
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_fasta(out / "genome.fa", sequence)
        for name, values in tracks.items():
            write_bigwig(out / f"{name}.bw", values)
        _contacts(p, genes).to_csv(out / "contacts.tsv", sep="\t", index=False, float_format="%.6g")
        genes.to_csv(out / "genes.csv", index=False, float_format="%.6f")
        columns = ["chrom", "start", "end", "gene_id"]
        elements[[*columns, "kind"]].to_csv(out / "elements.bed", sep="\t", index=False, header=False)
        has_peak = elements["kind"] != "motif_only"
        elements.loc[has_peak, columns[:3]].to_csv(out / "peaks.bed", sep="\t", index=False, header=False)
        causal = elements[elements["kind"] == "causal"].merge(genes[["gene_id", "strand"]], on="gene_id", sort=False)
        causal[[*columns, "effect", "strand"]].to_csv(
            out / "truth.bed", sep="\t", index=False, header=False, float_format="%.6g"
        )
        (out / "params.json").write_text(json.dumps(asdict(p), indent=1) + "\n")
    except (OSError, RuntimeError) as error:
        raise UserError(f"{out}: the simulated files cannot be written: {error}.") from error
    return out


def _place_genes(p: SimulationParameters, rng: np.random.Generator) -> pd.DataFrame:
    """Genes every two window lengths, TSSs in the middle of a contact bin."""
    valid, test = p.held_out()
    train = [len(part) for part in np.array_split(np.arange(p.genes - valid - test), p.chromosomes - 2)]
    counts = [*train, valid, test]
    splits = ["train"] * len(train) + ["valid", "test"]
    rows: list[tuple[str, str, int, str, float, str]] = []
    for number, (count, split) in enumerate(zip(counts, splits, strict=True), 1):
        for i in range(count):
            tss = (2 * i + 2) * p.length // p.contact_bin * p.contact_bin + p.contact_bin // 2
            rows.append((f"SIM{len(rows) + 1:06d}", f"chr{number}", tss, "+-"[rng.integers(2)], 0.0, split))
    return pd.DataFrame(rows, columns=["gene_id", "chrom", "tss", "strand", "target", "split"])


def _place_elements(p: SimulationParameters, genes: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    side = (p.length - p.center) // 2
    slots = p._slots_per_side()
    rows = []
    for gene in genes.itertuples():
        counts = [int(rng.integers(low, high + 1)) for low, high in (p.causal, p.peak_only, p.motif_only)]
        kinds = rng.permutation(np.repeat(KINDS, counts))
        left = int((rng.permutation(2 * slots)[: len(kinds)] < slots).sum())
        start = gene.tss - p.length // 2
        right = start + p.length - side
        places = [*_spread(left, start, side, p, rng), *_spread(len(kinds) - left, right, side, p, rng)]
        for kind, place in zip(kinds, places, strict=True):
            amplitude = rng.uniform(*p.amplitude) if kind != "motif_only" else 0.0
            rows.append((gene.chrom, place, place + p.element_width, gene.gene_id, str(kind), amplitude, gene.tss))
    table = pd.DataFrame(rows, columns=["chrom", "start", "end", "gene_id", "kind", "amplitude", "tss"])
    distance = ((table["start"] + table["end"]) / 2 - table["tss"]).abs()
    contact = np.exp(-distance / p.contact_decay)
    table["effect"] = np.where(table["kind"] == "causal", p.strength * table["amplitude"] * contact, 0.0)
    return table


def _spread(count: int, start: int, room: int, p: SimulationParameters, rng: np.random.Generator) -> list[int]:
    """Starts of `count` elements without overlaps in [start, start + room), at random."""
    free = room - count * p.element_width
    gaps = np.sort(rng.integers(0, free + 1, size=count))
    return [int(start + gap + i * p.element_width) for i, gap in enumerate(gaps)]


def _expression(
    p: SimulationParameters, genes: pd.DataFrame, elements: pd.DataFrame, rng: np.random.Generator
) -> np.ndarray:
    total = elements.groupby("gene_id")["effect"].sum().reindex(genes["gene_id"], fill_value=0.0).to_numpy()
    return np.asarray(np.log10(1 + total) + rng.normal(0, p.noise, size=len(genes)))


def _sequence(p: SimulationParameters, length: int, elements: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Codes uint8 (length,): random bases, motif copies in causal and motif_only elements, and no accidental motif in a
    peak_only element or within an element's width of another motif (single ones elsewhere stay)."""
    codes = rng.integers(0, 4, size=length, dtype=np.uint8)
    motifs = [np.array(["ACGT".index(base) for base in motif], dtype=np.uint8) for motif in p.motifs]
    size = len(motifs[0])
    planted = np.zeros(length, dtype=bool)
    peak_only = np.zeros(length, dtype=bool)
    for element in elements.itertuples():
        if element.kind == "peak_only":
            peak_only[element.start : element.end] = True
            continue
        free = p.element_width - p.motif_copies * size
        motif = motifs[rng.integers(len(motifs)) if len(motifs) > 1 else 0]
        gaps = np.sort(rng.integers(0, free + 1, size=p.motif_copies))
        for i, gap in enumerate(gaps):
            at = element.start + int(gap) + i * size
            codes[at : at + size] = motif if rng.integers(2) else _COMPLEMENT[motif[::-1]]
            planted[at : at + size] = True
    while True:
        sites = np.unique(np.concatenate([find_motif(codes, motif) for motif in p.motifs]))
        accidental = sites[~planted[sites] | ~planted[sites + size - 1]]
        close = np.diff(sites, prepend=-length, append=2 * length) <= p.element_width
        near = (close[:-1] | close[1:])[np.searchsorted(sites, accidental)]
        bad = accidental[near | peak_only[accidental] | peak_only[accidental + size - 1]]
        if not len(bad):
            return codes
        changed = bad[:, None] + np.arange(size)[None, :]
        changed = changed[~planted[changed]]
        codes[changed] = rng.integers(0, 4, size=len(changed), dtype=np.uint8)


def find_motif(codes: np.ndarray, motif: str) -> np.ndarray:
    """Sorted starts of the motif on either strand in codes (length,)."""
    forward = np.array(["ACGT".index(base) for base in motif], dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(codes, len(forward))
    hit = np.zeros(len(windows), dtype=bool)
    for pattern in (forward, _COMPLEMENT[forward[::-1]]):
        match = np.ones(len(windows), dtype=bool)
        for i, base in enumerate(pattern):
            match &= windows[:, i] == base
        hit |= match
    return np.flatnonzero(hit)


def _track(p: SimulationParameters, length: int, elements: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """float64 (length,): peaks with rounded shoulders on |normal| noise, to three decimals (enough for float16)."""
    values = np.abs(rng.normal(0, p.track_noise, size=length))
    x = (np.arange(p.element_width) + 0.5) / p.element_width
    shape = np.clip(np.minimum(x, 1 - x) * 8, 0, 1)
    peaks = elements[elements["amplitude"] > 0]
    heights = peaks["amplitude"].to_numpy() * rng.lognormal(0, p.track_jitter, size=len(peaks))
    for start, height in zip(peaks["start"], heights, strict=True):
        values[start : start + p.element_width] += height * shape
    return np.round(values, 3)


def _contacts(p: SimulationParameters, genes: pd.DataFrame) -> pd.DataFrame:
    """One line per TSS and bin within a window length of it."""
    steps = np.arange(-(-p.length // p.contact_bin), dtype=np.int64)
    steps = np.concatenate([-steps[:0:-1], steps])
    own = np.repeat(genes["tss"].to_numpy() // p.contact_bin, len(steps))
    other = own + np.tile(steps, len(genes))
    return pd.DataFrame(
        {
            "chrom": np.repeat(genes["chrom"].to_numpy(), len(steps)),
            "bin1": np.minimum(own, other) * p.contact_bin,
            "bin2": np.maximum(own, other) * p.contact_bin,
            "contact": np.exp(-np.abs(other - own) * p.contact_bin / p.contact_decay),
        }
    )
