"""CPU seconds of an epoch: kdpipe's cached epoch against the bare step and the loops that others write.

    python benchmarks/rivals.py --data folder:PATH/cifar10 --weights PATH/cifar10-resnet20.safetensors

A ResNet-20 teaches resnet8 (kd at temperature 4 and cross-entropy) on the same decoded images, one thread, in rounds of
random order:

- ``kdpipe``: the whole training, its views rendered and its logits read from a store, checkpoints included;
- ``bare step``: pixels, logits and labels are ready in memory, in the same memory format;
- ``hack``: pixels of each batch augmented by one gather, logits of the plain images, so the labels of other crops;
- ``memmap``: one image after the other by torchvision's transforms, logits in fp16 from an ``.npy`` file, labels of
  other crops as well;
- ``live``: the teacher in the loop, images by torchvision's transforms;
- ``timm``: timm's loader, transforms and optimizer, the teacher in the loop.

The loops of others are in torch's default memory format, and the hack in channels-last, too. A second part reads rows
of a store of 1,000 classes and of an ``.npy`` file. Writes benchmarks/results/rivals.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from timing import interleaved, machine, ratio
from torch.utils.data import DataLoader
from torchvision import transforms

from kdpipe import dataset
from kdpipe.dataset import Dataset
from kdpipe.distil.losses import make
from kdpipe.distil.objective import Distillation, DistillationObjective
from kdpipe.distil.targets import CachedTargets
from kdpipe.encoding.registry import get_encoding
from kdpipe.models import Preset
from kdpipe.models.layout import arrange
from kdpipe.models.parts import keep_memory
from kdpipe.pairing.join import join_checked
from kdpipe.stages.sources import load_model
from kdpipe.store.plan import Limits
from kdpipe.store.reader import LogitStore, open_store
from kdpipe.store.writer import build
from kdpipe.teacher.cache import cache_plane, plan
from kdpipe.teacher.forward import Forward
from kdpipe.testing.stores import small_plan
from kdpipe.training.loop import train
from kdpipe.training.runs import RunDirectory
from kdpipe.training.schedule import Order, epoch_batches
from kdpipe.training.settings import Optimization
from kdpipe.training.trainee import Student
from kdpipe.views import Geometry, Recipe, Renderer

RESULT = Path(__file__).parent / "results" / "rivals.json"
CPU = torch.device("cpu")
TEMPERATURE = 4.0
TARGETS = {"hack / kdpipe": 1.2, "kdpipe / bare step": 1.03, "store rows / npy rows": 0.8}
"""Aims: at least, at most, at least."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Normalized images, teacher's logits and labels."""


