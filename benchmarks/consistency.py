"""Accuracy by consistency of views: cached views against a live teacher, fixed labels and labels of other crops.

    python benchmarks/consistency.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

Beyer et al., "Knowledge distillation: A good teacher is patient and consistent" (2022): teacher and student should be
shown the same crop. Students of equal initialization, order, epochs, optimizer and loss differ in where their soft
targets come from:

    none       nowhere: labels only, fresh crops each epoch
    live       the teacher, on the fresh crops that the student is shown
    cache-K    the store's first K views in turn, pixels and soft targets
    fixed      the store's plain view, whatever crop the student is shown ("fixed teacher")
    mismatch   the store's views in turn, each for another fresh crop than the student is shown

All but cache-K see the same pixels. Accuracies are of the whole test split, after the last epoch. Finished runs are
kept in --work and not repeated: the same command goes on after an interruption. Writes
benchmarks/results/consistency.json after each run, and docs/guides/consistency.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from commands import describe, kdpipe
from consistency_report import draw, summary
from finished import Finished, Run
from timing import machine

from kdpipe import dataset, durable, models
from kdpipe.dataset import Dataset
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.targets import CachedTargets, LiveTargets
from kdpipe.metrics.accuracy import accuracy, agreement
from kdpipe.pairing.join import join_checked
from kdpipe.pairing.probes import replay
from kdpipe.stages.provenance import git_revision, versions
from kdpipe.stages.sources import load_model
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.teacher.forward import Forward
from kdpipe.training.batches import Targets
from kdpipe.training.evaluation import predict
from kdpipe.training.loop import train
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order, view_of_epoch
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Renderer

VIEWS = 16
CACHES = {f"cache-{views}": views for views in (1, 2, 4, 8, VIEWS)}
ARMS = ("none", "live", *CACHES, "fixed", "mismatch")
RECIPE = "rrc-flip:0.5"
OPTIMIZER: dict[str, Any] = {"batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "warmup_epochs": 1.0}
TEMPERATURE = 4.0
WEIGHTS = {"kd_weight": 0.9, "ce_weight": 0.1}
ROOT = Path(__file__).parents[1]


class LabelsOf:
    """Soft targets of other views than the student is shown: of ``label_view(view)`` for ``view``."""

    def __init__(self, targets: Targets, label_view: Callable[[int], int]) -> None:
        """Take them from ``targets``."""
        self._targets, self._label_view = targets, label_view
        self.renderer = targets.renderer

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """Announce the views of the labels."""
        self._targets.start_epoch(self._label_view(view), None if next_view is None else self._label_view(next_view))

    def order(self, samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> npt.NDArray[np.int64] | None:
        """Ask for the order of the targets below."""
        return self._targets.order(samples, data_seed=data_seed, epoch=epoch)

    def skip(self, samples: int) -> None:
        """Skip the first samples of that order."""
        self._targets.skip(samples)

    def logits(self, indices: npt.NDArray[np.int64], pixels: torch.Tensor) -> torch.Tensor:
        """Return the labels of the samples, though ``pixels`` are not those that the teacher saw."""
        return self._targets.logits(indices, pixels)

    def take(
        self, indices: npt.NDArray[np.int64], pixels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the labels, and no signals of layers."""
        return self.logits(indices, pixels), {}


def plain_view(view: int) -> int:  # noqa: ARG001
    """Return the view of which ``fixed`` has its labels."""
    return 0


