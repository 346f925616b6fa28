"""Cost of each distillation loss: the seconds of an epoch with it, against one without any.

    python benchmarks/loss_cost.py --data folder:PATH/cifar10 --store PATH/logits.zarr

The same student trains on the same cached views in the same order, in interleaved rounds on a machine with nothing else
to do; each time is that of one epoch, without start-up and checkpoint. Writes benchmarks/results/loss_cost.json.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from published_losses import ARMS
from timing import interleaved, machine, ratio

from kdpipe import dataset, durable, models
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.targets import CachedTargets
from kdpipe.pairing.join import join_checked
from kdpipe.pairing.probes import replay
from kdpipe.stages.sources import load_model
from kdpipe.store.reader import open_store
from kdpipe.training.loop import train
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry

RESULT = Path(__file__).parent / "results" / "loss_cost.json"


def main() -> None:
    """Measure an epoch of each loss in interleaved rounds and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="what the store was made from")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--samples", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/loss_cost"))
    options = parser.parse_args()

    device = models.resolve_device(options.device)
    images = dataset.load(options.data, "train", options.samples)
    store = open_store(options.store)
    rows = join_checked(store, images)
    run = RunDirectory(options.work)
    run.path.mkdir(parents=True, exist_ok=True)

    def seconds(arm: str) -> float:
        model = load_model(options.student, images)
        distillation = None
        if arm != "none":
            loss = make("kd", standardize=True) if arm == "standardized-kd" else make(arm)
            distillation = Distillation(loss, kd_weight=loss.kd_weight)
        student = Student(
            model.module.to(device),
            replay(store, images, geometry=Geometry.of(model.preset), device=device),
            DistillationObjective(model.preset, distillation),
            Optimization(epochs=1, batch_size=128, lr=0.01, weight_decay=5e-4, warmup_epochs=0),
            run,
        )
        targets = None if distillation is None else CachedTargets(store, rows)
        return train(student, targets, order=Order(data_seed=0, views=store.num_views)).seconds

    arms = ("none", *ARMS)
    seconds("none")
    taken = interleaved({arm: functools.partial(seconds, arm) for arm in arms}, rounds=options.rounds)
    result = {
        "command": "python benchmarks/loss_cost.py --data folder:CIFAR10 --store logits.zarr",
        "machine": machine(),
        "student": options.student,
        "encoding": store.encoding.name,
        "samples": len(images),
        "seconds_per_epoch": taken,
        "over_none": {arm: ratio(taken[arm], taken["none"]) for arm in arms[1:]},
    }
    durable.write_json(RESULT, result)
    for arm, found in result["over_none"].items():
        low, high = found["interval_95"] or (None, None)
        print(f"{arm}: {found['median']:.3f} times an epoch without [{low}, {high}]")


if __name__ == "__main__":
    main()
