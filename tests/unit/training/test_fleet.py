"""Students that are trained together equal those that are trained alone, whatever befalls the others."""

from __future__ import annotations

import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe import dataset, models, open_store
from kdpipe.dataset import Dataset
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation
from kdpipe.distil.targets import SoftTargets, soft_targets
from kdpipe.errors import DeviceError, DivergedError, KdpipeError, RunError
from kdpipe.pairing.join import join_checked
from kdpipe.store.reader import LogitStore
from kdpipe.training.checkpoint import before
from kdpipe.training.evaluation import Validation
from kdpipe.training.loop import Cost, train_together
from kdpipe.training.optimization import Optimisation
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Schedule
from kdpipe.training.trainee import Member
from kdpipe.views import Geometry, Renderer
from tests.conftest import Built

EPOCHS, STEPS = 2, 7
NAMES = ("plain", "dropping", "averaged", "wide")

Outcomes = dict[str, Cost | KdpipeError]


class Dropping(torch.nn.Module):
    """A model that draws from torch's generator at every step."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(torch.nn.functional.dropout(images, 0.1, self.training))


class Starving(torch.nn.Module):
    """A model whose memory does not suffice at one of its forward passes, and from then on for more than 8 images."""

    def __init__(self, body: torch.nn.Module, step: int) -> None:
        super().__init__()
        self.body, self._left = body, step

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self._left -= 1
        if self._left < 0 and len(images) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return self.body(images)


class Blind(torch.nn.Module):
    """A model whose memory suffices for training and for one validation."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body, self._validations = body, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self._validations += not self.training
        if self._validations > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
        return self.body(images)


WRAPPERS: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "dropping": Dropping,
    "starving": lambda body: Starving(body, 5),
    "blind": Blind,
}


class Fleet:
    """Makes members by their names, with all that they share, and trains them in a folder of their own."""

    def __init__(self, digits: Dataset, store: LogitStore, folder: Path) -> None:
        self._digits, self._store, self.folder = digits, store, folder
        held_out, geometry = dataset.load("digits", "test", 60), Geometry(32, 32, "bilinear")
        self._held_out = Renderer(held_out, "none", seed=0, geometry=geometry)

    def run(self, name: str) -> RunDirectory:
        return RunDirectory(self.folder / name)

    def __call__(self, *names: str, resume: bool = False, stop_after: int = 0, **others: Any) -> Outcomes:
        targets = soft_targets(self._store, join_checked(self._store, self._digits))
        renderers: dict[Geometry, Renderer] = {}
        members = [self._member(name, targets, renderers) for name in names]
        asked = iter(range(1, 1000))
        trained = train_together(members, resume=resume, should_stop=lambda: next(asked) == stop_after, **others)
        return dict(zip(names, trained, strict=True))

    def _member(self, name: str, targets: SoftTargets, renderers: dict[Geometry, Renderer]) -> Member:
        torch.manual_seed(len(name))
        size = 16 if name == "wide" else None
        model = models.load("resnet8", num_classes=10, size=size, fallback_statistics=self._digits.statistics)
        module = WRAPPERS.get(name, lambda body: body)(model.module)
        geometry = Geometry.of(model.preset)
        renderers.setdefault(geometry, Renderer(self._digits, "crop-flip", seed=0, geometry=geometry, workers=1))
        lr = 1e18 if name == "wild" else 0.05
        self.run(name).path.mkdir(exist_ok=True)
        return Member(
            module,
            renderers[geometry],
            model.preset,
            Schedule(EPOCHS, 32, lr, weight_decay=5e-4, warmup_epochs=1, data_seed=3, views=2),
            None if name == "averaged" else Distillation(targets, make("kd", temperature=4.0), 0.9, 0.1),
            self.run(name),
            Optimisation(ema=0.9 if name in ("averaged", "wild", "blind") else None),
            Validation(self._held_out, preset=model.preset) if name in ("averaged", "blind") else None,
        )


@pytest.fixture(scope="module")
def loaded(built: Built) -> tuple[Dataset, LogitStore]:
    return dataset.load("digits", "train", 200), open_store(built.store)


@pytest.fixture
def fleet(loaded: tuple[Dataset, LogitStore], tmp_path: Path) -> Fleet:
    return Fleet(*loaded, tmp_path)


