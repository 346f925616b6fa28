"""Growth by real processes: killed, by several ranks, and by parts; the store ends as if one process had grown it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from kdpipe import open_store
from kdpipe.store.adoption import part_path
from kdpipe.store.ledger import Ledger
from kdpipe.store.verify import verify_files
from kdpipe.testing.stores import contents
from tests.conftest import Built, run_command
from tests.processes import Server

MORE = ("--data", "digits", "--limit-train", 1400, "--limit-test", 100)


def arguments(built: Built, store: Path) -> tuple[object, ...]:
    return (
        *("cache-teacher", *MORE, "--teacher", "resnet8", "--weights", built.weights, "--out", store),
        *("--views", 2, "--device", "cpu"),
    )


@pytest.fixture(scope="module")
def alone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process has grown at once."""
    store = Path(shutil.copytree(built.store, tmp_path_factory.mktemp("alone") / "logits.zarr"))
    assert run_command(None, *arguments(built, store)).code == 0
    assert open_store(store).num_samples == 1400
    return store


@pytest.fixture
def store(built: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.store, tmp_path / "logits.zarr"))


def check(store: Path, alone: Path) -> None:
    assert open_store(store).digest == open_store(alone).digest
    found, expected = contents(store), contents(alone)
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found if name != "zarr.json")
    assert [path.name for path in store.parent.iterdir()] == [store.name]


def test_killed_and_continued(built: Built, store: Path, alone: Path, commands: Server) -> None:
    before = contents(store)
    kept = 0
    for shards in (1, 2):
        process = commands.start(*arguments(built, store))
        deadline = time.monotonic() + 60
        while len(Ledger(part_path(store)).read()) < 2 * shards and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.wait()
        if open_store(store).num_samples == 200:
            assert contents(store) == before
            assert verify_files(store) == []
            assert len(Ledger(part_path(store)).read()) >= kept
            kept = len(Ledger(part_path(store)).read())
    assert run_command(None, *arguments(built, store)).code == 0
    check(store, alone)


@pytest.mark.parametrize("how", ["ranks", "parts"])
def test_grown_by_several(built: Built, store: Path, alone: Path, commands: Server, how: str) -> None:
    started = []
    for rank in range(3):
        place = {"RANK": rank, "WORLD_SIZE": 3, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 3} if how == "ranks" else {}
        with patch.dict(os.environ, {name: str(value) for name, value in place.items()}):
            part = () if how == "ranks" else ("--part", f"{rank + 1}/3")
            started.append(commands.start(*arguments(built, store), *part))
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    check(store, alone)
