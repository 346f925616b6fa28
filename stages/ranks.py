"""The ranks of a launcher such as torchrun: equal processes, on one machine or several, that share the work.

The launcher tells each its place by environment variables. Ranks agree through the files that they write, so that any
of them may die, and any other number may continue.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from kdpipe import models
from kdpipe.dataset import processors
from kdpipe.errors import DeviceError, ParamsError
from kdpipe.store.settings import Part


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

    def device(self, asked: str) -> torch.device:
        """Return this rank's device: for ``auto`` and ``cuda`` the GPU of its local rank.

        On a CPU, the ranks of a machine divide its processors among their threads.

        Raises:
            DeviceError: there are more ranks than GPUs on this machine, or no such device.
        """
        device = models.resolve_device(asked)
        if device.type == "cuda" and ":" not in asked:
            gpus = torch.cuda.device_count()
            if self.local_rank >= gpus:
                raise DeviceError(
                    f"there are {self.local_world} ranks on this machine and {gpus} GPUs: start torchrun with "
                    f"--nproc-per-node {gpus}, or pass --device cpu or cuda:N to all."
                )
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        elif device.type == "cpu":
            torch.set_num_threads(max(1, processors() // self.local_world))
        return device


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


def _number(name: str, *, default: int | None = None) -> int:
    value = os.environ.get(name, "" if default is None else str(default))
    if not value.isdecimal():
        raise ParamsError(
            f"WORLD_SIZE is above 1, and {name} is '{value}', expected a number: start kdpipe by torchrun, or unset "
            "WORLD_SIZE."
        )
    return int(value[:9])
