"""``package.module:function``: the dataset that a user's own function returns.

The function is called with ``"train"`` or ``"test"`` and returns a sequence of ``(picture, class index)``: a
PIL image or a uint8 tensor ``(3, H, W)``, and an int (-1 for none). The sequence has ``classes``, the class
names. It may have ``keys``, a stable name for each sample (otherwise its index), and ``targets``, all class
indices, so that they need not be read from every item.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.dataset.items import ItemSource, as_labels, check_labels
from kdpipe.dataset.registry import Listing, Request, all_kinds, register
from kdpipe.errors import DatasetError, did_you_mean


@register("package.module:function", pattern=r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
def list_callable(request: Request, spec: str) -> Listing:
    """The sequence of (picture, class index) that your own function returns for "train" and "test".

    Raises:
        DatasetError: The function is missing, fails, or returns something else.
    """
    split = request.split
    opened = open_callable(spec, split)
    where = f"{spec}('{split}')"
    classes = _names(opened, "classes", where)
    if classes is None:
        raise DatasetError(f"{where} has no 'classes'; set it to the list of class names, in the order of the labels")
    if not classes or len(set(classes)) != len(classes):
        raise DatasetError(f"{where}.classes must be different names, at least one; found {list(classes)!r:.120}")
    if len(opened) == 0:
        raise DatasetError(f"{where} returned no samples; expected at least one")
    keys = _names(opened, "keys", where)
    if keys is None:
        keys = tuple(f"{spec}/{split}/{index}" for index in range(len(opened)))
    if len(keys) != len(opened):
        raise DatasetError(f"{where} has {len(keys)} keys for {len(opened)} samples; give each sample one key")
    source = ItemSource(where, partial(open_callable, spec, split), opened)
    targets = getattr(opened, "targets", None)
    if targets is None:
        labels = source.labels(len(opened), what=f"reading {split}", progress=request.progress)
    else:
        numbers = np.asarray(targets)
        if numbers.shape != (len(opened),) or numbers.dtype.kind not in "iu":
            raise DatasetError(
                f"{where}.targets has shape {numbers.shape} and type {numbers.dtype}, expected {len(opened)} integers"
            )
        labels = as_labels(numbers.astype(np.int64))
    check_labels(labels, len(classes), where=where)
    return Listing(spec, classes, keys, labels, source)


def open_callable(spec: str, split: str) -> Any:
    """Import the function, with the current directory importable, and return its sequence for ``split``.

    Raises:
        DatasetError: The function is missing, fails, or returns no sequence.
    """
    module_name, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            near = did_you_mean(module_name, [kind.name for kind in all_kinds() if kind.pattern is None])
            raise DatasetError(
                f"dataset '{spec}': there is no module '{error.name}' here or installed{near or '; check the name'}"
            ) from error
        raise DatasetError(f"dataset '{spec}': importing {module_name} failed: {error}") from error
    except Exception as error:  # the module is someone else's code
        raise DatasetError(
            f"dataset '{spec}': importing {module_name} raised {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        public = [other for other in dir(module) if not other.startswith("_")]
        raise DatasetError(f"dataset '{spec}': {module_name} has no function '{name}'{did_you_mean(name, public)}")
    try:
        opened = function(split)
    except Exception as error:  # the function is someone else's code
        raise DatasetError(f"{spec}('{split}') raised {type(error).__name__}: {error}") from error
    if not (hasattr(opened, "__len__") and hasattr(opened, "__getitem__")):
        raise DatasetError(
            f"{spec}('{split}') returned a {type(opened).__name__}, expected a sequence of (picture, class index)"
        )
    return opened


def _names(opened: Any, attribute: str, where: str) -> tuple[str, ...] | None:
    names = getattr(opened, attribute, None)
    if names is None or callable(names):
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{where}.{attribute} is {names!r:.80}, expected a sequence of strings")
    return tuple(names)
