"""The ranks of a launcher such as torchrun: equal processes, on one machine or several, that share the work.

The launcher tells each its place by environment variables. Ranks agree through the files that they write, so that any
of them may die, and any other number may continue.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from blake3 import blake3

from kdpipe.dataset import processors
from kdpipe.dataset.caching import cache_directory
from kdpipe.durable import HeldError, take_lock
from kdpipe.errors import DeviceError, ParamsError, RunError
from kdpipe.store.settings import Part

T = TypeVar("T")

PATIENCE = 900.0
"""Seconds without a change of any file after which waiting for other ranks ends."""
_POLL = 0.1


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of a launcher."""

    rank: int
    """From 0."""
    world: int
    local_rank: int
    """Its place on this machine, from 0."""
    local_world: int
    """Number of ranks on this machine."""

    @property
    def part(self) -> Part:
        """The part of the work that this rank begins with."""
        return Part(self.rank + 1, self.world)

    def claim(self, asked: str) -> None:
        """Make this rank's device the one that ``auto``, ``cuda`` or ``cpu`` means: the GPU of its local rank.

        On a CPU, the ranks of a machine divide its processors among their threads. To be called before CUDA is used.

        Raises:
            DeviceError: there are more ranks than GPUs on this machine.
        """
        gpus = torch.cuda.device_count() if asked in ("auto", "cuda") else 0
        if gpus == 0:
            torch.set_num_threads(processors(of_rank=True))
            return
        if self.local_rank >= gpus:
            raise DeviceError(
                f"there are {self.local_world} ranks on this machine and {gpus} GPUs: start torchrun with "
                f"--nproc-per-node {gpus}, or pass --device cpu or cuda:N to all."
            )
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if "CUDA_VISIBLE_DEVICES" in os.environ else []
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[self.local_rank] if visible else str(self.local_rank)

    def dealt(self, things: Sequence[T]) -> list[T]:
        """Return those of some things that are this rank's."""
        return list(things[self.rank :: self.world])


def launched() -> Ranks | None:
    """Return the place of this process among several ranks; ``None`` where it is the only one.

    Raises:
        ParamsError: ``WORLD_SIZE`` is above 1, and another variable of the launcher is missing or no number.
    """
    world = os.environ.get("WORLD_SIZE", "")
    if not world.isdecimal() or int(world[:9]) <= 1:
        return None
    rank, local_rank = _number("RANK"), _number("LOCAL_RANK", default=0)
    return Ranks(rank, int(world[:9]), local_rank, max(_number("LOCAL_WORLD_SIZE", default=1), 1))


def refuse_ranks(command: str) -> None:
    """Refuse to run as one of several ranks, each of which would do the whole work in the same directory.

    Raises:
        ParamsError: the environment has a ``WORLD_SIZE`` above 1.
    """
    ranks = os.environ.get("WORLD_SIZE", "")
    if ranks.isdecimal() and int(ranks[:9]) > 1:
        raise ParamsError(
            f"kdpipe {command} runs in one process, and WORLD_SIZE is {ranks[:9]}: start it without torchrun, or unset "
            "WORLD_SIZE."
        )


@contextmanager
def first_on_machine(data: str) -> Iterator[Callable[[], None]]:
    """Let one rank of this machine load a dataset before the others, which then find what it has remembered of it.

    Without several ranks, nothing is waited for. The yielded function gives a sign of life.

    Raises:
        RunError: the rank that loads it shows no sign of life.
    """
    ranks = launched()
    if ranks is None or ranks.local_world == 1:
        yield lambda: None
        return
    lock = cache_directory() / f"loading-{blake3(data.encode()).hexdigest(length=8)}.lock"
    with suppress(OSError):
        lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(lock.parent, os.W_OK):
        yield lambda: None
        return
    descriptor = _taken(lock, data)
    try:
        yield lambda: os.utime(descriptor)
    finally:
        os.close(descriptor)


def _taken(lock: Path, data: str) -> int:
    """Return a lock alone, or where another rank has it, shared, once that one has ended."""
    with suppress(HeldError):
        return take_lock(lock)
    seen, since = 0, time.monotonic()
    while True:
        with suppress(HeldError):
            return take_lock(lock, shared=True)
        sign = lock.stat().st_mtime_ns
        if sign != seen:
            seen, since = sign, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise RunError(f"waited {PATIENCE:.0f} s for another rank to load {data}, without a sign of life of it.")
        time.sleep(_POLL)


def _number(name: str, *, default: int | None = None) -> int:
    value = os.environ.get(name, "" if default is None else str(default))
    if not value.isdecimal():
        raise ParamsError(
            f"WORLD_SIZE is above 1, and {name} is '{value}', expected a number: start kdpipe by torchrun, or unset "
            "WORLD_SIZE."
        )
    return int(value[:9])
