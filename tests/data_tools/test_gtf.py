"""Genes from a GTF and an expression table."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from seq2exp.data_tools.genes import read_genes
from seq2exp.data_tools.gtf import read_gtf
from seq2exp.errors import UserError

LENGTHS = {"chr1": 3_000, "chr2": 1_500}


def line(feature: str, start: int, end: int, strand: str, attributes: str, chrom: str = "chr1") -> str:
    return f"{chrom}\tsource\t{feature}\t{start}\t{end}\t.\t{strand}\t.\t{attributes}\n"


GTF = (
    "#!genome-build GRCh38\n"
    + line("gene", 101, 900, "+", 'gene_id "G1.3"; gene_name "ONE"; level 2;')
    + line("transcript", 151, 900, "+", 'gene_id "G1.3"; transcript_id "T1"; gene_name "ONE";')
    + line("exon", 151, 200, "+", 'gene_id "G1.3"; transcript_id "T1";')
    + line("gene", 1001, 2000, "-", 'gene_id "G2.1"; gene_name "TWO";')
    + line("transcript", 11, 500, "-", 'transcript_id "T3"; gene_id "G3";', "chr2")
    + line("transcript", 11, 700, "-", 'transcript_id "T4"; gene_id "G3";', "chr2")
    + line("gene", 5, 9, "+", 'gene_id "G4"; gene_name "SCAFFOLD";', "GL01")
    + line("gene", 5, 9, "+", 'gene_id "G1.3"; gene_name "ONE";', "chr2")
)
EXPRESSION = "gene_id\tTPM\tfold\tgc\nG3\t9\ttest\t0.5\nG1.7\t0\ttrain\t0.4\nG9\t1\ttrain\t0.1\nG4\t2\ttrain\t0.3\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "genes.gtf").write_text(GTF)
    (tmp_path / "expression.tsv").write_text(EXPRESSION)
    return tmp_path / "genes.gtf", tmp_path / "expression.tsv"


def read(files: tuple[Path, Path], **options: Any):
    return read_genes(files[1], LENGTHS, **{"target": "TPM", "split": "fold", "gtf": files[0], **options})


def test_tss_is_the_5_prime_end(files, caplog):
    genes = read_gtf(files[0])
    assert genes.loc["G1.3"].tolist() == ["ONE", "chr1", 100, "+"]
    assert genes.loc["G2.1"].tolist() == ["TWO", "chr1", 1_999, "-"]
    assert genes.loc["G3"].tolist() == ["", "chr2", 499, "-"]  # no gene line: the first transcript
    assert "1 gene ids are annotated twice" in caplog.text


def test_gzip_is_the_same(files, tmp_path):
    packed = tmp_path / "genes.gtf.gz"
    packed.write_bytes(gzip.compress(files[0].read_bytes()))
    assert read_gtf(packed).equals(read_gtf(files[0]))
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError, match="not a readable GTF file"):
        read_gtf(packed)


def test_expression_table_is_joined_by_gene_id(files, caplog):
    genes = read(files, features=["gc"], log_target=True)
    assert genes["gene_id"].tolist() == ["G3", "G1.7"]  # in the order of the expression table
    assert genes["chrom"].tolist() == ["chr2", "chr1"] and genes["tss"].tolist() == [499, 100]
    assert genes["strand"].tolist() == ["-", "+"] and genes["gene_name"].tolist() == ["", "ONE"]
    assert genes["target"].tolist() == [1.0, 0.0] and genes["split"].tolist() == ["test", "train"]
    assert genes["gc"].tolist() == [0.5, 0.4] and genes.index.tolist() == [0, 1]
    assert "1 of 4 genes are not in" in caplog.text and "(G9, ...)" in caplog.text
    assert "1 genes are on chromosomes that the FASTA lacks (GL01" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chr1\ta\tgene\t1\t5\n", "line 1 has 5 fields separated by tabs; GTF has 9"),
        (line("gene", 1, 5, ".", 'gene_id "G1";'), "line 1: G1 has the strand '.', not"),
        (line("gene", 1, 5, "+", "ID=gene:G1;Name=ONE"), "line 1: the gene has no attribute gene_id .GFF3"),
        (line("gene", 9, 5, "+", 'gene_id "G1";'), "line 1: G1 is at 9-5; positions are"),
        ("\n# a\n" + line("gene", 0, 5, "+", 'gene_id "G1";'), "line 3: G1 is at 0-5"),
        ("chr1\ta\tgene\tx\t5\t.\t+\t.\tgene_id G1;\n", "line 1: x-5 are not the start and end of G1"),
        (line("exon", 1, 5, "+", 'gene_id "G1";'), "no line of feature gene or transcript"),
        (line("gene", 1, 5, "+", 'gene_id "G7";'), r"none of its gene ids \(G3, ...\) is in .*genes.gtf \(G7, ...\)"),
        (
            line("gene", 1, 5, "+", 'gene_id "G3";', "2"),
            "none of the genes is on .*: G3 is on '2', which calls it 'chr2'",
        ),
        (line("gene", 2990, 3001, "-", 'gene_id "G3";'), "TSS of G3, 3000, is outside chr1"),
    ],
)
def test_wrong_annotations(files, text, said):
    files[0].write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read(files)
    assert str(files[0]) in str(error.value) and "\n" not in str(error.value)


def test_mistakes_name_the_line_of_the_expression_table(files):
    files[1].write_text(EXPRESSION.replace("G1.7\t0", "G1.7\thigh"))
    with pytest.raises(UserError, match=r"expression\.tsv: line 3: TPM is 'high'"):
        read(files)
    files[1].write_text(EXPRESSION.replace("G1.7\t0", "G1.7\t-2"))
    with pytest.raises(UserError, match=r"line 3: TPM is -2, and log10\(1 \+ x\) needs at least 0"):
        read(files, log_target=True)
    files[1].write_text(EXPRESSION.replace("gene_id", "id"))
    with pytest.raises(UserError, match=r"no gene_id column .*columns are id, TPM"):
        read(files)
    assert len(read(files, columns={"gene_id": "id"})) == 2
