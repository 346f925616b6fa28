"""Students that learn from all cached views of a sample, against students that learn from the one that is shown.

    python benchmarks/cached_beliefs.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

All students learn by ``kd`` at T = 4 with its published weights, from one store, in equal steps. Those of one seed
start from equal weights; all but those that choose samples see equal images in equal order. ``view`` is plain
distillation, from the logits of the view that is shown. The others:

    soft targets   averaged over the views of a sample (the teacher's belief by Monte Carlo): mean of logits, means of
                   probabilities at T = 1 and 4, half of the view's and half of the mean, the plain view's
    weights        of the samples in the loss: by the teacher's confidence in the view; 0 where the view's decision is
                   not that of the mean; by the disagreement (KL) between the view and the mean, more or less of it
    temperature    of each sample, 4 times the root of its entropy over the mean entropy, or of the inverse, 2 to 8
    samples        the surest, the least sure, the most disputed half, or a random one, each drawn twice an epoch
    curriculum     the easiest samples first, by the margin between the two likeliest classes, or the hardest first:
                   from a third of the samples to all of them over half of the epochs

The last two are trained for one of the recipes.

Differences to ``view`` are seed by seed, with 95 % intervals by Student's t. Accuracies are of the whole test split,
after the last epoch. Finished runs in --work are not repeated. Writes benchmarks/results/cached_beliefs.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from commands import describe, kdpipe
from finished import Finished, Run, interval, paired
from timing import machine
from together import top1_together
from torch import Tensor

from kdpipe import dataset, durable
from kdpipe.dataset import Dataset
from kdpipe.models import AnyPreset
from kdpipe.pairing.join import join_checked
from kdpipe.stages.provenance import git_revision, versions
from kdpipe.stages.sources import load_model
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.training.batches import Batch
from kdpipe.training.objective import CrossEntropy, Forward
from kdpipe.training.schedule import Order, Sampling
from kdpipe.training.settings import Optimization

TEMPERATURE, KD_WEIGHT, CE_WEIGHT = 4.0, 0.9, 0.1
CHOOSING = "rrc-flip:0.5"
"""The recipe whose students choose samples, too."""
RESULT = Path(__file__).parent / "results" / "cached_beliefs.json"


def probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return softmax(logits / T)."""
    return F.softmax(logits / temperature, dim=-1)


@dataclass(frozen=True)
class Beliefs:
    """A teacher's logits of ``n`` samples in all views, float32 ``(1 + views, n, classes)``, the plain view first."""

    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of the augmented views' logits, ``(n, classes)``."""
        return self.logits[1:].mean(dim=0)

    def mean_probabilities(self, temperature: float) -> Tensor:
        """The logits whose probabilities at ``temperature`` are the mean of the augmented views', ``(n, classes)``."""
        return temperature * probabilities(self.logits[1:], temperature).mean(dim=0).log()

    @property
    def entropy(self) -> Tensor:
        """Entropy of the mean of the views' probabilities at T = 1, ``(n,)``, in nats."""
        found: Tensor = torch.special.entr(probabilities(self.mean_probabilities(1.0))).sum(dim=-1)
        return found

    @property
    def disagreement(self) -> Tensor:
        """KL of each view from the mean of the views' probabilities at T = 1, ``(1 + views, n)``."""
        mean = F.log_softmax(self.mean_probabilities(1.0), dim=-1)
        return F.kl_div(
            mean.expand_as(self.logits), F.log_softmax(self.logits, -1), reduction="none", log_target=True
        ).sum(-1)

    @property
    def margin(self) -> Tensor:
        """Difference between the two largest of the mean of the views' probabilities at T = 1, ``(n,)``."""
        top = probabilities(self.mean_probabilities(1.0)).topk(2, dim=-1).values
        return top[:, 0] - top[:, 1]


@dataclass(frozen=True)
class Teaching:
    """Soft targets of every view ``(1 + views, n, classes)``, weights ``(1 + views, n)`` and temperatures ``(n,)``."""

    targets: Tensor
    weights: Tensor
    temperatures: Tensor


