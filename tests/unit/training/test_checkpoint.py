"""Two checkpoints on disk, of which one survives whatever happens to the other."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.errors import RunError
from kdpipe.training import checkpoint


def _state(number: int) -> dict[str, Any]:
    return {"number": number, "weights": torch.full((1000,), float(number))}


def _number(path: Path, said: list[str] | None = None) -> int:
    state = checkpoint.read(path, say=[].append if said is None else said.append)
    assert torch.equal(state["weights"], _state(state["number"])["weights"])
    number: int = state["number"]
    return number


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A checkpoint written three times."""
    path = tmp_path / "checkpoint.pt"
    for number in range(3):
        checkpoint.write(path, _state(number))
        assert _number(path) == number
    return path


def test_the_last_two_are_kept(three: Path) -> None:
    assert sorted(file.name for file in three.parent.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert _number(checkpoint.before(three)) == 1


@pytest.mark.parametrize("where", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("how", ["bit", "cut"])
def test_a_damaged_newest_one_falls_back(three: Path, where: float, how: str) -> None:
    content = bytearray(three.read_bytes())
    place = content.index(torch.full((1000,), 2.0).numpy().tobytes()) + int(where * 4000)
    content[place] ^= 4
    three.write_bytes(content if how == "bit" else content[:place])
    said: list[str] = []
    assert _number(three, said) == 1
    assert len(said) == 1
    assert f"{three} is damaged" in said[0]
    checkpoint.write(three, _state(5))
    assert (_number(three), _number(checkpoint.before(three))) == (5, 1)


def test_a_missing_newest_one_falls_back(three: Path) -> None:
    three.unlink()
    assert checkpoint.exists(three)
    assert _number(three) == 1


class Unwritable:
    """A value whose disk is full when it is written."""

    def __reduce__(self) -> str:
        raise OSError("no space left on device")


def test_an_error_while_writing_leaves_both(three: Path) -> None:
    with pytest.raises(OSError, match="no space"):
        checkpoint.write(three, {**_state(9), "last": Unwritable()})
    assert (_number(three), _number(checkpoint.before(three))) == (2, 1)


def test_two_damaged_ones_are_an_error(three: Path) -> None:
    for path in (three, checkpoint.before(three)):
        path.write_bytes(b"")
    with pytest.raises(RunError, match=r"no checkpoint can be read.*without --resume"):
        checkpoint.read(three, say=[].append)


def test_nothing_is_left_of_removed_ones(three: Path) -> None:
    (three.parent / ".checkpoint.pt.tmp").write_bytes(b"half")
    checkpoint.remove(three)
    assert not list(three.parent.iterdir())
    assert not checkpoint.exists(three)


_WRITER = """
import os, sys, torch
from pathlib import Path
from kdpipe.training import checkpoint
for folder in sys.argv[1:]:
    if not os.fork():
        for number in range(10_000):
            state = {"number": number, "weights": torch.full((1000,), float(number))}
            checkpoint.write(Path(folder) / "checkpoint.pt", state)
            os.write(1, f"{os.getpid()} {number}\\n".encode())
    os.wait()
"""


def test_a_kill_while_writing_leaves_the_last_one_that_was_finished(tmp_path: Path) -> None:
    """Five writers, one after the other, each killed at a random moment."""
    folders = [tmp_path / str(number) for number in range(5)]
    for folder in folders:
        folder.mkdir()
    written: dict[str, int] = {}
    killed: set[str] = set()
    draw = random.Random(time.time_ns())
    with subprocess.Popen([sys.executable, "-c", _WRITER, *folders], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            writer, number = line.split()
            written[writer] = int(number)
            if writer not in killed and int(number) >= 5:
                time.sleep(draw.uniform(0, 0.02))
                os.kill(int(writer), signal.SIGKILL)
                killed.add(writer)
    assert process.returncode == 0
    assert len(written) == 5
    for folder, last in zip(folders, written.values(), strict=True):
        assert _number(folder / "checkpoint.pt") in (last, last + 1)