def main() -> None:
    """Measure all loops in interleaved rounds, then rows, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, help="the teacher's")
    parser.add_argument("--samples", type=int, default=2_048)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=100_000, help="of the store of 1,000 classes")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/scratch/rivals"))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    keep_memory()
    rivals = Rivals(dataset.load(options.data, "train", options.samples), options)
    ways = {
        "kdpipe": rivals.kdpipe,
        "bare step": lambda: rivals.loop(rivals.ready(), channels_last=True),
        "hack": lambda: rivals.loop(rivals.hacked(), channels_last=False),
        "hack in channels-last": lambda: rivals.loop(rivals.hacked(), channels_last=True),
        "memmap": lambda: rivals.loop(rivals.mapped(), channels_last=False),
        "live": lambda: rivals.loop(rivals.live(), channels_last=False),
        "timm": rivals.timm,
    }
    for way in ways.values():
        way()
    seconds = interleaved(ways, rounds=options.rounds, seed=0)
    rows = rows_read(options)
    result = {
        "command": "python benchmarks/rivals.py --data folder:CIFAR10 --weights cifar10-resnet20.safetensors",
        "machine": machine(),
        "images_per_training": options.samples * options.epochs,
        "batch_size": options.batch_size,
        "targets": TARGETS,
        "cpu_seconds": seconds,
        "median_cpu_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "over_kdpipe": {name: ratio(values, seconds["kdpipe"]) for name, values in seconds.items() if name != "kdpipe"},
        "kdpipe_over_bare_step": ratio(seconds["kdpipe"], seconds["bare step"]),
        "rows": rows,
    }
    options.result.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "cpu_seconds"}, indent=2))


class Rivals:
    """The loops over one dataset; each returns its CPU seconds."""

    def __init__(self, images: Dataset, options: argparse.Namespace) -> None:
        """Make the store, the file of logits and the batches that are ready."""
        self.images, self.options = images, options
        model = load_model("resnet20", images, weights=options.weights)
        assert isinstance(model.preset, Preset), "images"
        self.preset = model.preset
        self.store = cached(images, Forward(model, device=CPU), options)
        self.rows = join_checked(self.store, images)
        self.renderer = Renderer(images, "crop-flip", seed=0, geometry=Geometry.of(model.preset))
        self.teacher = load_model("resnet20", images, weights=options.weights).module.requires_grad_(False)
        plain = self.store.plane(0)[self.rows]
        self.logits, file = torch.from_numpy(plain), options.work / "logits.npy"
        np.save(file, plain.astype(np.float16))
        self.file = np.load(file, mmap_mode="r")
        self.pixels = self.renderer(np.arange(len(images)), 0)
        self.labels = torch.from_numpy(images.labels.astype(np.int64))
        self.views = [self._view(view) for view in (1, 2)]
        self.pictures = [Image.fromarray(each) for each in self.pixels.permute(0, 2, 3, 1).numpy()]
        self.augment = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(self.preset.mean, self.preset.std),
            ]
        )

    def kdpipe(self) -> float:
        """Train as the command does, from a store that was just opened."""
        model = load_model("resnet8", self.images)
        settings = Optimization(epochs=self.options.epochs, batch_size=self.options.batch_size, channels_last=True)
        distillation = Distillation(make("kd", temperature=TEMPERATURE), kd_weight=0.9, ce_weight=0.1)
        run = RunDirectory(self.options.work / "run")
        run.path.mkdir(exist_ok=True)
        objective = DistillationObjective(model.preset, distillation)
        store = open_store(self.store.path)
        began = time.process_time()
        student = Student(model.module, self.renderer, objective, settings, run)
        train(student, CachedTargets(store, self.rows), order=Order(data_seed=0, views=store.num_views))
        return time.process_time() - began

    def loop(self, batches: Iterator[Batch], *, channels_last: bool) -> float:
        """Take one step for each batch, and count the correct answers."""
        module, optimizer = self._student(channels_last=channels_last)
        right = torch.zeros((), dtype=torch.int64)
        began = time.process_time()
        for images, targets, labels in batches:
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            logits = module(images)
            loss = 0.9 * divergence(logits, targets) + 0.1 * F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += (logits.detach().argmax(1) == labels).sum()
        return time.process_time() - began

    def ready(self) -> Iterator[Batch]:
        """Yield batches whose uint8 pixels, logits and labels are in memory."""
        for view in self._epochs():
            for pixels, logits, labels in self.views[view]:
                yield self.preset.normalize(pixels), logits, labels

    def hacked(self) -> Iterator[Batch]:
        """Yield batches that are cropped and flipped at once, with the logits of the plain images."""
        padded = F.pad(self.pixels, (4, 4, 4, 4))
        steps, size = torch.arange(32), self.options.batch_size
        for _ in self._epochs():
            order = torch.randperm(len(self.images))
            for chosen in order.split(size):
                top, left = (torch.randint(0, 9, (len(chosen), 1)) for _ in range(2))
                columns = left + torch.where(torch.rand(len(chosen), 1) < 0.5, steps, steps.flip(0))
                place = ((top + steps)[:, :, None] * 40 + columns[:, None, :]).flatten(1)
                flat = padded[chosen].flatten(2)
                pixels = flat.gather(2, place[:, None].expand(-1, 3, -1)).unflatten(2, (32, 32))
                yield self.preset.normalize(pixels), self.logits[chosen], self.labels[chosen]

    def mapped(self) -> Iterator[Batch]:
        """Yield batches of torchvision's transforms, and logits from the file."""
        samples = Numbered(self.pictures, self.augment, self.file)
        for _ in self._epochs():
            for images, chosen, logits in DataLoader(samples, self.options.batch_size, shuffle=True):
                yield images, logits.float(), self.labels[chosen]

    def live(self) -> Iterator[Batch]:
        """Yield batches of torchvision's transforms, and the teacher's logits of the same crops."""
        samples = Numbered(self.pictures, self.augment)
        for _ in self._epochs():
            for images, chosen in DataLoader(samples, self.options.batch_size, shuffle=True):
                yield images, self._taught(images), self.labels[chosen]

    def timm(self) -> float:
        """Train as timm's ``train.py`` does, without its colors, with the teacher in the loop."""
        from timm.data import create_loader
        from timm.optim import create_optimizer_v2
        from timm.utils import AverageMeter

        loader = create_loader(
            Labeled(self.pictures, self.images.labels),
            input_size=(3, 32, 32),
            batch_size=self.options.batch_size,
            is_training=True,
            use_prefetcher=False,
            color_jitter=None,
            mean=self.preset.mean,
            std=self.preset.std,
            num_workers=0,
            persistent_workers=False,
            pin_memory=False,
        )
        module, _ = self._student(channels_last=False)
        optimizer = create_optimizer_v2(module, opt="sgd", lr=0.1, weight_decay=5e-4, momentum=0.9)
        losses = AverageMeter()
        began = time.process_time()
        for _ in self._epochs():
            for images, labels in loader:
                logits, targets = module(images), self._taught(images)
                loss = 0.9 * divergence(logits, targets) + 0.1 * F.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.update(loss.item(), len(images))
        return time.process_time() - began

    def _view(self, view: int) -> list[Batch]:
        """Return the batches of an epoch, with uint8 pixels."""
        batches = epoch_batches(len(self.images), batch_size=self.options.batch_size, data_seed=0, epoch=view)
        logits = self.store.plane(view)[self.rows]
        return [(self.renderer(each, view), torch.from_numpy(logits[each]), self.labels[each]) for each in batches]

    def _student(self, *, channels_last: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        module = load_model("resnet8", self.images).module.train()
        arrange(module, channels_last=channels_last)
        return module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)

    @torch.inference_mode()
    def _taught(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.teacher(images)
        return logits

    def _epochs(self) -> list[int]:
        """Return the number, from 0, of the augmented view of each epoch."""
        return [epoch % 2 for epoch in range(self.options.epochs)]


class Numbered(torch.utils.data.Dataset[Any]):
    """Transformed pictures with their numbers, and with a row of ``logits`` where there are any."""

    def __init__(
        self,
        pictures: list[Any],
        transform: Callable[[Any], torch.Tensor],
        logits: npt.NDArray[np.float16] | None = None,
    ) -> None:
        """Take pictures, and logits in the same order."""
        self._pictures, self._transform, self._logits = pictures, transform, logits

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._pictures)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        """Return a sample."""
        image = self._transform(self._pictures[row])
        return (image, row) if self._logits is None else (image, row, np.array(self._logits[row]))


