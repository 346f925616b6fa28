"""Speed of rendering: against a training step of resnet8, and against torchvision's transforms.

    python benchmarks/views.py --data folder:PATH/cifar10 --photos folder:PATH/photos

All on the CPU. Images of 32 x 32 are in memory: kdpipe renders batches of 128 of them in the training process, with
torch's default number of threads; torchvision's ``transforms.v2`` take one after the other in a DataLoader with two
workers, and for comparison without any. The step is forward, cross-entropy, backward and SGD, and takes as many
batches. Photographs are decoded from their files at each use: kdpipe decodes them and cuts its boxes in two
workers and does the rest in the training process, torchvision does all of it in two workers. Both end as batches of
uint8, but mixup's of torchvision, which are floats. Every way has run once before. Writes
benchmarks/results/views.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import view_peers
from timing import interleaved, machine, ratio
from view_stages import by_stage

from kdpipe import dataset
from kdpipe.dataset import Dataset
from kdpipe.stages.provenance import git_revision, versions
from kdpipe.stages.sources import load_model
from kdpipe.views import Geometry, Renderer

RESULT = Path(__file__).parent / "results" / "views.json"
STEP_LIMITS = {"crop-flip": 0.10, "rrc-flip+color": 0.25}
"""Largest share of a training step for rendering."""
PHOTO_RECIPES = ("rrc-flip", "rrc-flip+color")

Batches = list[npt.NDArray[np.int64]]


def main() -> None:
    """Measure both parts and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="images of 32 x 32 as kdpipe takes them")
    parser.add_argument("--photos", help="folder:PATH of photographs of any sizes; without it, that part is left out")
    parser.add_argument("--samples", type=int, default=5120, help="images of an epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--photo-samples", type=int, default=288, help="photographs of an epoch, some repeated")
    parser.add_argument("--photo-batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="of torchvision, and of kdpipe for photographs")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--recipe", action="append", help="only this one; may be given more than once")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    result: dict[str, Any] = {
        "command": "python benchmarks/views.py --data folder:CIFAR10 --photos folder:PHOTOS",
        "machine": machine(),
        "versions": versions(),
        "git_revision": git_revision(),
        "workers": options.workers,
        "in_memory": in_memory(options),
    }
    if options.photos:
        result["photographs"] = photographs(options)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def in_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Time every recipe on images in memory."""
    images = dataset.load(options.data, "train", loading="memory")
    batches = shuffled(len(images), options.samples, options.batch_size)
    step = training(images, batches)
    found: dict[str, Any] = {"images_per_epoch": sum(map(len, batches)), "batch_size": options.batch_size}
    found["recipes"] = {
        recipe: recipe_in_memory(recipe, transforms, images, batches, step=step, options=options)
        for recipe, transforms in view_peers.recipes(32).items()
        if not options.recipe or recipe in options.recipe
    }
    return found


def recipe_in_memory(
    recipe: str,
    transforms: list[view_peers.Transform] | None,
    images: Dataset,
    batches: Batches,
    *,
    step: Callable[[], float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Time one recipe, kdpipe's way and torchvision's, in the same rounds as the training step."""
    print(f"{recipe}:")
    renderer = Renderer(images, recipe, seed=0, geometry=Geometry(32, 32, "bilinear"))
    ways = {"step": step, "kdpipe": rendering(renderer, batches)}
    if transforms is not None:
        assert images.pixels is not None
        samples = view_peers.InMemory(images.pixels, images.labels.tolist(), transforms)
        mixed_by = view_peers.mixing(recipe, len(images.classes))
        lists = [rows.tolist() for rows in batches]
        ways["torchvision"] = view_peers.epoch(samples, lists, workers=options.workers, mixed_by=mixed_by)
        ways["torchvision, in process"] = view_peers.epoch(samples, lists, workers=0, mixed_by=mixed_by)
    seconds = interleaved(ways, rounds=options.rounds)
    found = compared(seconds, sum(map(len, batches)))
    found["rendering_over_step"] = ratio(seconds["kdpipe"], seconds["step"])
    if recipe in STEP_LIMITS:
        found["step_limit"] = STEP_LIMITS[recipe]
        found["within_step_limit"] = verdict(found["rendering_over_step"], STEP_LIMITS[recipe], above=False)
    return found | {"microseconds_per_image_by_stage": stages(renderer, batches)}


def photographs(options: argparse.Namespace) -> dict[str, Any]:
    """Time recipes on photographs that are decoded at each use."""
    images = dataset.load(options.photos, "train", loading="stream")
    root = Path(options.photos.partition(":")[2]).expanduser()
    paths = [root / key for key in images.keys]
    batches = shuffled(len(images), options.photo_samples, options.photo_batch_size)
    found: dict[str, Any] = {"photographs": len(images), "images_per_epoch": sum(map(len, batches)), "size": 224}
    found |= {"pixels_per_photograph": round(images.sizes.prod(axis=1).mean()), "batch_size": options.photo_batch_size}
    found["recipes"] = {}
    for recipe in PHOTO_RECIPES:
        print(f"{recipe}, photographs:")
        renderer = Renderer(images, recipe, seed=0, geometry=Geometry(224, 224, "bilinear"), workers=options.workers)
        samples = view_peers.Files(paths, view_peers.recipes(224)[recipe] or [])
        lists = [rows.tolist() for rows in batches]
        ways = {
            "kdpipe": rendering(renderer, batches),
            "torchvision": view_peers.epoch(samples, lists, workers=options.workers),
        }
        found["recipes"][recipe] = compared(interleaved(ways, rounds=options.rounds), sum(map(len, batches)))
    return found


