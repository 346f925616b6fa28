"""What the loop says of an epoch under way, when it is asked, and that asking changes nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdpipe.errors import RunError
from kdpipe.testing.doubles import StopAfter, small_network
from kdpipe.training import fleet
from kdpipe.training.loop import train
from kdpipe.training.schedule import epoch_batches
from kdpipe.views import render
from tests.students import ORDER, PRESET, STEPS, digits, student

SHOWN = re.compile(r"loss (\S+), ce (\S+), train top-1 (\S+)%, (\S+) left of the run")


class Asking:
    """A ``Progress`` that asks for the status after every step, and lets ten seconds pass in each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.said: list[str] = []
        clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=time.perf_counter)
        monkeypatch.setattr(fleet, "time", clock)

    @contextmanager
    def __call__(
        self, what: str, total: int, unit: str = "images", status: Callable[[], str] | None = None
    ) -> Iterator[Callable[[int], None]]:
        assert status is not None

        def advance(done: int) -> None:
            self.now += 10 if done else 0
            self.said.append(status())

        yield advance


def test_it_ends_at_the_row_of_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch)
    rows: list[dict[str, float]] = []
    train(student(tmp_path / "asked", on_epoch=rows.append), order=ORDER, progress=asking)
    assert len(asking.said) == 2 * (1 + STEPS)
    assert asking.said[0] == asking.said[1 + STEPS] == ""
    for row, said in zip(rows, (asking.said[STEPS], asking.said[-1]), strict=True):
        found = SHOWN.fullmatch(said)
        assert found is not None
        assert [float(number) for number in found.groups()[:2]] == pytest.approx([row["loss"], row["ce"]], abs=5e-5)
        assert float(found[3]) == pytest.approx(100 * row["train_top1"], abs=6e-3)
    left = [SHOWN.fullmatch(said)[4] for said in asking.said if said]  # type: ignore[index]
    assert left == [f"0:{10 * steps // 60:02}:{10 * steps % 60:02}" for steps in reversed(range(2 * STEPS))]

    silent: list[dict[str, float]] = []
    train(student(tmp_path / "silent", on_epoch=silent.append), order=ORDER)
    for row, other in zip(rows, silent, strict=True):
        assert {**row, "seconds": 0, "images_per_second": 0} == {**other, "seconds": 0, "images_per_second": 0}


def test_after_a_step_it_is_that_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch)
    train(student(tmp_path), order=ORDER, progress=asking)
    rows = epoch_batches(200, batch_size=32, data_seed=3, epoch=0)[0]
    labels = torch.from_numpy(digits().labels[rows]).long()
    pixels = render(digits(), "crop-flip", seed=0, indices=rows, view=1, size=16)
    logits = small_network().train()(PRESET.normalize(pixels))
    found = SHOWN.fullmatch(asking.said[1])
    assert found is not None
    assert float(found[1]) == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)
    assert float(found[3]) == pytest.approx(100 * (logits.argmax(dim=1) == labels).float().mean().item(), abs=6e-3)


def test_a_resumed_run_reckons_with_its_own_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="stopped at step 3 of epoch 2"):
        train(student(tmp_path), order=ORDER, should_stop=StopAfter(STEPS + 3))
    asking = Asking(monkeypatch)
    before: list[list[dict[str, float]]] = []
    resumed = student(tmp_path, on_resume=lambda rows: before.append(list(rows)))
    train(resumed, order=ORDER, resume=True, progress=asking)
    assert [[row["epoch"] for row in rows] for rows in before] == [[1]]
    assert asking.said[0] == ""
    # What was done before took no time of this process, but the first call of ``advance`` did.
    assert SHOWN.fullmatch(asking.said[-1])[4] == "0:00:00"  # type: ignore[index]
    assert SHOWN.fullmatch(asking.said[1])[4] == "0:01:00"  # type: ignore[index]
