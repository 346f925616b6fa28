"""One training by several processes: each computes its part of every batch, and all take the same step.

Every process has the labels and the soft targets of the whole batch. The logits of the parts are put together, so that
the loss, its gradient and all figures are those of the whole batch, however it is divided. Only batch normalization
sees a part: its statistics are those of the process's own samples, and the running ones are averaged.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from blake3 import blake3
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from kdpipe.errors import RunError
from kdpipe.training.failures import ran_out_of_memory

_POLL = 0.05


class Group:
    """This process's place among those that train one model."""

    def __init__(self, rank: int, world: int) -> None:
        """Take the place ``rank``, from 0, of ``world``; the processes are connected already."""
        self.rank, self._world = rank, world
        self._asked: Callable[[], bool] = lambda: False
        self._stopping = False

    def own(self, rows: int) -> slice:
        """Return this process's part of a batch of ``rows``: none, or at least two where the batch has two."""
        parts = self._parts(rows)
        if self.rank >= parts:
            return slice(rows, rows)
        return slice(self.rank * rows // parts, (self.rank + 1) * rows // parts)

    def agreed(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """Return a function that tells whether any process was asked to stop before the last step of all."""
        self._asked = should_stop
        return lambda: self._stopping

    def whole(self, logits: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the logits of all ``rows`` of a batch; their gradient reaches those of this process's part."""
        whole: torch.Tensor = _Whole.apply(logits, self.own(rows), rows)
        return whole

    def classes(self, logits: torch.Tensor | None, rows: int) -> int:
        """Return the number of classes, which a process without a part of a batch learns from the others."""
        if logits is not None and self._parts(rows) == self._world:
            return logits.shape[1]
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        found = torch.tensor([0 if logits is None else logits.shape[1]], device=device)
        _reduce(found, "MAX")
        return int(found)

    def take_step(self, learned: torch.nn.Module, rows: int) -> None:
        """Sum the gradients of all processes and average the running statistics, for a batch of ``rows``."""
        parameters = [each for each in learned.parameters() if each.requires_grad]
        statistics = [
            value
            for module in learned.modules()
            if isinstance(module, _BatchNorm)
            for value in (module.running_mean, module.running_var)
            if value is not None
        ]
        share = 1 / self._parts(rows) if self.rank < self._parts(rows) else 0.0
        known = [each.grad is not None for each in parameters]
        pieces = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        sent = [*pieces, *(share * value for value in statistics)]
        told = torch.tensor([*map(float, known), float(self._asked())], device=parameters[0].device)
        flat = torch.cat([*(each.flatten() for each in sent), told])
        _reduce(flat)
        received = torch.split(flat[: len(flat) - len(told)], [each.numel() for each in sent])
        told = flat[len(flat) - len(told) :].cpu()
        with torch.no_grad():
            for parameter, piece, total, count in zip(parameters, pieces, received, told, strict=False):
                parameter.grad = piece.copy_(total.view(piece.shape)) if count else None
            for value, total in zip(statistics, received[len(parameters) :], strict=True):
                value.copy_(total.view(value.shape))
        self._stopping = bool(told[-1])

    def _parts(self, rows: int) -> int:
        """Return how many processes have a part of a batch; two samples are the least for batch normalization."""
        return min(self._world, max(1, rows // 2))


class _Whole(torch.autograd.Function):
    """Logits of a whole batch, of which each process has computed a part."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, own: slice, rows: int) -> torch.Tensor:
        ctx.own = own
        whole = logits.new_zeros(rows, logits.shape[1])
        whole[own] = logits
        _reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0][ctx.own], None, None


@contextmanager
def joined(rank: int, world: int, device: torch.device, *, patience: float) -> Iterator[Group]:
    """Connect the processes of a launcher for the block, in which each waits up to ``patience`` seconds for others.

    Raises:
        RunError: they cannot be connected in this time.
    """
    place = ":".join(os.environ.get(name, f"no {name}") for name in ("MASTER_ADDR", "MASTER_PORT"))
    limit = timedelta(seconds=patience)
    try:
        store, _, _ = next(iter(rendezvous("env://", rank, world, timeout=limit)))
        met = _meet(store, rank, world, patience=patience)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=met, timeout=limit, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"rank {rank} waited up to {patience:.0f} s to meet the other {world - 1} at {place}: "
            f"{_first_line(error)}. Start all of them by torchrun."
        ) from None
    try:
        yield Group(rank, world)
    finally:
        dist.destroy_process_group()


def _meet(store: Any, rank: int, world: int, *, patience: float) -> Any:
    """Return a part of the launcher's store for these processes alone, once all of them have come.

    torchrun starts ranks again with the same store, in which those before have left their addresses. Each rank enters
    a name that it has drawn, rank 0 lists them, and they have met when all have confirmed one list.
    """
    own, deadline = secrets.token_hex(8), time.monotonic() + patience
    store.set(f"kdpipe/name/{rank}", own)
    while True:
        if rank == 0:
            store.set("kdpipe/names", " ".join(_entered(store, f"kdpipe/name/{each}") for each in range(world)))
        names = _entered(store, "kdpipe/names")
        if own in names:
            store.set(f"kdpipe/confirmed/{rank}", names)
        missing = [each for each in range(world) if _entered(store, f"kdpipe/confirmed/{each}") != names]
        if own not in names:
            missing = [0]
        if not missing:
            part = f"kdpipe/{blake3(names.encode()).hexdigest(length=8)}"
            return dist.PrefixStore(part, store)  # type: ignore[attr-defined]
        if time.monotonic() > deadline:
            raise RuntimeError(f"not there: rank {', '.join(map(str, missing[:8]))}")
        time.sleep(_POLL)


def _entered(store: Any, key: str) -> str:
    found: str = store.get(key).decode() if store.check([key]) else "-"
    return found


def _reduce(values: torch.Tensor, operation: str = "SUM") -> None:
    """Replace values by their sum, or another ``operation``, over all processes, which is the same in each to the bit.

    Raises:
        RunError: another process has ended, or does not come to this step in time.
    """
    try:
        dist.all_reduce(values, getattr(dist.ReduceOp, operation))
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise
        raise RunError(
            f"another rank has ended, or was waited for in vain: {_first_line(error)}. Run the same command with "
            "--resume."
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200].rstrip(".")