def teaching(beliefs: Beliefs) -> dict[str, Teaching]:
    """Return the teaching of each student that sees the same images in the same order."""
    logits, disagreement = beliefs.logits, beliefs.disagreement
    even, warm = torch.ones(logits.shape[:2]), torch.full(logits.shape[1:2], TEMPERATURE)
    ratio = beliefs.entropy.clamp(min=1e-6) / beliefs.entropy.mean()

    def taught(targets: Tensor = logits, weights: Tensor = even, temperatures: Tensor = warm) -> Teaching:
        weights = weights / weights[1:].mean()
        return Teaching(targets.expand_as(logits), weights, temperatures)

    agrees = (logits.argmax(-1) == beliefs.mean_probabilities(1.0).argmax(-1)).float()
    relative = disagreement / disagreement[1:].mean()
    return {
        "view": taught(),
        "mean of logits": taught(beliefs.mean),
        "mean of probabilities, T = 1": taught(beliefs.mean_probabilities(1.0)),
        "mean of probabilities, T = 4": taught(beliefs.mean_probabilities(TEMPERATURE)),
        "half view, half mean": taught((logits + beliefs.mean) / 2),
        "plain view": taught(logits[0]),
        "weight: confidence": taught(weights=probabilities(logits).amax(-1)),
        "weight: views that agree": taught(weights=agrees),
        "weight: disagreement": taught(weights=(1 + relative) / 2),
        "weight: agreement": taught(weights=1 / (1 + relative)),
        "temperature: higher where unsure": taught(temperatures=(TEMPERATURE * ratio.sqrt()).clamp(2, 8)),
        "temperature: higher where sure": taught(temperatures=(TEMPERATURE / ratio.sqrt()).clamp(2, 8)),
    }


