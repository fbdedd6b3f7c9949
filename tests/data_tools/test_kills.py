"""Builders, import and repair killed at random changes of the file system: resumable or finished, never wrong."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killed
import psutil
import pytest
from official_layout import write_layout

from seq2exp.data_tools import build_store, find_damage, open_store, repair_store
from seq2exp.data_tools.store import partial_path
from seq2exp.errors import UserError

from .conftest import simulation_fields

TRIALS = 5


def contents(path: Path) -> dict[Path, bytes]:
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def refused_or_whole(out: Path, expected: dict[Path, bytes]) -> None:
    """What a reader sees after a kill: no store, said in one sentence, or all of it."""
    try:
        open_store(out)
    except UserError as error:
        assert "run the command that began it again" in str(error) or "no such store" in str(error)
        assert not out.exists()
    else:
        found = contents(out)
        found.pop(Path("build.json"), None)
        assert found == expected


def killed_twice_then_finished(call: Callable[[Path], tuple[Any, ...]], out: Path, rng: random.Random) -> None:
    """Each trial: killed at a random change, the same call killed again, and then left alone.

    call: where to -> function and arguments.
    """
    function, *arguments = call(out)
    was_killed, changes = killed.run(function, *arguments)
    assert not was_killed and changes > 30
    expected = contents(out)
    kills = 0
    for trial in range(TRIALS):
        shutil.rmtree(out)
        for most in (changes, changes // 2):
            at = rng.randint(1, most)
            kills += killed.run(function, *arguments, kill_at=at, delay=rng.choice([0, 0.002]))[0]
            refused_or_whole(out, expected)
        function(*arguments)
        assert contents(out) == expected, f"trial {trial}"
        assert not partial_path(out).exists()
    assert kills > TRIALS


def test_builder(inputs, tmp_path):
    (tmp_path / "ex.bed").write_text("chr1\t505\t600\n")
    more = {"contacts": str(tmp_path / "contacts.tsv"), "contact_reach": 40, "exclude": tmp_path / "ex.bed"}
    killed_twice_then_finished(
        lambda out: (killed.build, {**inputs, **more, "out": out}), tmp_path / "store.zarr", random.Random(1)
    )


def test_builder_with_a_shared_sequence(inputs, tmp_path):
    first = build_store(**{**inputs, "out": tmp_path / "first.zarr"}).path
    killed_twice_then_finished(
        lambda out: (killed.build, {**inputs, "fasta": first, "out": out}), tmp_path / "store.zarr", random.Random(2)
    )
    assert not find_damage(first)


def test_import(tmp_path):
    pytest.importorskip("h5py")
    root = write_layout(tmp_path / "data")
    killed_twice_then_finished(lambda out: (killed.import_small, root, out), tmp_path / "store.zarr", random.Random(3))


def test_repair(inputs, tmp_path):
    """What was intact stays so at any moment, and the same command mends the rest."""
    path = build_store(**inputs, contacts=str(tmp_path / "contacts.tsv"), contact_reach=40).path
    whole = contents(path)
    damaged = {"sequence/chr1", "tracks/DNase/chr2", "contacts", "genes/1"}
    rng = random.Random(4)

    def spoil() -> None:
        for name in damaged:
            file = max((path / name / "c").rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
            file.write_bytes(file.read_bytes()[:-3])

    spoil()
    _, changes = killed.run(repair_store, path)
    assert changes > 30 and contents(path) == whole
    kills = 0
    for _ in range(TRIALS):
        spoil()
        for most in (changes, changes // 2):
            kills += killed.run(repair_store, path, kill_at=rng.randint(1, most), delay=rng.choice([0, 0.002]))[0]
            assert set(find_damage(path)) <= damaged
            assert all(contents(path)[name] == data for name, data in whole.items() if not of(name, damaged))
        repair_store(path)
        assert contents(path) == whole
        assert not [other for other in tmp_path.iterdir() if "repair" in other.name]
    assert kills > TRIALS


def of(name: Path, arrays: set[str]) -> bool:
    return any(name.is_relative_to(array) for array in arrays)


def test_workers_end_with_a_killed_build(simulated, store, tmp_path):
    """SIGKILL while two workers write: none of them goes on, and the same call finishes the store."""
    fields = {**simulation_fields(simulated), "out": tmp_path / "killed.zarr"}
    process = killed.start(killed.build, fields | {"workers": 2})
    noted = tmp_path / "killed.zarr.partial" / "build.json"
    while not noted.exists() or not json.loads(noted.read_text())["finished"]:
        time.sleep(0.01)
        assert process.is_alive()
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert len(gone) >= 2 and not alive
    assert build_store(**fields).genes.equals(store.genes)
