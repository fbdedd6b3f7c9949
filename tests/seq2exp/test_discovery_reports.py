"""`seq2exp discover` with overlaps and reports: what is written, for soft and hard models, and what is refused."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

GENES = ["SIM000050", "SIM000052"]  # two of the test genes
BOTH = [part for gene in GENES for part in ("--gene", gene)]


@pytest.fixture(scope="module")
def sets(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The elements of the simulation as a table of tested pairs, and the causal ones on chromosomes without chr."""
    folder = tmp_path_factory.mktemp("sets")
    names = ["chrom", "start", "end", "gene", "kind"]
    elements = pd.read_csv(simulated / "elements.bed", sep="\t", names=names)
    elements["Regulated"] = (elements.pop("kind") == "causal").map({True: "TRUE", False: "FALSE"})
    elements.to_csv(folder / "tested.bed.gz", sep="\t", index=False)
    causal = elements[elements["Regulated"] == "TRUE"]
    causal.assign(chrom=causal["chrom"].str[3:])[names[:3]].to_csv(
        folder / "causal.bed", sep="\t", index=False, header=False
    )
    (folder / "other.bed").write_text("scaffold_1\t5\t9\n")
    (folder / "two.bed").write_text("chr1\t5\n")
    return {path.name.split(".")[0]: path for path in folder.iterdir()}


class _Page(HTMLParser):
    """Cells of the tables, sources of pictures, links, and the tags that are still open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cells, self.sources, self.links, self.open = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.sources += [found["src"]] if "src" in found else []
        self.links += [found["href"]] if "href" in found else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data.strip())


def test_elements_overlaps_and_reports(seq2exp, trained, sets, tmp_path):
    out = tmp_path / "out"
    code, said, err = seq2exp(
        "discover", trained, "--split", "test", "--out", out, "--report", *BOTH,
        "--merge-distance", 4, "--min-width", 3,
        "--overlap", f"tested={sets['tested']}", "--overlap", f"causal={sets['causal']}", "--shuffles", 50,
    )  # fmt: skip
    assert code == 0, err
    for told in ("causal: its 1 is taken for chr1", "tested: compared gene by gene", "mean soft mask", "a constant"):
        assert told in said
    elements = pd.read_csv(out / "elements.csv", keep_default_na=False)
    assert elements["name"].is_unique and (elements["end"] - elements["start"] >= 3).all()
    assert (elements["mean_mask"] <= elements["max_mask"]).all() and elements["selected"].between(0, 1).all()
    _check_overlaps(elements, pd.read_csv(sets["tested"], sep="\t"), pd.read_csv(out / "overlap.csv"))

    assert elements["gene_id"].nunique() > 2  # all are looked at, those asked for are drawn
    assert sorted(p.name for p in (out / "reports").iterdir()) == [f"{gene}.html" for gene in GENES] + ["index.html"]
    assert {f"{gene}.png" for gene in GENES} <= {path.name for path in out.iterdir()}
    index = _Page(out / "reports" / "index.html")
    assert not index.open and sorted(index.links) == [f"{gene}.html" for gene in GENES]
    for gene in GENES:
        _check_page(out / "reports" / f"{gene}.html", elements[elements["gene_id"] == gene])
    pairs = pd.read_csv(out / "pairs_tested.csv")
    assert pairs["gene_id"].isin(elements["gene_id"]).all() and set(pd.read_csv(out / "pairs.csv")["score"]) == {
        "mean_mask", "activity", "abc", "nearness"
    }  # fmt: skip


def _check_overlaps(elements: pd.DataFrame, tested: pd.DataFrame, table: pd.DataFrame) -> None:
    """The named overlaps are those found by comparing every element with every causal one."""
    causal = tested[tested["Regulated"]]
    for element in elements.itertuples():
        near = causal[
            (causal["chrom"] == element.chrom) & (causal["start"] < element.end) & (causal["end"] > element.start)
        ]
        named = set(filter(None, element.overlaps.split(";")))
        assert ("causal" in named) == (len(near) > 0)
        assert ("tested" in named) == (near["gene"] == element.gene_id).any()
    rows = table[(table["calls"] == "mask") & (table["measure"] == "elements")].set_index("set")
    assert rows.loc["causal", "overlapping"] == elements["overlaps"].str.contains("causal").sum()
    assert (rows["called"] == len(elements)).all() and rows["p"].between(0.0196, 1).all()


def _check_page(path: Path, elements: pd.DataFrame) -> None:
    """One file without links elsewhere; the table holds the gene's elements by mean mask."""
    page = _Page(path)
    assert not page.open and not page.links and len(page.sources) == 1
    kind, data = page.sources[0].split(",", 1)
    assert kind == "data:image/png;base64" and base64.b64decode(data)[:4] == b"\x89PNG"
    assert not re.search(r"https?://|@import|url\(", path.read_text())
    best = elements.sort_values("mean_mask", ascending=False, kind="stable").head(10)
    positions = [cell for cell in page.cells if re.fullmatch(r"chr\w+:[\d,]+-[\d,]+", cell)]
    assert len(positions) == len(best)
    assert set(positions) == {f"{r.chrom}:{r.start + 1:,}-{r.end:,}" for r in best.itertuples()}


