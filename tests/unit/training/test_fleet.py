"""Students that are trained together equal those that are trained alone, whatever befalls the others."""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from kdpipe import dataset
from kdpipe.errors import DeviceError, DivergedError, KdpipeError, RunError
from kdpipe.testing.doubles import Dropping, IndexedTargets, Starving, StopAfter, differences, small_network
from kdpipe.training.checkpoint import State, before
from kdpipe.training.evaluation import Validation
from kdpipe.training.loop import Cost, train_together
from kdpipe.training.objective import CrossEntropy
from kdpipe.training.runs import RunDirectory
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Renderer
from tests.students import ORDER, PRESET, SETTINGS, STEPS, digits, renderer, student, taught

EPOCHS = SETTINGS.epochs
NAMES = ("plain", "dropping", "averaged", "wide")

Outcomes = dict[str, Cost | KdpipeError]

WRAPPERS: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "dropping": Dropping,
    "starving": lambda body: Starving(body, 5),
    "blind": lambda body: Starving(body, 2, training=False),  # a validation first measures a layer,
}
"""The memory of the last two does not suffice for the sixth step, or for the second validation."""


class Full(RunDirectory):
    """A run directory for whose checkpoints memory does not suffice."""

    def save_checkpoint(self, state: State) -> None:
        raise MemoryError


