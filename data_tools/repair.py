"""Mending a damaged store: what fails its checksums is built again from the recorded sources, and nothing else.

A repair is a build into a folder of its own that finds all intact arrays finished; the files it makes then replace
those of the store one by one, each atomically. A killed repair is taken up by the same call.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import zarr

from seq2exp.data_tools.arrays import ChunkCache, ChunkedArray
from seq2exp.data_tools.build import build, build_state
from seq2exp.data_tools.config import BuildConfig
from seq2exp.data_tools.official import OfficialConfig
from seq2exp.data_tools.store import partial_path, read_header, whole_array
from seq2exp.data_tools.workspace import Workspace
from seq2exp.errors import UserError

log = logging.getLogger(__name__)


def find_damage(path: str | Path) -> dict[str, list[str]]:
    """Reads everything in a store once: array -> what is wrong with it, a sentence for each chunk.

    Raises:
        UserError: no store, or one whose header cannot be read.
    """
    path = Path(path)
    header = read_header(path)
    damage = {
        name: _damage(path / name, f"rebuild it with `seq2exp data repair {path}`") for name in _long_arrays(header)
    }
    group = zarr.open_group(path, mode="r")
    for name in _short_arrays(path, header):
        try:
            whole_array(group, name)
        except (OSError, KeyError, ValueError) as error:
            damage[name] = [f"{path}: {error}"]
    return {name: sentences for name, sentences in damage.items() if sentences}


def repair_store(path: str | Path, *, progress: bool = False) -> dict[str, list[str]]:
    """Builds the damaged arrays of a store again; what was wrong, as ``find_damage`` says it.

    Raises:
        UserError: as ``find_damage``; a source that is not where it was or has changed; disk full.
    """
    path = Path(path).absolute()
    damage = find_damage(path)
    for sentence in (sentence for sentences in damage.values() for sentence in sentences):
        log.warning("%s", sentence)
    made = path.with_name(f"{path.name}.repair")
    if not all((made / name).exists() for name in damage):
        shutil.rmtree(made, ignore_errors=True)
        _build_again(read_header(path), made, set(damage), progress)
    for name in damage:
        _replace(made / name, path / name)
    shutil.rmtree(made, ignore_errors=True)
    return damage


def _build_again(header: dict[str, Any], made: Path, damaged: set[str], progress: bool) -> None:
    """Makes a store at `made` that lacks the long arrays that are intact."""
    config = _config(header, made)
    if config.fasta.is_dir():  # its files may be the damaged ones
        repair_store(config.fasta, progress=progress)
    for role, file in config.sources().items():
        if not file.exists():
            raise UserError(f"{file}: is not there any more, and the store was built from it ({role}).")
    _, state = build_state(config)
    for role, digest in header["build"]["sha256"].items():
        if state["sha256"].get(role) != digest:
            file = header["sources"][role]["path"]
            raise UserError(f"{file}: has changed since the store was built from it; build the whole store again.")
    Workspace(partial_path(made), state).keep(set(_long_arrays(header)) - damaged)
    build(config, progress=progress)


def _config(header: dict[str, Any], out: Path) -> BuildConfig:
    """The configuration that built the store, its files where they were then."""
    fields, folder = header["build"]["config"], Path(header.get("folder", ""))
    kind = OfficialConfig if "cell_type" in fields else BuildConfig
    config = kind.model_validate(fields | {"out": out})
    moved: dict[str, Any] = {name: folder / value for name, value in config if isinstance(value, Path)}
    moved["track"] = {name: folder / file for name, file in config.track.items()}
    if config.contacts not in (None, "powerlaw"):
        moved["contacts"] = str(folder / str(config.contacts))
    return config.model_copy(update=moved)


def _replace(made: Path, damaged: Path) -> None:
    """Puts the files of one array in the place of another's, each at one stroke."""
    files = {file.relative_to(made) for file in made.rglob("*") if file.is_file()}
    for file in files:
        (damaged / file).parent.mkdir(parents=True, exist_ok=True)
        (made / file).replace(damaged / file)
    for file in [file for file in damaged.rglob("*") if file.is_file()]:
        if file.relative_to(damaged) not in files:
            file.unlink()


def _damage(array: Path, remedy: str) -> list[str]:
    try:
        return list(ChunkedArray(array, ChunkCache(0), remedy).damage())
    except UserError as error:
        return [str(error)]


def _long_arrays(header: dict[str, Any]) -> list[str]:
    tracks = [f"tracks/{name}" for name in header["tracks"]]
    return [f"{kind}/{chrom}" for kind in ("sequence", *tracks) for chrom in header["chromosomes"]]


def _short_arrays(path: Path, header: dict[str, Any]) -> list[str]:
    names = [f"genes/{number}" for number in range(len(header["gene_columns"]))]
    names += [f"{role}/{c}" for role in header["regions"] for c in header["chromosomes"] if (path / role / c).exists()]
    return [*names, *(["contacts"] if header["contacts"] else [])]
