"""Networks of other packages: ``torchvision:NAME``, ``timm:NAME``, and your own ``package.module:function``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.errors import ModelError, did_you_mean
from kdpipe.models.optional import required
from kdpipe.models.preset import Known, for_imagenet, from_timm, from_torchvision, of_imagenet
from kdpipe.models.registry import Kind, Loaded, all_kinds, register, unknown
from kdpipe.printable import first_line

if TYPE_CHECKING:
    from torch import nn


def torchvision_names() -> list[str]:
    """Return the names of torchvision's image classifiers."""
    from torchvision import models

    return list(models.list_models(module=models))


def create_torchvision(name: str, num_classes: int) -> nn.Module:
    """Build a classifier of torchvision without weights.

    Raises:
        ModelError: torchvision has no such classifier.
    """
    from torchvision import models

    if name not in torchvision_names():
        hint = did_you_mean(name, torchvision_names())
        raise ModelError(f"torchvision has no classifier '{name}'{hint}")
    # These two return several outputs in training unless told not to, and warn about their initialization.
    plain = {"aux_logits": False, "init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    module: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **plain)
    return module


def load_torchvision(
    name: str,
    weights: str | Path | None,
    num_classes: int,
    **_given: object,
) -> Loaded | None:
    """Load published weights of torchvision, such as ``DEFAULT``, downloading them if they are not cached.

    Raises:
        ModelError: torchvision has no such classifier or weights, or they have another number of classes.
    """
    from torchvision import models

    from kdpipe.models.weights import class_mismatch

    if not isinstance(weights, str) or Path(weights).suffix:
        return None
    if name not in torchvision_names():
        raise unknown(f"torchvision:{name}")
    members = models.get_model_weights(name).__members__
    if weights not in members:
        published = ", ".join(members) or "none"
        hint = did_you_mean(weights, members)
        raise ModelError(f"torchvision:{name} has no weights '{weights}'{hint} (published: {published})")
    chosen = members[weights]
    classes = tuple(chosen.meta["categories"])
    if len(classes) != num_classes:
        raise class_mismatch(f"torchvision:{name} {chosen.name}", len(classes), num_classes)
    try:
        module = models.get_model(name, weights=chosen)
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        raise ModelError(f"torchvision:{name} {chosen.name}: cannot get {chosen.url}: {reason}") from error
    return Loaded(module, (from_torchvision(chosen),), classes)


def published_torchvision(name: str, _module: nn.Module) -> Known:
    """Return the preset of a classifier's first published weights; ImageNet's where it has none of that name."""
    from torchvision import models

    members = models.get_model_weights(name).__members__
    if "IMAGENET1K_V1" not in members:
        return of_imagenet("ImageNet")
    return from_torchvision(members["IMAGENET1K_V1"])


def create_timm(name: str, num_classes: int) -> nn.Module:
    """Build a model of timm without weights.

    Raises:
        ModelError: timm is not installed, or has no such model.
    """
    module: nn.Module = _timm(name).create_model(name, pretrained=False, num_classes=num_classes)
    return module


def load_timm(
    name: str,
    weights: str | Path | None,
    num_classes: int,
    **_given: object,
) -> Loaded | None:
    """Load the published weights of a timm model where ``weights`` is ``DEFAULT``.

    Raises:
        ModelError: timm is not installed, or has no such model, or the weights have another number of classes.
    """
    from kdpipe.models.weights import class_mismatch

    if weights != "DEFAULT":
        return None
    timm = _timm(name)
    try:
        module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"timm:{name}: cannot get its weights: {first_line(error)}") from error
    if module.num_classes != num_classes:
        raise class_mismatch(f"timm:{name}", module.num_classes, num_classes)
    return Loaded(module, (from_timm(module),))


def _timm(name: str) -> Any:
    """Return timm, which has the model ``name``.

    Raises:
        ModelError: timm is not installed, or has no such model.
    """
    timm = required("timm", extra="timm", by="timm:NAME")
    if not timm.is_model(name):
        raise ModelError(f"timm has no model '{name}'{did_you_mean(name, timm.list_models())}")
    return timm


def create_own(name: str, num_classes: int) -> nn.Module:
    """Call ``function(num_classes)`` of an importable module; the working directory is searched last.

    Raises:
        ModelError: the module or the function is missing, fails, or does not return a ``torch.nn.Module``.
    """
    from torch import nn

    module_name, _, function_name = name.partition(":")
    working_directory = str(Path.cwd())
    if working_directory not in sys.path:
        sys.path.append(working_directory)
    try:
        imported = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        near = did_you_mean(name, [f"{kind.name}:{function_name}" for kind in all_kinds() if kind.prefixed])
        raise ModelError(f"'{name}': cannot import '{module_name}': {error}{near}") from error
    function = getattr(imported, function_name, None)
    if not callable(function):
        hint = did_you_mean(function_name, dir(imported))
        raise ModelError(f"'{name}': module '{module_name}' has no function '{function_name}'{hint}")
    try:
        built = function(num_classes)
    except Exception as error:  # it is the caller's code, and may do anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"'{name}' failed when called with {num_classes}, the number of classes: {reason}") from error
    if not isinstance(built, nn.Module):
        raise ModelError(f"'{name}' returned a {type(built).__name__}, expected a torch.nn.Module")
    return built


register(
    Kind(
        "torchvision:NAME",
        "An image classifier of torchvision.",
        create_torchvision,
        source="https://docs.pytorch.org/vision/stable/models.html",
        load=load_torchvision,
        preset=lambda _name, _module: for_imagenet("torchvision"),
        published=published_torchvision,
        names=torchvision_names,
    )
)
register(
    Kind(
        "timm:NAME",
        "A model of timm, which is installed with kdpipe[timm].",
        create_timm,
        source="https://huggingface.co/docs/timm",
        load=load_timm,
        preset=lambda _name, module: from_timm(module),
    )
)
register(
    Kind(
        "package.module:function",
        "The torch.nn.Module that your own function returns for a number of classes.",
        create_own,
        prefixed=False,
        foreign=True,
    )
)