@dataclass(frozen=True)
class Pools:
    """The samples of each epoch of a curriculum: a third of them first, all after half of the epochs."""

    ranked: npt.NDArray[np.int64]
    """All samples, the first ones first."""
    labels: npt.NDArray[np.int32]
    epochs: int

    def draw(self, *, data_seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """Return as many samples as there are, all of the epoch's pool about equally often."""
        share = min(1.0, 1 / 3 + 2 / 3 * epoch / max(1, self.epochs // 2))
        weights = np.zeros(len(self.ranked))
        weights[self.ranked[: round(share * len(self.ranked))]] = 1
        return Sampling.of(weights, self.labels).draw(data_seed=data_seed, epoch=epoch)


def choices(beliefs: Beliefs, labels: npt.NDArray[np.int32], *, epochs: int, seed: int) -> dict[str, Any]:
    """Return the draws of each student that sees other samples than ``view`` does."""
    surest = np.argsort(-beliefs.margin.numpy(), kind="stable")
    disputed = np.argsort(-beliefs.disagreement[1:].mean(0).numpy(), kind="stable")
    half = len(surest) // 2

    def only(chosen: npt.NDArray[np.int64]) -> Sampling:
        weights = np.zeros(len(labels))
        weights[chosen] = 1
        return Sampling.of(weights, labels)

    return {
        "samples: random half": only(np.random.default_rng(seed).permutation(len(labels))[:half]),
        "samples: surest half": only(surest[:half]),
        "samples: least sure half": only(surest[-half:]),
        "samples: most disputed half": only(disputed[:half]),
        "curriculum: easiest first": Pools(surest, labels, epochs),
        "curriculum: hardest first": Pools(surest[::-1].copy(), labels, epochs),
    }


class Rows:
    """The view's number and the samples of each batch, in place of soft targets: each student has its own."""

    renderer = None

    def __init__(self) -> None:
        """Start before the first epoch."""
        self._view = 0

    def start_epoch(self, view: int, next_view: int | None) -> None:  # noqa: ARG002
        """Take the view."""
        self._view = view

    def order(self, samples: npt.NDArray[np.int64], *, data_seed: int, epoch: int) -> None:
        """Return ``None``: any order will do."""

    def skip(self, samples: int) -> None:
        """Do nothing."""

    def logits(self, indices: npt.NDArray[np.int64], pixels: Tensor) -> Tensor:
        """Return the view of each sample, ``(n, 1)``."""
        return torch.full((len(indices), 1), float(self._view), device=pixels.device)

    def take(self, indices: npt.NDArray[np.int64], pixels: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the same, without signals."""
        return self.logits(indices, pixels), {}


class Taught(CrossEntropy):
    """``kd`` with soft targets, weights and temperatures of each sample, beside cross-entropy."""

    def __init__(self, preset: AnyPreset, teaching: Teaching) -> None:
        """Learn from ``teaching``."""
        super().__init__(preset)
        self._teaching = teaching

    def __call__(self, forward: Forward, batch: Batch, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits and the terms of a batch."""
        logits, terms = super().__call__(forward, batch, pixels)
        assert batch.soft_targets is not None
        assert batch.indices is not None
        view, rows = int(batch.soft_targets[0, 0]), batch.indices
        temperature = self._teaching.temperatures[rows][:, None]
        student, teacher = (
            F.log_softmax(each / temperature, 1) for each in (logits, self._teaching.targets[view, rows])
        )
        each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1) * temperature[:, 0] ** 2
        kd = (each * self._teaching.weights[view, rows]).mean()
        return logits, {"ce": terms["ce"], "kd": kd, "loss": KD_WEIGHT * kd + CE_WEIGHT * terms["ce"]}


def main() -> None:
    """Cache, train what is not trained yet, and write the figures after each seed."""
    options = _options()
    torch.set_num_threads(1)
    images = dataset.load(options.data, "train", options.samples)
    tests = dataset.load(options.data, "test")
    for recipe in options.recipes:
        path = options.work / recipe.replace(":", "-") / "logits.zarr"
        if not path.exists() or describe(path)["state"] != "sealed":
            kdpipe(
                *("cache-teacher", "--data", options.data, "--limit-train", options.samples, "--out", path),
                *("--teacher", options.teacher, "--weights", options.weights, "--encoding", "fp32"),
                *("--recipe", recipe, "--views", options.views, "--device", "cpu"),
            )
        done = _finished(path, recipe, options)
        for seed in options.seeds:
            for run in _train(seed, open_store(path), images, tests, done):
                done.add(run)
                print(f"{recipe}, seed {seed}, {run['arm']}: top-1 {run['top1']:.2%}", flush=True)
            durable.write_json(options.result, _result(options))
    print(summary(_result(options)))


def _train(seed: int, store: LogitStore, images: Dataset, tests: Dataset, done: Finished) -> Iterator[Run]:
    """Train and test the students of one seed that are not done, all in one fleet that see the same images."""
    settings = done.settings
    rows = join_checked(store, images)
    views = [torch.from_numpy(store.logits(rows, view).astype(np.float32)) for view in range(store.num_views + 1)]
    beliefs = Beliefs(torch.stack(views))
    taught = teaching(beliefs)
    chosen: dict[str, Any] = {}
    if settings["recipe"] == CHOOSING:
        chosen = choices(beliefs, images.labels, epochs=settings["epochs"], seed=seed)
    for sampling, members in [(None, taught), *((drawn, {arm: taught["view"]}) for arm, drawn in chosen.items())]:
        left = {arm: each for arm, each in members.items() if not done.has(arm, seed)}
        if not left:
            continue
        models = {arm: load_model(settings["student"], images, seed=seed) for arm in left}
        top1 = top1_together(
            models,
            {arm: Taught(models[arm].preset, each) for arm, each in left.items()},
            store=store,
            images=images,
            tests=tests,
            targets=Rows(),
            order=Order(data_seed=seed, views=store.num_views, sampling=sampling),
            optimization=Optimization(epochs=settings["epochs"], batch_size=settings["batch_size"], lr=settings["lr"]),
            folder=done.path.parent / "runs",
        )
        yield from ({"arm": arm, "seed": seed, "top1": found} for arm, found in top1.items())


def _finished(store: Path, recipe: str, options: argparse.Namespace) -> Finished:
    settings = {name: getattr(options, name) for name in ("teacher", "student", "samples", "epochs", "views")}
    others = {"recipe": recipe, "batch_size": 64, "lr": 0.05, "torch": torch.__version__}
    return Finished(store.parent / "runs.jsonl", settings | others | {"digest": open_store(store).digest})


def _result(options: argparse.Namespace) -> dict[str, Any]:
    recipes = {}
    for recipe in options.recipes:
        store = options.work / recipe.replace(":", "-") / "logits.zarr"
        if store.exists():
            recipes[recipe] = _figures(_finished(store, recipe, options))
    return {
        "command": "python benchmarks/cached_beliefs.py --data folder:CIFAR10 --weights cifar10-resnet20.safetensors",
        "loss": {"temperature": TEMPERATURE, "kd_weight": KD_WEIGHT, "ce_weight": CE_WEIGHT},
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "recipes": recipes,
    }


def _figures(done: Finished) -> dict[str, Any]:
    found: dict[str, dict[int, Run]] = {}
    for run in done.read():
        found.setdefault(run["arm"], {})[run["seed"]] = run
    view = found["view"] if found else {}
    arms = {
        arm: {
            "seeds": list(by_seed),
            "top1": interval([run["top1"] for run in by_seed.values()]),
            "top1_minus_view": interval(paired(by_seed, view)["values"]),
        }
        for arm, by_seed in found.items()
    }
    return {"settings": done.settings, "arms": arms}


def summary(result: dict[str, Any]) -> str:
    """Return the figures as a table in Markdown."""
    lines = ["| recipe | student | test top-1 % | difference to `view` |", "|---|---|---:|---:|"]
    for recipe, found in result["recipes"].items():
        for arm, each in found["arms"].items():
            mean, std = each["top1"]["mean"], each["top1"]["std"]
            low, high = each["top1_minus_view"].get("interval_95", (float("nan"),) * 2)
            lines.append(
                f"| `{recipe}` | {arm} | {100 * mean:.1f} ± {100 * (std or 0):.1f} | "
                f"{100 * each['top1_minus_view']['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] |"
            )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--weights", required=True, help="the teacher's")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=4_000, help="size of the class-balanced training subset")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--recipes", nargs="+", default=[CHOOSING])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/cached_beliefs"), help="stores and runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
