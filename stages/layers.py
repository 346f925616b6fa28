"""What `kdpipe models NAME --layers` prints: the layers that `--signals` can name."""

from __future__ import annotations

from kdpipe import models
from kdpipe.errors import ParamsError

_HALF = (0.5, 0.5, 0.5)


def show_layers(name: str | None, *, num_classes: int, size: int | None) -> None:
    """Print a model's layers whose output is one tensor, in the order in which they are done, with its shape.

    Raises:
        ParamsError: there is no name.
        ModelError: nothing has this name.
    """
    if name is None:
        raise ParamsError("models --layers needs the name of one model, such as: kdpipe models resnet20 --layers")
    model = models.load(name, num_classes=num_classes, size=size, fallback_statistics=lambda: (_HALF, _HALF))
    side = model.preset.size
    found = models.layers(model.module, side)
    width = max(map(len, ("layer", *found)))
    print(f"{'layer':{width}}  output   ({name}, {num_classes} classes, {side} x {side})")
    for layer, shape in found.items():
        print(f"{layer:{width}}  {' x '.join(map(str, shape))}")
    penultimate = model.penultimate
    if penultimate is not None:
        print(f"{'penultimate':{width}}  {penultimate.dim}, shown to {penultimate.layer}")
