"""The place of a process among a launcher's ranks, and the turns of those of one machine."""

from __future__ import annotations

import threading

import pytest

from kdpipe.errors import ParamsError
from kdpipe.stages.ranks import Ranks, first_on_machine, launched
from kdpipe.store.settings import Part


def _launch(monkeypatch: pytest.MonkeyPatch, **place: object) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("world", ["", "0", "1", "many"])
def test_one_process_is_no_rank(monkeypatch: pytest.MonkeyPatch, world: str) -> None:
    _launch(monkeypatch, WORLD_SIZE=world, RANK=0)
    assert launched() is None


def test_the_place_that_a_launcher_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    _launch(monkeypatch, WORLD_SIZE=8, RANK=5, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4)
    assert launched() == Ranks(rank=5, world=8, local_rank=1, local_world=4)
    assert Ranks(5, 8, 1, 4).part == Part(6, 8)
    assert [Ranks(rank, 3, 0, 1).dealt("abcdefg") for rank in range(3)] == [list("adg"), list("be"), list("cf")]


def test_a_launcher_that_gives_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    _launch(monkeypatch, WORLD_SIZE=2)
    with pytest.raises(ParamsError, match="RANK is '', expected a number"):
        launched()


@pytest.mark.usefixtures("_own_cache")
def test_a_dataset_is_loaded_by_one_rank_of_a_machine_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _launch(monkeypatch, WORLD_SIZE=3, RANK=0, LOCAL_RANK=0, LOCAL_WORLD_SIZE=3)
    entered: list[int] = []
    both = threading.Barrier(2, timeout=10)

    def follow(number: int) -> None:
        with first_on_machine("images"):
            entered.append(number)
            both.wait()

    with first_on_machine("images") as touch:
        others = [threading.Thread(target=follow, args=(number,)) for number in (1, 2)]
        for each in others:
            each.start()
        for each in others:
            each.join(0.3)
        touch()
        assert entered == []
    for each in others:
        each.join(10)
    assert sorted(entered) == [1, 2]