def test_a_hard_model_calls_the_bases_it_reads(seq2exp, settings, write_yaml, sets, tmp_path):
    model = settings["model"] | {"preset": "hard"}
    assert seq2exp("train", write_yaml(settings | {"steps": 1, "model": model}), "--out", tmp_path / "run")[0] == 0
    arguments = ["--min-width", 1, "--report", "--gene", "SIM000050", "--overlap", f"tested={sets['tested']}"]
    code, _, err = seq2exp("discover", tmp_path / "run", *arguments)
    assert code == 0, err
    page = (tmp_path / "run" / "discovery" / "reports" / "SIM000050.html").read_text()
    assert "hard mask" in page and "<dd>target</dd>" in page and "soft mask at least 0.5" in page
    elements = pd.read_csv(tmp_path / "run" / "discovery" / "elements.csv")
    assert (elements["max_mask"] >= 0.5).all()


def test_the_peaks_of_the_store_are_compared_with(seq2exp, trained, tiny_store, simulated, tmp_path):
    from seq2exp.data_tools import build_store, open_store

    genes = open_store(tiny_store).genes[["gene_id", "chrom", "tss", "strand", "target", "split"]]
    genes.to_csv(tmp_path / "genes.csv", index=False)
    build_store(
        fasta=simulated / "genome.fa", track={n: simulated / f"{n}.bw" for n in ("H3K27ac", "DNase")},
        contacts=str(simulated / "contacts.tsv"), genes=tmp_path / "genes.csv", target="target", split="split",
        peaks=simulated / "truth.bed", out=tmp_path / "store.zarr",
    )  # fmt: skip
    stored = open_store(tmp_path / "store.zarr").intervals("peaks")
    assert (len(stored), int((stored["end"] - stored["start"]).sum())) == open_store(
        tmp_path / "store.zarr"
    ).region_size("peaks")
    arguments = ["--store", tmp_path / "store.zarr", "--out", tmp_path / "out", "--min-width", 2, "--shuffles", 20]
    assert seq2exp("discover", trained, *arguments)[0] == 0
    assert set(pd.read_csv(tmp_path / "out" / "overlap.csv")["set"]) == {"peaks"}
    code, _, err = seq2exp("discover", trained, *arguments, "--overlap", f"peaks={simulated / 'truth.bed'}")
    assert code == 2 and "the store's own peaks have that name" in err


MISTAKES = {
    "--overlap {tested}": "--overlap takes NAME=file.bed",
    "--overlap a={causal} --overlap a={tested}": "the name 'a' is given twice",
    "--overlap a={other}": "no chromosome in common with the store",
    "--overlap a={two}": "line 1 is not BED",
    "--overlap a={two}.absent": "no such file",
    "--threshold 1.0": "no element was called",
    "--threshold 0.5 --top 0.2": "not both",
    "--shuffles 0": "--shuffles",
    "--min-width 0": "minimum length at least 1",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_one_sentence(seq2exp, trained, sets, tmp_path, arguments):
    words = arguments.format(**sets).split()
    code, _, err = seq2exp("discover", trained, "--split", "test", "--out", tmp_path, *words)
    assert code == 2 and err.count("\n") == 1 and MISTAKES[arguments] in err
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
