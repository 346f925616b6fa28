"""Names of models to modules.

``resnet20`` and the like come from the zoo, ``torchvision:NAME`` and ``timm:NAME`` from those packages,
``file:PATH.pt2`` is a program of torch.export, ``run:DIR`` what a finished run trained, and ``package.module:function``
is the caller's own code.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from kdpipe.errors import ModelError, did_you_mean
from kdpipe.models.zoo import BUILDERS


def names() -> list[str]:
    """Return the names of the zoo, in the order of its families."""
    return list(BUILDERS)


def create(name: str, num_classes: int) -> nn.Module:
    """Build the network called ``name``, in training mode on the CPU, drawing from torch's global generator.

    Raises:
        ModelError: nothing has this name, or it is a program or a run, which cannot be made anew.
    """
    if name in BUILDERS:
        return BUILDERS[name](num_classes)
    source, _, rest = name.partition(":")
    if not rest:
        raise unknown(name)
    if source == "torchvision":
        return create_torchvision(rest, num_classes)
    if source == "timm":
        return create_timm(rest, num_classes)
    if source in {"file", "run"}:
        raise ModelError(f"'{name}' carries its own weights and cannot be trained from scratch; name an architecture")
    return create_own(source, rest, num_classes)


def is_file(name: str) -> bool:
    """Say whether the name is ``file:PATH``."""
    return name.startswith("file:")


def is_own(name: str) -> bool:
    """Say whether the name is ``package.module:function``."""
    source, colon, _ = name.partition(":")
    return bool(colon) and source not in {"torchvision", "timm", "file", "run"}


def unknown(name: str) -> ModelError:
    """Return the error for a name that nothing answers to, with the nearest known ones."""
    known = [*BUILDERS, *(f"torchvision:{architecture}" for architecture in torchvision_names())]
    # The likeliest slips are the wrong case and a forgotten prefix.
    same = [f"'{other}'" for other in known if other.rpartition(":")[2].lower() == name.lower()]
    hint = f"; did you mean {' or '.join(same)}?" if same else did_you_mean(name, known)
    forms = "torchvision:NAME, timm:NAME, run:DIR, file:PATH.pt2 or package.module:function"
    return ModelError(f"unknown model '{name}'{hint} (or use {forms})")


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
    # These two return several outputs in training unless told not to, and warn about their initialisation.
    plain = {"aux_logits": False, "init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    module: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **plain)
    return module


def import_timm() -> Any:
    """Import timm.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ModelError("models named timm:NAME need timm: pip install 'kdpipe[timm]'") from error


def create_timm(name: str, num_classes: int) -> nn.Module:
    """Build a model of timm without weights.

    Raises:
        ModelError: timm is not installed, or has no such model.
    """
    timm = import_timm()
    if not timm.is_model(name):
        raise ModelError(f"timm has no model '{name}'{did_you_mean(name, timm.list_models())}")
    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
    return module


def create_own(module_name: str, function_name: str, num_classes: int) -> nn.Module:
    """Call ``function(num_classes)`` of an importable module; the working directory is searched last.

    Raises:
        ModelError: the module or the function is not there, fails, or does not return a ``torch.nn.Module``.
    """
    name = f"{module_name}:{function_name}"
    working_directory = str(Path.cwd())
    if working_directory not in sys.path:
        sys.path.append(working_directory)
    try:
        imported = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        prefixes = [f"{known}:{function_name}" for known in ("torchvision", "timm", "file", "run")]
        raise ModelError(f"'{name}': cannot import '{module_name}': {error}{did_you_mean(name, prefixes)}") from error
    function = getattr(imported, function_name, None)
    if not callable(function):
        hint = did_you_mean(function_name, dir(imported))
        raise ModelError(f"'{name}': module '{module_name}' has no function '{function_name}'{hint}")
    try:
        built = function(num_classes)
    except Exception as error:  # it is the caller's code, and may do anything
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ModelError(f"'{name}' failed when called with {num_classes}, the number of classes: {reason}") from error
    if not isinstance(built, nn.Module):
        raise ModelError(f"'{name}' returned a {type(built).__name__}, expected a torch.nn.Module")
    return built
