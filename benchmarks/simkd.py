"""The teacher's classifier on top of a student whose pooled features imitate the teacher's (SimKD), against ``kd``.

    python benchmarks/simkd.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

Chen et al., "Knowledge Distillation with the Reused Teacher Classifier" (2022): a projector maps the student's features
to the teacher's, the mean squared difference is the only loss, and the teacher's last layer classifies. The authors
project maps before they are pooled; a store keeps pooled features, so here the projector follows the pooling: one
linear layer, or two with batch norm and ReLU between, twice as wide as the teacher's features. All students of a seed
see equal images in equal order from one store, in equal steps. Accuracies are of the whole test split, after the last
epoch. Writes benchmarks/results/simkd.json.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from commands import describe, kdpipe
from finished import Finished, Run, interval, paired
from timing import machine
from together import top1_together
from torch import Tensor, nn

from kdpipe import dataset, durable
from kdpipe.dataset import Dataset
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.targets import CachedTargets
from kdpipe.models import AnyPreset
from kdpipe.pairing.join import join_checked
from kdpipe.stages.provenance import git_revision, versions
from kdpipe.stages.sources import load_model
from kdpipe.store.reader import open_store
from kdpipe.training.batches import Batch
from kdpipe.training.objective import CrossEntropy, Forward, Objective
from kdpipe.training.schedule import Order
from kdpipe.training.settings import Optimization

FEATURES = "features:penultimate"
ARMS = ("kd", "simkd, one layer", "simkd, two layers")
RESULT = Path(__file__).parent / "results" / "simkd.json"


class Reused(nn.Module):
    """A projector of the student's features, and the teacher's classifier, which stays as it is."""

    features: Tensor
    """The projected features of the last batch."""

    def __init__(self, features: int, classifier: nn.Linear, *, layers: int) -> None:
        """Project from ``features`` numbers with ``layers`` layers."""
        super().__init__()
        wide = 2 * classifier.in_features
        self.projector: nn.Module = nn.Linear(features, classifier.in_features)
        if layers > 1:
            self.projector = nn.Sequential(
                nn.Linear(features, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, classifier.in_features)
            )
        self.classifier = copy.deepcopy(classifier).requires_grad_(requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of features ``(n, features)``."""
        self.features = self.projector(features)
        logits: Tensor = self.classifier(self.features)
        return logits


class Imitation(CrossEntropy):
    """The mean squared difference between the projected features and the teacher's; cross-entropy is only watched."""

    def __init__(self, preset: AnyPreset, head: Reused) -> None:
        """Teach the features before ``head``'s classifier."""
        super().__init__(preset)
        self._head = head

    def __call__(self, forward: Forward, batch: Batch, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits and the terms of a batch."""
        logits, terms = super().__call__(forward, batch, pixels)
        return logits, {"ce": terms["ce"], "loss": F.mse_loss(self._head.features, batch.signals[FEATURES])}


def main() -> None:
    """Cache, train what is not trained yet, and write the figures."""
    options = _options()
    torch.set_num_threads(1)
    store = options.work / "logits.zarr"
    if not store.exists() or describe(store)["state"] != "sealed":
        kdpipe(
            *("cache-teacher", "--data", options.data, "--limit-train", options.samples, "--signals", FEATURES),
            *("--teacher", options.teacher, "--weights", options.weights, "--recipe", options.recipe),
            *("--views", options.views, "--device", "cpu", "--out", store),
        )
    names = ("teacher", "student", "samples", "epochs", "views", "recipe")
    settings = {name: getattr(options, name) for name in names} | {"batch_size": 64, "lr": 0.05}
    done = Finished(options.work / "runs.jsonl", settings | {"torch": torch.__version__})
    images, tests = dataset.load(options.data, "train", options.samples), dataset.load(options.data, "test")
    for seed in options.seeds:
        if not done.has(ARMS[-1], seed):
            for run in _train(seed, store, images, tests, options):
                done.add(run)
                print(f"seed {seed}, {run['arm']}: top-1 {run['top1']:.2%}", flush=True)
    durable.write_json(options.result, _result(done))


def _train(seed: int, path: Path, images: Dataset, tests: Dataset, options: argparse.Namespace) -> list[Run]:
    """Train and test the students of one seed in one fleet."""
    store = open_store(path, beside=(FEATURES,))
    classifier = load_model(options.teacher, images, weights=options.weights).module.fc
    assert isinstance(classifier, nn.Linear)
    models = {arm: load_model(options.student, images, seed=seed) for arm in ARMS}
    preset = models["kd"].preset
    objectives: dict[str, Objective] = {"kd": DistillationObjective(preset, Distillation(make("kd")))}
    for layers, arm in enumerate(ARMS[1:], start=1):
        module = models[arm].module
        torch.manual_seed(seed)
        assert isinstance(module.fc, nn.Linear)
        module.fc = Reused(module.fc.in_features, classifier, layers=layers)
        objectives[arm] = Imitation(preset, module.fc)
    top1 = top1_together(
        models,
        objectives,
        store=store,
        images=images,
        tests=tests,
        targets=CachedTargets(store, join_checked(store, images)),
        order=Order(data_seed=seed, views=store.num_views),
        optimization=Optimization(epochs=options.epochs, batch_size=64, lr=0.05),
        folder=options.work / "runs",
    )
    return [{"arm": arm, "seed": seed, "top1": found} for arm, found in top1.items()]


def _result(done: Finished) -> dict[str, Any]:
    found = {arm: {run["seed"]: run for run in done.read() if run["arm"] == arm} for arm in ARMS}
    return {
        "command": "python benchmarks/simkd.py --data folder:CIFAR10 --weights cifar10-resnet20.safetensors",
        "settings": done.settings,
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "arms": {
            arm: {
                "top1": interval([run["top1"] for run in by_seed.values()]),
                "top1_minus_kd": interval(paired(by_seed, found["kd"])["values"]),
            }
            for arm, by_seed in found.items()
        },
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--weights", required=True, help="the teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=4_000, help="size of the class-balanced training subset")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--recipe", default="rrc-flip:0.5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/simkd"), help="store and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