def shuffled(population: int, count: int, batch_size: int) -> Batches:
    """Return full batches of about ``count`` shuffled indices, all of the population before any comes again."""
    generator = np.random.default_rng(0)
    orders = [generator.permutation(population) for _ in range(-(-count // population))]
    rows = np.concatenate(orders)[: max(1, count // batch_size) * batch_size]
    return list(rows.reshape(-1, batch_size))


def rendering(renderer: Renderer, batches: Batches) -> Callable[[], float]:
    """Return what renders an epoch, each time of the next view, and returns its seconds; one has been rendered."""
    views = itertools.count(1)

    def seconds() -> float:
        view = next(views)
        began = time.perf_counter()
        for _ in renderer.batches(batches, view):
            pass
        return time.perf_counter() - began

    seconds()
    return seconds


def training(images: Dataset, batches: Batches) -> Callable[[], float]:
    """Return what trains resnet8 for as many steps as there are batches and returns the seconds; it has run once."""
    model = load_model("resnet8", images)
    network = model.module.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    pixels = model.preset.normalize(Renderer(images, "none", seed=0, geometry=Geometry.of(model.preset))(batches[0], 0))
    labels = torch.from_numpy(images.labels[batches[0]]).long()

    def seconds() -> float:
        began = time.perf_counter()
        for _ in batches:
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(pixels), labels))
            optimizer.step()
        return time.perf_counter() - began

    seconds()
    return seconds


def stages(renderer: Renderer, batches: Batches) -> dict[str, float]:
    """Return where an epoch's rendering spends its time, in microseconds for each image."""
    with by_stage() as seconds:
        rendering(renderer, batches)()
    images = 2 * sum(map(len, batches))
    return {stage: round(1e6 * taken / images, 2) for stage, taken in seconds.items()}


def compared(seconds: dict[str, list[float]], images: int) -> dict[str, Any]:
    """Return the speed of each way that makes images, and how many times slower than kdpipe torchvision is."""
    found: dict[str, Any] = {"seconds": seconds}
    found["images_per_second"] = {way: round(images / statistics.median(times)) for way, times in seconds.items()}
    slower = ratio(seconds["torchvision"], seconds["kdpipe"]) if "torchvision" in seconds else None
    found["torchvision_over_kdpipe"] = slower
    found["faster_than_torchvision"] = None if slower is None else verdict(slower, 1.0, above=True)
    return found


def verdict(measured: dict[str, Any], limit: float, *, above: bool) -> str:
    """Say whether the ratio is on the right side of the limit: its whole interval, or its median where it has none."""
    ends = measured["interval_95"] or [measured["median"]]
    right = [end > limit if above else end <= limit for end in ends]
    return "yes" if all(right) else "unclear" if any(right) else "no"


def show(result: dict[str, Any]) -> None:
    """Print a table of all recipes, and one of where their time goes."""
    line = "{:<24}{:>9}{:>13}{:>12}   {:<24}{:<24}{}".format
    print(
        line("images/s", "kdpipe", "torchvision", "in process", "rendering / step", "torchvision / kdpipe", "targets")
    )
    for part, measured in result.items():
        if part not in ("in_memory", "photographs"):
            continue
        for recipe, found in measured["recipes"].items():
            speeds = [found["images_per_second"].get(way, "-") for way in ("kdpipe", "torchvision")]
            alone = found["images_per_second"].get("torchvision, in process", "-")
            targets = {"step": found.get("within_step_limit"), "faster": found["faster_than_torchvision"]}
            said = ", ".join(f"{name}: {met}" for name, met in targets.items() if met)
            ratios = [shown(found.get(key)) for key in ("rendering_over_step", "torchvision_over_kdpipe")]
            print(line(recipe + (", 224" if part == "photographs" else ""), *speeds, alone, *ratios, said))
    by_recipe = {name: row["microseconds_per_image_by_stage"] for name, row in result["in_memory"]["recipes"].items()}
    names: Sequence[str] = list(next(iter(by_recipe.values()), {}))
    print("\n" + "us/image".ljust(24) + "".join(name.rjust(20) for name in names))
    for recipe, row in by_recipe.items():
        print(recipe.ljust(24) + "".join(f"{row[name]:>20.1f}" for name in names))


def shown(measured: dict[str, Any] | None) -> str:
    """Return a ratio's median and interval."""
    if measured is None:
        return "-"
    interval = measured["interval_95"]
    return f"{measured['median']:.3g}" + ("" if interval is None else f" ({interval[0]:.3g} to {interval[1]:.3g})")


if __name__ == "__main__":
    main()
