"""Tables of what was found out: kills, damage, and several writers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kdpipe.dataset import load
from kdpipe.dataset.tables import Table
from tests.conftest import ROOT

from .conftest import MakeFolder, picture

KIND = np.dtype([("name", "u1", 16), ("value", "<i8")])


def entries(*pairs: tuple[int, int]) -> np.ndarray:
    found = np.zeros(len(pairs), dtype=KIND)
    found["name"][:, 3] = [name for name, _ in pairs]
    found["value"] = [value for _, value in pairs]
    return found


def content(table: Table) -> dict[int, int]:
    found = table.read()
    return dict(zip(found["name"][:, 3].tolist(), found["value"].tolist(), strict=True))


def add(table: Table, *pairs: tuple[int, int]) -> None:
    with table.saving() as save:
        save(entries(*pairs))


@pytest.fixture
def table(cache: Path) -> Table:
    return Table(cache / "digests" / "a.bin", KIND)


def test_the_newest_entry_of_a_name_counts(table: Table) -> None:
    assert content(table) == {}
    add(table, (1, 10), (2, 20))
    add(table, (2, 21), (3, 30), (3, 31))
    assert content(table) == {1: 10, 2: 21, 3: 31}


def test_it_grows_no_further_than_twice_its_names(table: Table) -> None:
    for value in range(50):
        add(table, (1, value), (2, -value))
        assert content(table) == {1: value, 2: -value}
    assert table.path.stat().st_size < 5 * (8 + 32 + 2 * KIND.itemsize)


@pytest.mark.parametrize("cut", range(1, 8 + 32 + 2 * KIND.itemsize))
def test_a_block_that_was_cut_off_is_replaced(table: Table, cut: int) -> None:
    add(table, (1, 10))
    add(table, (2, 20), (3, 30))
    table.path.write_bytes(table.path.read_bytes()[:-cut])
    assert content(table) == {1: 10}
    add(table, (4, 40))
    assert content(table) == {1: 10, 4: 40}


def test_damage_costs_what_comes_after_it(table: Table) -> None:
    for value in range(3):
        add(table, (value, value))
    whole = table.path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        table.path.write_bytes(damaged)
        assert content(table) == {value: value for value in range(place * 3 // len(whole))}


def test_what_others_could_have_written_is_replaced(table: Table) -> None:
    add(table, (1, 10))
    table.path.chmod(0o666)
    assert content(table) == {}
    add(table, (2, 20))
    assert content(table) == {2: 20}
    assert table.path.stat().st_mode & 0o777 == 0o600


def test_two_writers_add_to_one_table(table: Table) -> None:
    with table.saving() as first, Table(table.path, KIND).saving() as second:
        first(entries((1, 10)))
        second(entries((2, 20)))
    add(table, (3, 30))
    assert content(table) == {1: 10, 2: 20, 3: 30}


SLOW = """
import sys, time
from kdpipe.dataset import load, sources

now = time.time_ns
time.time_ns = lambda: now() + 3_000_000_000  # files that are just written are settled

read = sources.content_of
def slowly(path):
    time.sleep(0.02)
    return read(path)
sources.content_of = slowly
load(sys.argv[1], "train", loading="stream")
"""


def test_a_kill_loses_about_a_second_of_the_survey(
    make_folder: MakeFolder, cache: Path, settled: None, reads: list[Path]
) -> None:
    root = make_folder(classes=("ant",), count=1)
    for index in range(1, 400):
        (root / f"train/ant/{index}.png").symlink_to(root / "train/ant/0.png")
    command = [sys.executable, "-c", SLOW, f"folder:{root}"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/pipeline"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        (table,) = _wait_for(cache / "digests")
        while table.stat().st_size < 30 * 73 and process.poll() is None:
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    load(f"folder:{root}", "train", loading="stream")
    assert len(reads) < 400 - 30 + 10
    reads.clear()
    picture(7).save(root / "train/ant/new.png")
    load(f"folder:{root}", "train", loading="stream")
    assert reads == [root / "train/ant/new.png"]


def _wait_for(folder: Path) -> list[Path]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if folder.is_dir() and (found := list(folder.glob("*.bin"))):
            return found
        time.sleep(0.02)
    raise AssertionError(f"nothing was written to {folder}")