class Fleet:
    """Makes students by their names, with all that they share, and trains them in a folder of their own."""

    def __init__(self, folder: Path, *, images: Callable[[int], Renderer] = lambda size: renderer(size=size)) -> None:
        self.folder, self._images = folder, images
        self._held_out = renderer(digits(60, "test"), "none")

    def run(self, name: str) -> RunDirectory:
        return (Full if name == "unsaved" else RunDirectory)(self.folder / name)

    def __call__(
        self, *names: str, resume: bool = False, stop_after: int = 0, width: int = 8, **others: Any
    ) -> Outcomes:
        images = {size: self._images(size) for size in (16, 8)}
        students = [self._student(name, images, width) for name in names]
        trained = train_together(
            students,
            IndexedTargets(10),
            order=ORDER,
            resume=resume,
            should_stop=StopAfter(stop_after),
            **others,
        )
        return dict(zip(names, trained, strict=True))

    def _student(self, name: str, images: dict[int, Renderer], width: int) -> Student:
        size = 8 if name == "wide" else 16
        network = small_network(width=width, seed=len(name))
        validated = name in ("averaged", "blind")
        torch.manual_seed(len(name))
        made = student(
            self.folder / name,
            WRAPPERS.get(name, lambda body: body)(network),
            objective=CrossEntropy(PRESET) if name == "averaged" else taught(),
            images=images[size],
            settings=SETTINGS.but(
                lr=1e18 if name == "wild" else 0.05, ema=0.9 if name in ("averaged", "wild", "blind") else None
            ),
            validation=Validation(self._held_out, preset=PRESET) if validated else None,
        )
        return replace(made, run=self.run(name))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Every student trained by itself."""
    made = Fleet(tmp_path_factory.mktemp("alone"))
    for name in NAMES:
        assert isinstance(made(name)[name], Cost)
    return made


def _assert_alike(fleet: Fleet, alone: Fleet, *names: str) -> None:
    """Compare all that the last checkpoints hold: weights, optimizer, average, generator, history."""
    for name in names:
        assert not differences(fleet.run(name).load_checkpoint(), alone.run(name).load_checkpoint(), name)


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1], ("wide", "plain"), ("averaged", "dropping")])
def test_each_equals_itself_alone(fleet: Fleet, alone: Fleet, names: tuple[str, ...]) -> None:
    assert all(isinstance(cost, Cost) for cost in fleet(*names).values())
    _assert_alike(fleet, alone, *names)


def test_streamed_images(alone: Fleet, tmp_path: Path) -> None:
    streamed = dataset.load("digits", "train", 200, loading="stream")
    fleet = Fleet(tmp_path, images=lambda size: renderer(streamed, size=size))
    with pytest.raises(RunError, match="step 3 of epoch 1"):
        fleet("dropping", "wide", stop_after=3)
    fleet("dropping", "wide", resume=True)
    _assert_alike(fleet, alone, "dropping", "wide")


class Counting(Renderer):
    """A renderer that counts the images of each batch."""

    counts: ClassVar[list[int]] = []

    def __call__(self, indices: Any, view: int) -> torch.Tensor:
        self.counts.append(len(indices))
        return super().__call__(indices, view)


def test_images_are_rendered_once(tmp_path: Path) -> None:
    def images(size: int) -> Renderer:
        return Counting(digits(), "crop-flip", seed=0, geometry=Geometry(size, size, "bilinear"))

    fleet = Fleet(tmp_path, images=images)
    fleet("plain")
    by_one = list(Counting.counts)
    Counting.counts.clear()
    fleet("plain", "dropping", "another")
    assert sum(by_one) == EPOCHS * 200
    assert Counting.counts == by_one


REASONS = {
    "wild": "is not finite",
    "starving": "cpu ran out of memory at a batch size of 32; 8 fit",
    "blind": "cpu ran out of memory in the validation of epoch 2. {checkpoint} holds the end of epoch 1; free some",
    "unsaved": "cpu ran out of memory making a checkpoint of the end of epoch 1. There is no checkpoint yet; free some",
}


@pytest.mark.parametrize(("failing", "place"), [*((name, 3) for name in REASONS), ("starving", 0), ("blind", 0)])
def test_a_student_that_fails_leaves_the_others_as_they_are(
    fleet: Fleet, alone: Fleet, failing: str, place: int
) -> None:
    said: list[str] = []
    names = (*NAMES[:place], failing, *NAMES[place:])
    trained = fleet(*names, say=said.append)
    assert [name for name in names if not isinstance(trained[name], Cost)] == [failing]
    assert isinstance(trained[failing], DivergedError if failing == "wild" else DeviceError)
    assert REASONS[failing].format(checkpoint=fleet.run(failing).checkpoint) in str(trained[failing])
    assert said == [f"{fleet.run(failing).path} is left out: {trained[failing]}"]
    assert fleet.run(failing).failure() == str(trained[failing])
    _assert_alike(fleet, alone, *NAMES)

    again = fleet(*names, resume=True)
    assert str(again[failing]) == str(trained[failing])
    assert not any(fleet.run(name).failure() for name in NAMES)
    _assert_alike(fleet, alone, *NAMES)


@pytest.mark.parametrize("failing", REASONS)
def test_a_single_one_that_fails_says_so_itself(fleet: Fleet, failing: str) -> None:
    failure = fleet(failing)[failing]
    assert isinstance(failure, DivergedError if failing == "wild" else DeviceError)
    assert REASONS[failing].format(checkpoint=fleet.run(failing).checkpoint) in str(failure)
    assert fleet.run(failing).failure() is None


def _held() -> int:
    """Return the bytes of all tensors that something holds on to."""
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    return sum({each.data_ptr(): each.untyped_storage().nbytes() for each in tensors if not each.is_meta}.values())


@pytest.mark.parametrize("failing", REASONS)
def test_a_student_that_fails_leaves_its_memory_to_the_others(fleet: Fleet, failing: str) -> None:
    """Without waiting for Python to look for circles; its weights take 307 kB, what is left are torch's generators."""
    held: list[int] = []

    @contextlib.contextmanager
    def progress(*_: Any, **__: Any) -> Iterator[Callable[[int], None]]:
        yield lambda _samples: None
        held.append(_held())

    gc.collect()
    gc.disable()
    try:
        fleet("plain", progress=progress, width=64)
        gc.collect()
        fleet("plain", failing, progress=progress, width=64)
    finally:
        gc.enable()
    assert isinstance(fleet.run(failing).failure(), str)
    assert held[-1] - held[1] < 12_000


@pytest.mark.parametrize(("failing", "steps"), [("wild", 9), ("starving", 6), ("starving", 9)])
def test_stopped_beside_one_that_failed(fleet: Fleet, alone: Fleet, failing: str, steps: int) -> None:
    """Whether it failed before the stop or fails after the checkpoint that the others go back to."""
    names = ("plain", failing, "dropping")
    with pytest.raises(RunError, match="stopped at"):
        fleet(*names, stop_after=steps)
    why = fleet.run(failing).failure()
    assert why is not None
    said: list[str] = []
    trained = fleet(*names, resume=True, say=said.append)
    assert [name for name in names if not isinstance(trained[name], Cost)] == [failing]
    assert str(trained[failing]) == why
    assert said[-1].startswith("Going on from")
    _assert_alike(fleet, alone, "plain", "dropping")


