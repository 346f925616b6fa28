"""A smaller model from a trained one: pruned, then factored, and named by the layers that are left."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from kdpipe.compress.low_rank import decompose
from kdpipe.compress.pruning import Cost, prune
from kdpipe.errors import ModelError
from kdpipe.models import Model, base_of, of_images
from kdpipe.models.compressed import factorable, shape_of
from kdpipe.models.inspection import evaluating
from kdpipe.models.loading import identify
from kdpipe.models.registry import create, resolve
from kdpipe.printable import first_line


def smaller(
    model: Model, *, num_classes: int, pruned: float | None = None, low_rank: float | None = None, by: Cost = "macs"
) -> Model:
    """Return a copy of a model without the fraction ``pruned`` of its cost, then without ``low_rank`` of the rest.

    Its name is the one that it is built from again, and its weights those of the channels that are left. Where neither
    is given the model is returned as it is.

    Raises:
        ModelError: as of ``prune`` and ``decompose``, or the smaller network cannot be built from a name.
    """
    if pruned is None and low_rank is None:
        return model
    base, size = base_of(model.name), of_images(model.preset, "compression").size
    if resolve(base)[0].create is None:
        raise ModelError(
            f"{model.name} is a program, whose layers cannot be changed: compress a run of an architecture"
        )
    module = model.module
    if pruned is not None:
        module = prune(module, size=size, fraction=pruned, by=by, name=base)
    if low_rank is not None:
        whole = {name for name, _ in factorable(create(base, num_classes))}
        module = decompose(module, size=size, fraction=low_rank, by=by, name=base, among=whole)
    name = str(shape_of(module, base=base, num_classes=num_classes))
    built = create(name, num_classes)
    built.load_state_dict(module.state_dict())
    built.eval()
    _refuse_other_logits(module, built, size=size, base=base)
    return replace(model, name=name, module=built, digest=identify(name, built))


def _refuse_other_logits(module: nn.Module, built: nn.Module, *, size: int, base: str) -> None:
    """Refuse a network that computes other logits than the one that is built in its place, or none."""
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with evaluating(module), torch.no_grad():
            equal = torch.equal(built(images), module(images))
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"{base} cannot be compressed: it does not compute with fewer channels ({first_line(error)})"
        ) from error
    if not equal:
        raise ModelError(f"{base} cannot be compressed: a network with its layers' shapes computes other logits")