def other_view(view: int) -> int:
    """Return the view of which ``mismatch`` has its labels: any of the store's but ``view`` itself, in turn."""
    return 1 + (view - 1 + VIEWS // 2) % VIEWS


LABEL_VIEWS = {"fixed": plain_view, "mismatch": other_view}


@dataclass
class Experiment:
    """The data, the store and the teacher, shared by all runs."""

    options: argparse.Namespace
    device: torch.device
    train_set: Dataset
    test_set: Dataset
    store: LogitStore

    @classmethod
    def prepare(cls, options: argparse.Namespace) -> Experiment:
        """Cache the teacher, or find it cached, and load the data once."""
        path = options.work / "logits.zarr"
        kdpipe(
            *("cache-teacher", "--data", options.data, "--teacher", options.teacher, "--weights", options.weights),
            *("--limit-train", options.samples, "--views", VIEWS, "--recipe", options.recipe),
            *("--device", options.device, "--out", path),
        )
        return cls(
            options=options,
            device=models.resolve_device(options.device),
            train_set=dataset.load(options.data, "train", options.samples),
            test_set=dataset.load(options.data, "test"),
            store=open_store(path),
        )

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """The store's row of each training sample."""
        return join_checked(self.store, self.train_set)

    @cached_property
    def teacher_logits(self) -> npt.NDArray[np.float32]:
        """The teacher's answers to the test samples, from the store."""
        answers = open_store(self.store.path, "test")
        return answers.logits(join_checked(answers, self.test_set))

    @cached_property
    def teacher(self) -> Forward:
        """The live teacher."""
        model = load_model(self.options.teacher, self.train_set, weights=self.options.weights)
        return Forward(model, device=self.device)

    @cached_property
    def described(self) -> dict[str, Any]:
        """Output of ``kdpipe inspect`` for the store."""
        return describe(self.store.path)

    @property
    def settings(self) -> dict[str, Any]:
        """All that a run's figures depend on, beside its arm and seed; the store stands for teacher and samples."""
        return {
            "teacher": self.options.teacher,
            "student": self.options.student,
            "samples": len(self.train_set),
            "test_samples": len(self.test_set),
            "epochs": self.options.epochs,
            "recipe": self.store.manifest.fingerprint.recipe.name,
            "store_views": self.store.num_views,
            **OPTIMIZER,
            "loss": "kd",
            "temperature": TEMPERATURE,
            **WEIGHTS,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "store_digest": self.store.digest,
        }

    def run(self, arm: str, seed: int) -> Run:
        """Train and test one student."""
        model = load_model(self.options.student, self.train_set, seed=seed)
        geometry = Geometry.of(model.preset)
        directory = RunDirectory(self.options.work / "runs" / f"{arm}-{seed}")
        directory.path.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        distillation = None
        if arm != "none":
            loss = make("kd", temperature=TEMPERATURE)
            distillation = Distillation(loss, kd_weight=WEIGHTS["kd_weight"], ce_weight=WEIGHTS["ce_weight"])
        student = Student(
            model.module.to(self.device),
            replay(self.store, self.train_set, geometry=geometry, device=self.device),
            DistillationObjective(model.preset, distillation),
            Optimization(epochs=self.options.epochs, **OPTIMIZER),
            directory,
        )
        cost = train(student, self._targets(arm), order=Order(data_seed=seed, views=CACHES.get(arm)))
        tester = Renderer(self.test_set, "none", seed=0, geometry=geometry, device=self.device)
        logits = predict(model.module, tester, preset=model.preset)
        return {
            "arm": arm,
            "seed": seed,
            "top1": accuracy(logits, self.test_set.labels).top1,
            "agreement": agreement(logits, self.teacher_logits),
            "seconds": cost.seconds,
            "teacher_passes_per_sample": self._teacher_passes(arm),
            "plane_bytes": sum(map(self._plane_bytes, self._planes_read(arm))),
        }

    def _targets(self, arm: str) -> Targets | None:
        if arm == "none":
            return None
        if arm == "live":
            return LiveTargets(self.teacher, None)
        cached = CachedTargets(self.store, self.rows)
        return cached if arm in CACHES else LabelsOf(cached, LABEL_VIEWS[arm])

    def _teacher_passes(self, arm: str) -> int:
        """Count the teacher's passes for each sample; a store always has the plain view besides."""
        passes: dict[str, int] = {"none": 0, "live": self.options.epochs, "fixed": 1, "mismatch": 1 + VIEWS}
        return passes[arm] if arm in passes else 1 + CACHES[arm]

    def _planes_read(self, arm: str) -> set[int]:
        """Return the store's views whose soft targets an arm is given."""
        shown = [view_of_epoch(epoch, CACHES.get(arm)) for epoch in range(self.options.epochs)]
        if arm in CACHES:
            return set(shown)
        return set(map(LABEL_VIEWS[arm], shown)) if arm in LABEL_VIEWS else set()

    def _plane_bytes(self, view: int) -> int:
        """Return the bytes of a training plane's files."""
        starts = tuple(f"train/{array}/c/{view}/" for array in ("codes", "row_max"))
        return sum(file.size for name, file in self.store.manifest.files.items() if name.startswith(starts))

    def result(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Gather what is known of the experiment so far."""
        options, stored = self.options, self.described
        return {
            "command": (
                f"python benchmarks/consistency.py --data folder:CIFAR10 --weights {Path(options.weights).name} "
                f"--recipe {options.recipe} --samples {options.samples} --epochs {options.epochs} "
                f"--seeds {options.seeds} --threads {options.threads}"
            ),
            "settings": self.settings,
            "machine": machine(),
            "versions": versions(),
            "git_revision": git_revision(),
            "store": {key: stored[key] for key in ("samples", "views", "bytes", "bytes_per_sample")}
            | {"seconds": stored["about"]["seconds"]},
            "teacher_test_top1": accuracy(self.teacher_logits, self.test_set.labels).top1,
            **summary(runs, ARMS),
        }


def main() -> None:
    """Train what is not trained yet, seed by seed, and write the figures after each run."""
    options = _options()
    torch.set_num_threads(options.threads)
    if not options.plot_only:
        experiment = Experiment.prepare(options)
        done = Finished(options.work / "runs.jsonl", experiment.settings)
        for seed in range(options.seeds):
            for arm in options.arms:
                if done.has(arm, seed):
                    continue
                run = experiment.run(arm, seed)
                done.add(run)
                durable.write_json(options.result, experiment.result(done.read()))
                print(f"seed {seed}, {arm}: top-1 {run['top1']:.2%}, {run['seconds']:.0f} s", flush=True)
        durable.write_json(options.result, experiment.result(done.read()))
    draw(json.loads(options.result.read_text()), options.plot)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--weights", help="the teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=5_000, help="size of the class-balanced training subset")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="train these only")
    parser.add_argument("--threads", type=int, default=1, help="of the students' process")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/consistency"), help="store and runs")
    parser.add_argument("--result", type=Path, default=ROOT / "benchmarks" / "results" / "consistency.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "guides" / "consistency.png")
    parser.add_argument("--plot-only", action="store_true", help="draw the result that is there")
    options = parser.parse_args()
    if not options.plot_only and not (options.data and options.weights):
        parser.error("give --data and --weights, or --plot-only")
    return options


if __name__ == "__main__":
    main()