@pytest.fixture(scope="module")
def alone(loaded: tuple[Dataset, LogitStore], tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Every member trained by itself."""
    made = Fleet(*loaded, tmp_path_factory.mktemp("alone"))
    for name in NAMES:
        assert isinstance(made(name)[name], Cost)
    return made


def _assert_same(found: Any, expected: Any, place: str) -> None:
    """Compare two states, their tensors to the bit; times may differ."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), place
        for key in set(expected) - {"seconds", "images_per_second"}:
            _assert_same(found[key], expected[key], f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, (mine, other) in enumerate(zip(found, expected, strict=True)):
            _assert_same(mine, other, f"{place}.{number}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    else:
        assert found == expected, place


def _assert_alike(fleet: Fleet, alone: Fleet, *names: str) -> None:
    """Compare all that the last checkpoints hold: weights, optimiser, average, generator, history."""
    for name in names:
        _assert_same(fleet.run(name).load_checkpoint(), alone.run(name).load_checkpoint(), name)


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1], ("wide", "plain"), ("averaged", "dropping")])
def test_each_equals_itself_alone(fleet: Fleet, alone: Fleet, names: tuple[str, ...]) -> None:
    assert all(isinstance(cost, Cost) for cost in fleet(*names).values())
    _assert_alike(fleet, alone, *names)


def test_streamed_images(loaded: tuple[Dataset, LogitStore], alone: Fleet, tmp_path: Path) -> None:
    fleet = Fleet(dataset.load("digits", "train", 200, loading="stream"), loaded[1], tmp_path)
    with pytest.raises(RunError, match="step 3 of epoch 1"):
        fleet("dropping", "wide", stop_after=3)
    fleet("dropping", "wide", resume=True)
    _assert_alike(fleet, alone, "dropping", "wide")


def test_images_are_rendered_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    original = Renderer.__call__

    def render(renderer: Renderer, rows: Any, view: int) -> torch.Tensor:
        rendered.append(len(rows))
        return original(renderer, rows, view)

    monkeypatch.setattr(Renderer, "__call__", render)
    fleet("plain")
    by_one = list(rendered)
    rendered.clear()
    fleet("plain", "dropping", "another")
    assert rendered == by_one


REASONS = {
    "wild": "is not finite",
    "starving": "cpu ran out of memory at a batch size of 32; 8 fit",
    "blind": "cpu ran out of memory in the validation of epoch 2. {checkpoint} holds the end of epoch 1; free some",
    "unsaved": "cpu ran out of memory making a checkpoint of the end of epoch 1. There is no checkpoint yet; free some",
}


@pytest.fixture
def _unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory not suffice for the checkpoint of one member."""
    write = RunDirectory.save_checkpoint

    def save(run: RunDirectory, state: dict[str, Any]) -> None:
        if run.path.name == "unsaved":
            raise MemoryError
        write(run, state)

    monkeypatch.setattr(RunDirectory, "save_checkpoint", save)


@pytest.mark.usefixtures("_unsaved")
@pytest.mark.parametrize(("failing", "place"), [*((name, 3) for name in REASONS), ("starving", 0), ("blind", 0)])
def test_a_member_that_fails_leaves_the_others_as_they_are(
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


@pytest.mark.usefixtures("_unsaved")
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


@pytest.mark.usefixtures("_unsaved")
@pytest.mark.parametrize("failing", REASONS)
def test_a_member_that_fails_leaves_its_memory_to_the_others(fleet: Fleet, failing: str) -> None:
    """Without waiting for Python to look for cycles; its weights take 312 kB, what is left are torch's generators."""
    held: list[int] = []

    @contextlib.contextmanager
    def progress(*_: Any, **__: Any) -> Iterator[Callable[[int], None]]:
        yield lambda _samples: None
        held.append(_held())

    gc.collect()
    gc.disable()
    try:
        fleet("plain", progress=progress)
        gc.collect()
        fleet(*("plain", failing), progress=progress)
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
def test_killed_between_the_checkpoints_of_two_members(halfway: Fleet, alone: Fleet, written: int) -> None:
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
    """One member has the next one, of another the newest is put aside already, and the others come after."""
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


def test_a_member_goes_on_alone_and_with_others(halfway: Fleet, alone: Fleet) -> None:
    halfway("wide", resume=True)
    halfway("averaged", "dropping", resume=True)
    _assert_alike(halfway, alone, "wide", "averaged", "dropping")


def test_members_at_different_steps_cannot_go_on_together(halfway: Fleet) -> None:
    halfway("wide", resume=True, checkpoint_every=0)
    checkpoints = {name: halfway.run(name).checkpoint.read_bytes() for name in NAMES}
    with pytest.raises(RunError, match=r"of different steps.*or resume each alone"):
        halfway(*NAMES, resume=True)
    assert {name: halfway.run(name).checkpoint.read_bytes() for name in NAMES} == checkpoints