class Labeled(torch.utils.data.Dataset[Any]):
    """Pictures and labels; the loader sets ``transform``."""

    transform: Callable[[Any], torch.Tensor]

    def __init__(self, pictures: list[Any], labels: npt.NDArray[np.int32]) -> None:
        """Take both in one order."""
        self._pictures, self._labels = pictures, labels.tolist()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._pictures)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        """Return a transformed picture and its label."""
        return self.transform(self._pictures[row]), self._labels[row]


def divergence(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return ``T^2 * KL`` as the public repositories compute it."""
    return F.kl_div(
        F.log_softmax(logits / TEMPERATURE, dim=1), F.softmax(targets / TEMPERATURE, dim=1), reduction="batchmean"
    ) * (TEMPERATURE**2)


def cached(images: Dataset, forward: Forward, options: argparse.Namespace) -> LogitStore:
    """Make the store of the plain and two augmented views, unless it is there."""
    path = options.work / f"{options.samples}.zarr"
    wanted = plan(
        forward,
        {"train": images},
        recipe=Recipe.parse("crop-flip"),
        seed=0,
        views=2,
        encoding=get_encoding("fp16"),
        batch_size=256,
    )
    renderer = Renderer(images, "crop-flip", seed=0, geometry=Geometry.of(forward.preset))
    with build(path, wanted) as builder:
        if not builder.sealed:
            for view in range(3):
                cache_plane(
                    *(builder, "train", view),
                    forward=forward,
                    renderer=renderer,
                    batch_size=256,
                    advance=lambda _samples: None,
                )
            builder.seal({})
    return open_store(path)


def rows_read(options: argparse.Namespace) -> dict[str, Any]:
    """Read 256 random rows of 1,000 classes from a store in memory and from an ``.npy`` file, in CPU milliseconds."""
    path = options.work / f"rows-{options.rows}.zarr"
    with build(path, small_plan(train=options.rows, views=0, classes=1_000, limits=Limits())) as builder:
        if not builder.sealed:
            for split in ("test", "train"):
                for shard in builder.shards(split, 0):
                    builder.submit(shard, 2 * torch.randn(shard.stop - shard.start, 1_000))
            builder.seal({})
    store, file = open_store(path), options.work / "rows.npy"
    np.save(file, store.codes(0).codes.numpy())
    mapped = np.load(file, mmap_mode="r")
    order = np.random.default_rng(0).permutation(options.rows)
    batches = order[: len(order) // 256 * 256].reshape(-1, 256)[:200]

    def timed(read: Callable[[npt.NDArray[np.int64]], Any]) -> Callable[[], float]:
        def measure() -> float:
            began = time.process_time()
            for rows in batches:
                read(rows)
            return (time.process_time() - began) / len(batches) * 1000

        return measure

    found: dict[str, Any] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        taken = interleaved(
            {
                "store": timed(store.logits),
                "npy fp16": timed(lambda rows: mapped[rows]),
                "npy to float32": timed(lambda rows: mapped[rows].astype(np.float32)),
            },
            rounds=options.rounds + 2,
            seed=0,
        )
        found[f"{threads} thread{'s' if threads > 1 else ''}"] = {
            "median_cpu_ms": {name: statistics.median(values) for name, values in taken.items()},
            "store_speed_over_npy_fp16": ratio(taken["npy fp16"], taken["store"]),
            "store_speed_over_npy_to_float32": ratio(taken["npy to float32"], taken["store"]),
        }
    torch.set_num_threads(1)
    return found


if __name__ == "__main__":
    main()
