"""A model in training: its weights, optimizer, loss scale and weight average, and the step that changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kdpipe.models.layout import arrange
from kdpipe.training.checkpoint import State
from kdpipe.training.group import Group
from kdpipe.training.momenta import SeparateMomenta
from kdpipe.training.settings import Optimization


class Learner:
    """A model and its optimizer; ``state`` holds everything that a step changes."""

    def __init__(
        self,
        module: torch.nn.Module,
        settings: Optimization,
        *,
        device: torch.device,
        beside: torch.nn.Module,
        group: Group | None = None,
    ) -> None:
        """Train ``module``, which is on ``device``, in place, with the modules ``beside`` it that are no part of it.

        With a ``group``, other processes train copies of them.
        """
        self._group = group
        self.module = module.train()
        self._beside = beside
        self.settings = settings
        self.device = device
        if settings.channels_last:
            arrange(module, channels_last=True)
        self._learned = torch.nn.ModuleList([module, self._beside])
        self._optimizer = _optimizer(self._learned, settings, foreach=_foreach(device))
        self._dtype = arithmetic(settings.amp, device)
        if settings.dot is not None and self._dtype is torch.float16:
            self._dtype = torch.float32  # one loss scale does not fit two gradients
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)
        self._average = None if settings.ema is None else Average(module, settings.ema)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(module) if settings.compile else module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 logits ``(n, classes)`` of normalized images ``(n, 3, H, W)``."""
        if self.settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        reduced = self._dtype is not torch.float32
        with torch.autocast(self.device.type, dtype=self._dtype if reduced else None, enabled=reduced):
            logits = self._forward(images)
        return logits.float()

    def of_batch(self, images: torch.Tensor, *, rows: int) -> torch.Tensor:
        """Return the logits of a batch of ``rows``, whose images are those of this process's part."""
        if self._group is None:
            return self.forward(images)
        logits = self.forward(images) if len(images) else None
        classes = self._group.classes(logits, rows)
        if logits is None:
            nothing = next(each for each in self.module.parameters() if each.requires_grad).sum() * 0
            logits = nothing + torch.zeros(0, classes, device=self.device)
        return self._group.whole(logits, rows)

    def step(self, loss: torch.Tensor, *, rate: float, rows: int = 0, apart: torch.Tensor | None = None) -> None:
        """Take one step down the gradient of ``loss``, of a batch of ``rows``, at the learning rate ``rate``.

        Where momenta are separate, that of ``apart`` is taken as well, with the larger momentum.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        if apart is not None and isinstance(self._optimizer, SeparateMomenta):
            torch.autograd.backward(apart, retain_graph=True)
            learned = [each for each in self._learned.parameters() if each.grad is not None]
            self._optimizer.apart = {each: each.grad for each in learned if each.grad is not None}
            self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        if self._group is not None:
            self._group.take_step(self._learned, rows)
        if self.settings.clip_grad_norm is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._learned.parameters(), self.settings.clip_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self.module)

    @property
    def tested(self) -> Mapping[str, torch.Tensor]:
        """The weights and buffers that are tested: the averaged ones where there is an average."""
        return self.module.state_dict() if self._average is None else self._average.values

    @contextmanager
    def lent(self, weights: Mapping[str, torch.Tensor]) -> Iterator[torch.nn.Module]:
        """Yield the module with other weights, then restore its own."""
        own = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(weights)
        try:
            yield self.module
        finally:
            self.module.load_state_dict(own)

    def finish(self) -> None:
        """Leave the trained weights in the module: the averaged ones where there is an average."""
        if self._average is not None:
            self.module.load_state_dict(self._average.values)
        if self.settings.channels_last:
            arrange(self.module, channels_last=False)

    def empty(self) -> None:
        """Free the memory of all weights; only their shapes are left."""
        self._learned.to_empty(device="meta")

    def state(self) -> State:
        """Return everything that steps change, including the state of torch's random generators."""
        state: State = {
            "model": self.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": torch.get_rng_state(),
        }
        if self._average is not None:
            state["average"] = self._average.values
        if self._beside.state_dict():
            state["beside"] = self._beside.state_dict()
        if torch.cuda.is_available():
            state["cuda_generators"] = torch.cuda.get_rng_state_all()
        return state

    def restore(self, state: State) -> None:
        """Restore a ``state``.

        Raises:
            ValueError: the state of the optimizer, or the averaged weights, do not fit. Torch raises other types where
                it finds that a part does not fit.
        """
        self.module.load_state_dict(state["model"])
        self._beside.load_state_dict(state.get("beside", {}))
        own = _fixed(self._optimizer)
        self._optimizer.load_state_dict(state["optimizer"])
        for group in self._optimizer.param_groups:
            group["foreach"] = _foreach(self.device)
        if _fixed(self._optimizer) != own or not _fits(self._optimizer):
            raise ValueError("the optimizer's state is not that of these weights and settings")
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.restore(state["average"])
        torch.set_rng_state(state["generator"])
        if torch.cuda.is_available() and "cuda_generators" in state:
            torch.cuda.set_rng_state_all(state["cuda_generators"])


