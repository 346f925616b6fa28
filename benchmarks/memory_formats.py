"""Channels-last against torch's default memory format, and what ``torch.compile`` costs and gains, on one CPU thread.

    python benchmarks/memory_formats.py

Bare training steps (SGD with momentum, cross entropy) and forward passes of networks with random weights, on batches
that lie in memory: 128 images of 32 x 32, or 8 of 224 x 224. CPU time, interleaved rounds. Compiling is measured from
the first call until the step has run, in a cache folder of its own. ``OMP_NUM_THREADS`` should not be set: with 1, the
compiler makes other code, which takes twice the time. Writes benchmarks/results/memory_formats.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import interleaved, machine, ratio

from kdpipe.models.parts import keep_memory
from kdpipe.models.registry import create

RESULT = Path(__file__).parent / "results" / "memory_formats.json"
FORMATS = {"default": torch.contiguous_format, "channels-last": torch.channels_last}
TRAINED = ("resnet8", "resnet20", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2", "torchvision:mobilenet_v3_small")
LARGE = ("torchvision:resnet18", "torchvision:efficientnet_b0", "torchvision:vit_b_16", "torchvision:convnext_tiny")
COMPILED = ("resnet8", "resnet20", "MobileNetV2")


def main() -> None:
    """Measure both tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # as the commands do
    formats = {name: compared(name, 32, 128, rounds=options.rounds) for name in TRAINED}
    formats |= {name: compared(name, 224, 8, rounds=options.rounds) for name in LARGE}
    found = {
        "command": "python benchmarks/memory_formats.py",
        "machine": machine(),
        "default_over_channels_last": formats,
        "compile": {name: compiled(name, rounds=options.rounds) for name in COMPILED},
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def compared(name: str, size: int, batch: int, *, rounds: int) -> dict[str, Any]:
    """Return the time in torch's default format over that in channels-last, of a step (at 32 pixels) and a pass."""
    images, labels = drawn(size, batch)
    network = create(name, 100)
    ways: dict[str, dict[str, Callable[[], float]]] = {"forward": {}, "step": {}}
    for form, memory_format in FORMATS.items():
        own = copy.deepcopy(network).to(memory_format=memory_format)
        given = images.contiguous(memory_format=memory_format)
        ways["forward"][form] = forward(copy.deepcopy(own).eval(), given)
        ways["step"][form] = step(own.train(), given, labels)
    kinds = ("forward", "step") if size == 32 else ("forward",)
    found: dict[str, Any] = {"size": size, "batch": batch}
    for kind in kinds:
        for way in ways[kind].values():
            way()
        seconds = interleaved(ways[kind], rounds=rounds)
        found[kind] = ratio(seconds["default"], seconds["channels-last"])
    return found


def compiled(name: str, *, rounds: int) -> dict[str, Any]:
    """Return the seconds to compile a training step, its gain, and the images after which it has paid."""
    images, labels = drawn(32, 128)
    given = images.contiguous(memory_format=torch.channels_last)
    network = create(name, 100).to(memory_format=torch.channels_last).train()
    plain = step(copy.deepcopy(network), given, labels)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        faster = step(network, given, labels, compiled=True)
        began = time.perf_counter()
        faster()
        compiling = time.perf_counter() - began
        plain()
        seconds = interleaved({"plain": plain, "compiled": faster}, rounds=rounds)
    saved = [(one - other) / STEPS / len(given) for one, other in zip(*seconds.values(), strict=True)]
    each = sorted(saved)[len(saved) // 2]
    return {
        "seconds_to_compile": compiling,
        "plain_over_compiled": ratio(seconds["plain"], seconds["compiled"]),
        "breaks_even_after_images": compiling / each if each > 0 else None,
    }


STEPS = 4
"""Steps or passes that are timed together."""


def forward(network: torch.nn.Module, images: torch.Tensor) -> Callable[[], float]:
    """Return a function that passes the images, and returns the CPU seconds it took."""

    @torch.inference_mode()
    def run() -> float:
        began = time.process_time()
        for _ in range(STEPS):
            network(images)
        return time.process_time() - began

    return run


def step(
    network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, *, compiled: bool = False
) -> Callable[[], float]:
    """Return a function that trains on the images, and returns the CPU seconds it took."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, foreach=True)
    passed: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network) if compiled else network

    def run() -> float:
        began = time.process_time()
        for _ in range(STEPS):
            loss = torch.nn.functional.cross_entropy(passed(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.process_time() - began

    return run


def drawn(size: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images ``(batch, 3, size, size)`` and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator)
    return images, torch.randint(0, 100, (batch,), generator=generator)


if __name__ == "__main__":
    main()
