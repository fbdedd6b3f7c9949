"""The published dataset's folder, written in small in its exact layout."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from seq2exp.data_tools.bigwig import write_bigwig
from seq2exp.data_tools.fasta import write_fasta
from seq2exp.data_tools.official import MRNA_FEATURES

LENGTHS = {"chr1": 60_000, "chrX": 40_000}
HALF = 10_000  # bases of contacts on each side of a TSS
# Ensembl id, name, chromosome, TSS, strand, fold_11; two of them nearer than HALF to an end of their chromosome
GENES = [
    ("ENSG01", "AAA", "chr1", 20_123, "+", "train"),
    ("ENSG02", "BBB", "chr1", 33_333, "-", "train"),
    ("ENSG03", "CCC", "chr1", 57_001, "+", "valid"),
    ("ENSG04", "DDD", "chrX", 3_000, "-", "test"),
    ("ENSG05", "EEE", "chrX", 20_000, "-", "train"),
]
INTER = "promo_enhan_inter"
LISTS = {
    "K562": "K562_DNase_ENCFF257HEE_hic_4DNFITUOMFUQ_1MB_ABC_nominated/DNase_ENCFF257HEE_Neighborhoods/GeneList.txt",
    "GM12878": (
        "GM12878_DNase_ENCFF020WZB_hic_4DNFI1UEG1HD_1MB_ABC_nominated/DNase_ENCFF020WZB_Neighborhoods/GeneList.txt"
    ),
    "H1": "H1_ABC/Neighborhoods/GeneList.txt",
}
BIGWIGS = {"K562": ("ENCFF465GBD", "ENCFF414OGC"), "GM12878": ("ENCFF798KYP", "ENCFF960FMM"), "H1": ("X", "Y")}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def bins_of(gene: tuple[Any, ...]) -> np.ndarray:
    """The contacts of every 5 kb bin of the gene's chromosome, float64 (bins,)."""
    return np.random.default_rng(gene[3]).gamma(2.0, 30.0, LENGTHS[gene[2]] // 5_000)


def base_contacts(gene: tuple[Any, ...]) -> np.ndarray:
    """One value per base of TSS +- HALF, cut at the chromosome's ends."""
    _, _, chrom, tss, *_ = gene
    return np.repeat(bins_of(gene), 5_000)[max(tss - HALF, 0) : min(tss + HALF, LENGTHS[chrom])]


def write_contacts(root: Path, cell: str, change: Callable[[str, np.ndarray], np.ndarray] = lambda _, v: v) -> None:
    import h5py

    for chrom in LENGTHS:
        path = root / INTER / "HiC" / cell / f"hic_feat_{chrom}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for gene in GENES:
                if gene[2] == chrom:
                    file[f"{chrom}_{gene[3]}"] = change(gene[0], base_contacts(gene))


def masks() -> dict[str, dict[str, np.ndarray]]:
    found = {name: {c: np.zeros(n, bool) for c, n in LENGTHS.items()} for name in ("exclude", "include")}
    found["exclude"]["chr1"][:50] = found["exclude"]["chr1"][20_000:20_010] = found["exclude"]["chrX"][-1] = True
    found["include"]["chrX"][2_900:3_100] = True
    return found


def write_layout(root: Path, cell: str = "K562") -> Path:
    """Everything the published loader reads for one cell type."""
    rng = np.random.default_rng(1)
    (root / "hg38").mkdir(parents=True)
    write_fasta(root / "hg38" / "hg38.ml.fa", {c: rng.integers(0, 4, n, dtype=np.uint8) for c, n in LENGTHS.items()})
    signals = [
        root / INTER / kind / cell / f"{acc}.bigWig"
        for kind, acc in zip(("H3K27ac", "DNase-seq"), BIGWIGS[cell], strict=True)
    ]
    for path in signals:
        path.parent.mkdir(parents=True)
        write_bigwig(path, {c: rng.gamma(1.0, 1.0, n).round(2) for c, n in LENGTHS.items()})
    peaks = {c: np.zeros(n) for c, n in LENGTHS.items()}
    peaks["chr1"][20_050:20_150] = 1
    path = root / INTER / "DNase-seq" / cell / "peaks" / "peaks_bigWig" / "macs3.bigWig"
    path.parent.mkdir(parents=True)
    write_bigwig(path, peaks)
    symbol = 1 if cell == "H1" else 0
    lines = ["chr\tstart\tend\tname\tscore\tstrand\tsymbol\ttss\tH3K27ac.RPM.TSS1Kb\tDHS.RPM.TSS1Kb"]
    for number, gene in enumerate(GENES):
        fields = (gene[2], 0, 9, gene[symbol], 0, gene[4], gene[symbol], gene[3], number + 1, 4.0)
        lines.append("\t".join(map(str, fields)))
    write(root / INTER / LISTS[cell], "\n".join(lines) + "\n")
    features = ",".join(MRNA_FEATURES)
    values = [
        f"{g[0]},{n},{100 * n},{n / 10},{n / 20}," + ",".join(str(n + f / 10) for f in range(8))
        for n, g in enumerate(GENES)
    ]
    header = f"ENSID,Gene stable ID number,K562_CAGE_128*3_sum,GM12878_CAGE_128*3_sum,Actual_{cell},{features}"
    write(root / INTER / "GM12878_K562_18377_gene_expr_fromXpresso.csv", "\n".join([header, *values]) + "\n")
    rows = [f"{g[0]},{g[2].removeprefix('chr')},train,{g[5]},{g[1]}" for g in GENES]
    rows.append("ENSG99,7,train,train,ZZZ")  # in no other table
    split = root / INTER / "leave_chrom_out_crossvalidation_split_18377genes.csv"
    write(split, "\n".join(["ENSID,chrom,fold_1,fold_11,Gene name", *rows]) + "\n")
    write(root / "chr_length.json", json.dumps({"hg38": LENGTHS}))
    for name, file in (("exclude", "hg38_blacklist_dict_v1.pkl"), ("include", "hg38_includelist_dict.pkl")):
        (root / file).write_bytes(pickle.dumps(masks()[name]))
    write_contacts(root, cell)
    return root
