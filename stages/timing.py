"""Timing of the networks of a benchmark: each once, however many runs have it, and the teacher's beside them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.benchmark.engines import Origin, Subject
from kdpipe.benchmark.measuring import Grid, Measured, time_networks
from kdpipe.benchmark.timing import Network
from kdpipe.dataset import Dataset
from kdpipe.errors import DatasetError
from kdpipe.export.images import calibration_images, plain_batches
from kdpipe.models import AnyPreset, Model, TensorPreset, of_images, short_name
from kdpipe.stages.console import progress, say
from kdpipe.stages.settings.benchmark import Benchmark
from kdpipe.stages.sources import load_split

CHECKED = 128
"""Images on which engines are compared with eager."""


class Timer:
    """Collects the networks of a benchmark, and times them together."""

    def __init__(self, params: Benchmark, test: Dataset | None, *, device: torch.device) -> None:
        """Check what is to be timed.

        Raises:
            ParamsError: there is no such engine, or nothing can be timed.
            ModelError: a package is not installed.
        """
        asked = params.measurement
        self._params, self._test = params, test
        self._subjects: dict[Network, Subject] = {}
        self._grid = Grid(
            engines=asked.engines,
            precisions=asked.precisions,
            threads=asked.threads or (torch.get_num_threads(),),
            batch_sizes=asked.batch_sizes,
            device=str(device),
        )
        self._grid.check()

    def add(self, model: Model, *, name: str, weights: str | Path | None, num_classes: int) -> Network:
        """Add a model, unless its network is there already, and return its network.

        ``name`` and ``weights`` are those that it was loaded by.
        """
        preset = model.preset
        network = Network.of(model.module, architecture=model.name, size=preset.size)
        if network not in self._subjects:
            file, trusted = None if weights is None else str(weights), self._params.code.trust_code
            origin = Origin(name, num_classes, file, trusted, model.interface.describe())
            calibration = (lambda: self._calibration(preset)) if self._training is not None else None
            self._subjects[network] = Subject(
                network, model.module, preset, self._checked(preset), origin=origin, calibration=calibration
            )
        return network

    def measure(self) -> Measured:
        """Time all networks in rounds; report what was left out, and reasons to doubt the times."""
        names = ", ".join(f"{short_name(each.architecture)} at {each.input}" for each in self._subjects)
        say(f"Timing {len(self._subjects)} network{'s' * (len(self._subjects) > 1)}: {names}.")
        asked = self._params.measurement
        measured = time_networks(
            list(self._subjects.values()),
            self._grid,
            rounds=asked.rounds,
            cold_starts=asked.cold_starts,
            progress=progress,
        )
        for note in measured.notes:
            say(note)
        for warning in measured.warnings:
            say(f"warning: {warning}")
        return measured

    @cached_property
    def _training(self) -> Dataset | None:
        """The training split, where int8 needs it and it can be loaded."""
        if "int8" not in self._grid.precisions:
            return None
        try:
            return load_split(self._params.dataset, "train")
        except DatasetError:
            return None

    def _checked(self, preset: AnyPreset) -> npt.NDArray[np.uint8]:
        """Return test images for the comparison of engines, evenly spaced; noise where there are none."""
        if self._test is None or not len(self._test):
            if isinstance(preset, TensorPreset):
                return np.stack([preset.form.blank()] * CHECKED)
            shape = (CHECKED, 3, preset.size, preset.size)
            return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        count = min(CHECKED, len(self._test))
        rows = np.linspace(0, len(self._test) - 1, count).astype(np.int64)
        return np.concatenate(list(plain_batches(self._test.subset(rows), preset)))

    def _calibration(self, preset: AnyPreset) -> npt.NDArray[np.uint8]:
        assert self._training is not None
        return calibration_images(
            self._training, of_images(preset, "int8"), count=self._params.measurement.calibration, seed=0
        )