class Average:
    """The exponential moving average of a model's weights and buffers, ``decay * average + (1 - decay) * weights``.

    It begins with the initial weights; integer buffers are copied. Polyak and Juditsky, "Acceleration of Stochastic
    Approximation by Averaging" (1992), is the idea; the exponential form is that of timm and torchvision.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        """Begin with the weights of ``module``."""
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._blend: Callable[..., None] = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Add the weights after a step."""
        moving: list[torch.Tensor] = []
        current: list[torch.Tensor] = []
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                moving.append(self.values[name])
                current.append(value)
            else:
                self.values[name].copy_(value)
        self._blend(moving, current, 0)

    def restore(self, values: dict[str, torch.Tensor]) -> None:
        """Restore ``values``, on any device; raises ``ValueError`` where they do not fit."""
        if {name: value.shape for name, value in values.items()} != {
            name: value.shape for name, value in self.values.items()
        }:
            raise ValueError("the averaged weights are not those of this model")
        for name, value in values.items():
            self.values[name].copy_(value)


def _fixed(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the settings of each group that do not change from step to step."""
    return [
        {name: value for name, value in group.items() if name not in ("params", "lr", "foreach")}
        for group in optimizer.param_groups
    ]


def _fits(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether each tensor of the state is a number or has the shape of its parameter, which torch expects."""
    return all(
        value is None or (isinstance(value, torch.Tensor) and value.shape in (torch.Size([]), parameter.shape))
        for parameter, slots in optimizer.state.items()
        for value in slots.values()
    )


def arithmetic(amp: str, device: torch.device) -> torch.dtype:
    """Return the dtype of ``amp`` on a device."""
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp, torch.float32)


def _foreach(device: torch.device) -> bool | None:
    """Return whether to update all weights by one call for each operation: on a CPU faster, with the same bits.

    ``None`` leaves it to torch. Its fused kernels for a CPU are faster still, but wrong, without an error, where a
    gradient and its weights differ in memory format; a step takes 0.3 to 2 % less time with them.
    """
    return True if device.type == "cpu" else None


def _optimizer(module: torch.nn.Module, settings: Optimization, *, foreach: bool | None) -> torch.optim.Optimizer:
    decays_all = settings.decay_on == "all" or (settings.decay_on == "auto" and settings.optimizer == "sgd")
    groups = [{"params": list(module.parameters())}] if decays_all else _groups(module)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, foreach=foreach)
    if settings.dot is not None:
        return SeparateMomenta(
            groups,
            lr=settings.lr,
            momentum=0.9,
            gap=settings.dot,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
    return torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=0.9,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
        foreach=foreach,
    )


def _groups(module: torch.nn.Module) -> list[dict[str, Any]]:
    """Return two groups, as timm does: parameters that decay, and those of one dimension (biases and norms)."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in wanted if parameter.ndim > 1]},
        {"params": [parameter for parameter in wanted if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
