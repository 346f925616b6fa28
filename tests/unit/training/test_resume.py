"""A run that is stopped after any step and resumed equals one that was not, whatever its soft targets come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdpipe import dataset, open_store
from kdpipe.distil.several_stores import Mix, MixedTargets
from kdpipe.distil.targets import WindowedTargets, soft_targets
from kdpipe.errors import RunError
from kdpipe.pairing.join import join_checked
from kdpipe.testing.doubles import Dropping, StopAfter, differences, small_network
from kdpipe.training.batches import Signals, Targets
from kdpipe.training.evaluation import Validation
from kdpipe.training.loop import train
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Sampling
from tests.conftest import TIGHT
from tests.students import ORDER, PRESET, SETTINGS, STEPS, digits, renderer, student, taught


class Milder(WindowedTargets):
    """Half the logits of a store."""

    def take(self, indices: np.ndarray, pixels: torch.Tensor) -> tuple[torch.Tensor, Signals]:
        logits, signals = super().take(indices, pixels)
        return logits / 2, signals


def _sources(chunked: Path) -> dict[str, Callable[[], Targets | None]]:
    whole, tight = open_store(chunked), open_store(chunked, memory_limit=TIGHT)
    rows = join_checked(whole, digits())

    def mixed(mix: Mix) -> MixedTargets:
        # The second says half as much, so that it matters which is heard.
        parts = [soft_targets(whole, rows), Milder(tight, rows)]
        return MixedTargets(parts, (0.5, 0.5), mix=mix, labels=digits().labels)

    return {
        "none": lambda: None,
        "cached": lambda: soft_targets(whole, rows),
        "windowed": lambda: soft_targets(tight, rows),
        "mean": lambda: mixed("mean"),
        "confidence": lambda: mixed("confidence"),
        "draw": lambda: mixed("draw"),
    }


@pytest.mark.parametrize(
    ("source", "weighed"),
    [
        *((source, False) for source in ("none", "cached", "windowed", "mean", "confidence", "draw")),
        *((source, True) for source in ("none", "windowed", "draw")),
    ],
)
def test_stopped_after_any_step(source: str, weighed: bool, chunked: Path, tmp_path: Path) -> None:
    targets = _sources(chunked)[source]
    weights = np.random.default_rng(0).exponential(size=200) ** 3
    order = replace(ORDER, sampling=Sampling.of(weights, digits().labels) if weighed else None)
    images = renderer()

    def run(name: str, *, resume: bool = False, stop_after: int = 0) -> RunDirectory:
        torch.manual_seed(stop_after + resume)
        generators = [torch.Generator().manual_seed(1).get_state()]
        objective = None if source == "none" else taught()
        trained = student(
            tmp_path / name, Dropping(small_network()), objective=objective, images=images, generators=generators
        )
        train(trained, targets(), order=order, resume=resume, should_stop=StopAfter(stop_after))
        return trained.run

    whole = run("whole")
    for step in (1, 3, STEPS - 1, STEPS, STEPS + 2):
        with pytest.raises(RunError, match=r"stopped at .* --resume"):
            run(str(step), stop_after=step)
        resumed = run(str(step), resume=True)
        assert not differences(resumed.load_checkpoint(), whole.load_checkpoint())
        assert not differences(resumed.history(), whole.history())


def test_streamed_images_draw_no_random_numbers_twice(tmp_path: Path) -> None:
    """A DataLoader takes a number from torch's generator when it starts, as the student's dropout does at each step.

    The run that is stopped and resumed is validated on streamed images as well, the other is not validated.
    """
    for index in range(24):
        folder = tmp_path / "images" / "train" / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    images = dataset.load(f"folder:{tmp_path / 'images'}", "train", loading="stream")
    assert not images.in_memory
    train_part, held_out = dataset.hold_out(images, 0.25)

    def run(name: str, *, validated: bool, resume: bool = False, stop_after: int = 0) -> RunDirectory:
        torch.manual_seed(1 + resume)
        validation = Validation(renderer(held_out, "none"), preset=PRESET) if validated else None
        trained = student(
            tmp_path / name,
            Dropping(small_network(3)),
            images=renderer(train_part),
            settings=SETTINGS.but(batch_size=6),
            validation=validation,
        )
        train(trained, order=ORDER, resume=resume, should_stop=StopAfter(stop_after))
        return trained.run

    whole = run("whole", validated=False)
    with pytest.raises(RunError, match="stopped at step 1 of epoch 2"):
        run("cut", validated=True, stop_after=4)
    resumed = run("cut", validated=True, resume=True)
    for part in ("model", "optimizer", "generator"):
        state, expected = resumed.load_checkpoint(), whole.load_checkpoint()
        assert state is not None
        assert expected is not None
        assert not differences(state[part], expected[part], part)


def test_a_run_of_before_a_setting_existed_goes_on_where_it_is_left_out(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    record = {"parameters": {"lr": 0.1, "ema": None}, "lineage": {}}
    run.start(record, resume=False)
    later = {**record, "parameters": {"lr": 0.1, "ema": None, "aux": None}}
    run.refuse_start(later, resume=True)
    for changed, said in (({"aux": "rotation"}, "aux: None then, rotation now"), ({"ema": 0.9}, "ema: None then, 0.9")):
        with pytest.raises(RunError, match=said):
            run.refuse_start({**later, "parameters": {**later["parameters"], **changed}}, resume=True)


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(student(run.path), order=ORDER)
    state = run.load_checkpoint()
    assert state is not None
    run.save_checkpoint({**state, "format": 3, "optimiser": state.pop("optimizer")})
    with pytest.raises(RunError, match=r"another version of kdpipe\. Start the run without --resume"):
        train(student(run.path), order=ORDER, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_kill_left_of_a_file_is_removed(tmp_path: Path, resume: bool) -> None:
    run = RunDirectory(tmp_path)
    record = {"parameters": {"lr": 0.1}, "lineage": {}}
    run.start(record, resume=False)
    (tmp_path / ".history.csv.2530.tmp").write_text("epo")
    (tmp_path / ".gitignore").write_text("/model.safetensors")
    run.start(record, resume=resume)
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", ".gitignore"}
