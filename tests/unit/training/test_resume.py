"""A run that is stopped after any step and resumed equals one that was not, whatever its soft targets come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe import dataset, models, open_store
from kdpipe.dataset import Dataset
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation
from kdpipe.distil.several_stores import Mix, MixedTargets
from kdpipe.distil.targets import WindowedTargets, soft_targets
from kdpipe.errors import RunError
from kdpipe.pairing import join_checked
from kdpipe.store.plan import Limits
from kdpipe.training.loop import train
from kdpipe.training.runs import RunDirectory
from kdpipe.training.sampling import Sampling
from kdpipe.training.schedule import Schedule
from kdpipe.views import Geometry, Renderer
from tests.conftest import LIMITS, Built, run_command

SCHEDULE = Schedule(epochs=2, batch_size=32, lr=0.05, weight_decay=5e-4, warmup_epochs=1, data_seed=3, views=2)
STEPS = 7
TIGHT = 5 * 2 * 240


@pytest.fixture(scope="module")
def cut(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's store in chunks of 10 samples, 240 bytes each."""
    path = tmp_path_factory.mktemp("cut") / "cut.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpipe.store.plan.LIMITS", Limits(chunk_bytes=200))
        made = run_command(
            *(None, "cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights),
            *("--out", path, "--views", 2, "--device", "cpu"),
        )
    assert made.code == 0
    return path


class Dropping(torch.nn.Module):
    """A model that draws from torch's generator at every step, and has batch-norm buffers."""

    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(torch.nn.functional.dropout(images, 0.1, self.training))


class Milder(WindowedTargets):
    """Halves what a store says."""

    def logits(self, indices: np.ndarray, pixels: torch.Tensor) -> torch.Tensor:
        return super().logits(indices, pixels) / 2


class Run:
    """Trains the same student from the same soft targets into any directory."""

    def __init__(
        self, digits: Dataset, targets: Callable[[], Distillation | None], schedule: Schedule = SCHEDULE
    ) -> None:
        self._digits, self._targets, self._schedule = digits, targets, schedule

    def __call__(self, run: RunDirectory, *, resume: bool = False, stop_after: int | None = None) -> torch.nn.Module:
        torch.manual_seed(1)
        model = models.load("resnet8", num_classes=10, fallback_statistics=self._digits.statistics)
        student = Dropping(model.module)
        steps = iter(range(1, 100))
        train(
            student,
            Renderer(self._digits, "crop-flip", seed=0, geometry=Geometry.of(model.preset), workers=1),
            preset=model.preset,
            schedule=self._schedule,
            distillation=self._targets(),
            run=run,
            resume=resume,
            should_stop=lambda: next(steps) == stop_after,
        )
        return student


def _assert_resumes_alike(run: Run, folder: Path, steps: tuple[int, ...]) -> None:
    whole = run(RunDirectory(folder / "whole"))
    for step in steps:
        directory = RunDirectory(folder / str(step))
        with pytest.raises(RunError, match=r"stopped at .* --resume"):
            run(directory, stop_after=step)
        torch.manual_seed(step)
        resumed = run(directory, resume=True)
        for (name, mine), other in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
            assert torch.equal(mine, other), (step, name)
        rows, expected = directory.history(), RunDirectory(folder / "whole").history()
        for row, other in zip(rows, expected, strict=True):
            assert [row[key] for key in ("loss", "ce", "train_top1")] == [
                other[key] for key in ("loss", "ce", "train_top1")
            ]


@pytest.mark.parametrize("weighed", [False, True], ids=["each-once", "weighed"])
@pytest.mark.parametrize("source", ["none", "cached", "windowed", "mixed", "confidence", "draw"])
def test_stopped_after_any_step(source: str, weighed: bool, cut: Path, tmp_path: Path) -> None:
    digits = dataset.load("digits", "train", 200)
    weights = np.random.default_rng(0).exponential(size=200) ** 3
    schedule = replace(SCHEDULE, sampling=Sampling.of(weights, digits.labels) if weighed else None)

    def distillation() -> Distillation | None:
        whole, tight = open_store(cut), open_store(cut, memory_limit=TIGHT)
        rows = join_checked(whole, digits)

        def mixed(mix: Mix) -> MixedTargets:
            # The second says half as much, so that it matters which is heard.
            parts = [soft_targets(whole, rows), Milder(tight, rows)]
            return MixedTargets(parts, (0.5, 0.5), mix=mix, labels=digits.labels)

        targets = {
            "cached": lambda: soft_targets(whole, rows),
            "windowed": lambda: soft_targets(tight, rows),
            "mixed": lambda: mixed("mean"),
            "confidence": lambda: mixed("confidence"),
            "draw": lambda: mixed("draw"),
        }
        if source == "none":
            return None
        return Distillation(targets[source](), make("kd"), kd_weight=0.9, ce_weight=0.1)

    _assert_resumes_alike(Run(digits, distillation, schedule), tmp_path, (1, 3, STEPS - 1, STEPS, STEPS + 2))


def test_streamed_images_draw_no_random_numbers_twice(tmp_path: Path) -> None:
    """A DataLoader takes a number from torch's generator when it starts, as the student's dropout does at each step."""
    from PIL import Image

    for index in range(24):
        folder = tmp_path / "images" / "train" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    images = dataset.load(f"folder:{tmp_path / 'images'}", "train", loading="stream")
    assert not images.in_memory

    def run(directory: RunDirectory, *, resume: bool = False, stop_after: int | None = None) -> torch.nn.Module:
        torch.manual_seed(1)
        model = models.load("resnet8", num_classes=3, fallback_statistics=images.statistics)
        student = Dropping(model.module)
        steps = iter(range(1, 100))
        train(
            student,
            Renderer(images, "crop-flip", seed=0, geometry=Geometry.of(model.preset), workers=1),
            preset=model.preset,
            schedule=Schedule(2, 8, 0.05, 5e-4, 1, 3, 2),
            distillation=None,
            run=directory,
            resume=resume,
            should_stop=lambda: next(steps) == stop_after,
        )
        return student

    _assert_resumes_alike(run, tmp_path, (2, 3))


def test_a_run_of_before_a_setting_existed_goes_on_where_it_is_left_out(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    record = {"parameters": {"lr": 0.1, "ema": None}, "lineage": {}}
    run.start(record, resume=False)
    later = {**record, "parameters": {"lr": 0.1, "ema": None, "aux": None}}
    run.refuse_start(later, resume=True)
    for changed, said in (({"aux": "rotation"}, "aux: None then, rotation now"), ({"ema": 0.9}, "ema: None then, 0.9")):
        with pytest.raises(RunError, match=said):
            run.refuse_start({**later, "parameters": {**later["parameters"], **changed}}, resume=True)