def test_stopped_at_random_steps(fleet: Fleet, alone: Fleet) -> None:
    draw = random.Random(time.time_ns())
    done, resume = 0, False
    while done < EPOCHS * STEPS:
        steps = draw.randint(1, 6)
        order = draw.sample(NAMES, len(NAMES))
        stopped: Any = (
            pytest.raises(RunError, match="stopped at") if done + steps < EPOCHS * STEPS else contextlib.nullcontext()
        )
        with stopped:
            fleet(*order, resume=resume, stop_after=steps)
        done, resume = done + steps, True
    _assert_alike(fleet, alone, *NAMES)


@pytest.fixture
def halfway(fleet: Fleet) -> Fleet:
    """Stopped after ten steps, with the checkpoints of these and of the nine before."""
    with pytest.raises(RunError, match="step 3 of epoch 2"):
        fleet(*NAMES, stop_after=10, checkpoint_every=0)
    return fleet


@pytest.mark.parametrize("written", range(1, len(NAMES)))
def test_killed_between_the_checkpoints_of_two_students(halfway: Fleet, alone: Fleet, written: int) -> None:
    for name in NAMES[written:]:
        newest = halfway.run(name).checkpoint
        before(newest).replace(newest)
    said: list[str] = []
    halfway(*NAMES, resume=True, say=said.append)
    assert said[-1] == "Going on from step 2 of epoch 2."
    _assert_alike(halfway, alone, *NAMES)


def test_killed_twice_between_two_checkpoints(halfway: Fleet, alone: Fleet) -> None:
    """What was ahead the first time is out of the way the second time."""
    for steps in (0, 2):
        if steps:
            with pytest.raises(RunError, match="step 4 of epoch 2"):
                halfway(*NAMES, resume=True, stop_after=steps)
        for name in NAMES[1:]:
            newest = halfway.run(name).checkpoint
            before(newest).replace(newest)
    said: list[str] = []
    halfway(*NAMES, resume=True, say=said.append)
    assert said[-1] == "Going on from step 2 of epoch 2."
    _assert_alike(halfway, alone, *NAMES)


def test_killed_within_a_checkpoint(halfway: Fleet, alone: Fleet) -> None:
    """One student has the next one, of another the newest is put aside already, and the others come after."""
    with pytest.raises(RunError, match="step 4 of epoch 2"):
        halfway("plain", resume=True, stop_after=1)
    newest = halfway.run("dropping").checkpoint
    newest.replace(before(newest))
    said: list[str] = []
    halfway(*NAMES, resume=True, say=said.append)
    assert said[-1] == "Going on from step 3 of epoch 2."
    _assert_alike(halfway, alone, *NAMES)


def test_a_damaged_checkpoint(halfway: Fleet, alone: Fleet) -> None:
    halfway.run("wide").checkpoint.write_bytes(b"torn")
    said: list[str] = []
    halfway(*NAMES, resume=True, say=said.append)
    assert said[-1] == "Going on from step 2 of epoch 2."
    _assert_alike(halfway, alone, *NAMES)


def test_killed_before_the_first_checkpoint_of_one(halfway: Fleet, alone: Fleet) -> None:
    for path in (halfway.run("averaged").checkpoint, before(halfway.run("averaged").checkpoint)):
        path.unlink()
    halfway(*NAMES, resume=True)
    _assert_alike(halfway, alone, *NAMES)


def test_a_student_goes_on_alone_and_with_others(halfway: Fleet, alone: Fleet) -> None:
    halfway("wide", resume=True)
    halfway("averaged", "dropping", resume=True)
    _assert_alike(halfway, alone, "wide", "averaged", "dropping")


def test_students_at_different_steps_cannot_go_on_together(halfway: Fleet) -> None:
    halfway("wide", resume=True, checkpoint_every=0)
    checkpoints = {name: halfway.run(name).checkpoint.read_bytes() for name in NAMES}
    with pytest.raises(RunError, match=r"of different steps.*or resume each alone"):
        halfway(*NAMES, resume=True)
    assert {name: halfway.run(name).checkpoint.read_bytes() for name in NAMES} == checkpoints
