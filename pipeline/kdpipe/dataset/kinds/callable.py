"""``package.module:function``: the dataset that a user's own function returns.

The function is called with ``"train"`` or ``"test"`` and returns a sequence of ``(item, class index)``: a PIL image, a
uint8 tensor ``(3, H, W)``, or tensors, and an int (-1 for none). Tensors are one array of other numbers than uint8, or
a dictionary of arrays, of the same names, types and shapes in every item. The sequence has ``classes``, the class
names. It may have ``keys``, a stable name for each sample (otherwise its index), and ``targets``, all class
indices, so that they need not be read from every item. For "test" the function is also called with "train", to compare
their ``classes``, which must be equal.

Every item is read and decoded before the first pass, to learn its digest and size. What was learned is remembered if
the sequence has ``fingerprint``, a string that changes whenever an item does, or ``digests``, a string or bytes for
each item that change when it does. Both may be methods.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.ids import as_digests, bytes_digest
from kdpipe.dataset.items import ItemSource, as_labels, check_labels
from kdpipe.dataset.registry import Listing, Request, all_kinds, register
from kdpipe.errors import DatasetError, did_you_mean


@register("package.module:function", pattern=r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
def list_callable(request: Request, spec: str) -> Listing:
    """The sequence of (item, class index) that your own function returns for "train" and "test".

    Raises:
        DatasetError: The function is missing, fails, or returns something else.
    """
    split = request.split
    opened = open_callable(spec, split)
    where = f"{spec}('{split}')"
    classes = _classes(opened, where)
    if split != "train":
        _refuse_other_classes(spec, classes, where)
    if len(opened) == 0:
        raise DatasetError(f"{where} returned no samples; expected at least one")
    keys = _names(opened, "keys", where)
    if keys is None:
        keys = tuple(f"{spec}/{split}/{index}" for index in range(len(opened)))
    if len(keys) != len(opened):
        raise DatasetError(f"{where} has {len(keys)} keys for {len(opened)} samples; give each sample one key")
    source = ItemSource(where, partial(open_callable, spec, split), opened, _contents(opened, where))
    targets = getattr(opened, "targets", None)
    if targets is None:
        labels = source.labels(
            len(opened), what=f"reading {split}", progress=request.progress, processes=request.processes
        )
    else:
        numbers = np.asarray(targets)
        if numbers.shape != (len(opened),) or numbers.dtype.kind not in "iu":
            raise DatasetError(
                f"{where}.targets has shape {numbers.shape} and type {numbers.dtype}, expected {len(opened)} integers"
            )
        labels = as_labels(numbers.astype(np.int64))
    check_labels(labels, len(classes), where=where)
    return Listing(spec, classes, keys, labels, source)


def _classes(opened: Any, where: str) -> tuple[str, ...]:
    classes = _names(opened, "classes", where)
    if classes is None:
        raise DatasetError(f"{where} has no 'classes'; set it to the list of class names, in the order of the labels")
    if not classes or len(set(classes)) != len(classes):
        raise DatasetError(f"{where}.classes must be different names, at least one; found {list(classes)!r:.120}")
    return classes


def _refuse_other_classes(spec: str, classes: tuple[str, ...], where: str) -> None:
    """Refuse a split whose class indices are of other names than those of ``train``, where there is a train split.

    Raises:
        DatasetError: the names or their order differ.
    """
    trained = f"{spec}('train')"
    try:
        theirs = _classes(open_callable(spec, "train"), trained)
    except DatasetError:  # a function for testing alone
        return
    if theirs != classes:
        raise DatasetError(
            f"{where}.classes differ from those of {trained} ({_differing(classes, theirs)}): the same index would be "
            "another class; return both splits with the same names in the same order"
        )


def _differing(ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    """Return the first place at which two lists of class names differ, or their lengths."""
    for index, (own, other) in enumerate(zip(ours, theirs, strict=False)):
        if own != other:
            return f"class {index} is {own!r:.80} against {other!r:.80}"
    return f"{len(ours)} against {len(theirs)} names"


def _contents(opened: Any, where: str) -> npt.NDArray[np.uint8] | None:
    """Return 16 bytes for each item that change when it does, ``(n, 16)``; None where the sequence gives neither.

    Raises:
        DatasetError: Its fingerprint or digests are something else.
    """
    count = len(opened)
    digests = _given(opened, "digests", where)
    if digests is not None:
        digests = list(digests) if isinstance(digests, Sequence | np.ndarray) and not isinstance(digests, str) else []
        encoded = [digest.encode() if isinstance(digest, str) else digest for digest in digests]
        if len(encoded) != count or not all(isinstance(digest, bytes) and digest for digest in encoded):
            raise DatasetError(f"{where}.digests must be a string or bytes for each of its {count} items")
        return as_digests(b"".join(bytes_digest(b"digest " + digest) for digest in encoded))
    fingerprint = _given(opened, "fingerprint", where)
    if fingerprint is None:
        return None
    if not isinstance(fingerprint, str) or not fingerprint:
        raise DatasetError(
            f"{where}.fingerprint is {fingerprint!r:.120}, expected a string that changes with the items"
        )
    head = b"fingerprint " + fingerprint.encode()
    return as_digests(b"".join(bytes_digest(head + index.to_bytes(8, "little")) for index in range(count)))


def _given(opened: Any, name: str, where: str) -> Any:
    value = getattr(opened, name, None)
    try:
        return value() if callable(value) else value
    except Exception as error:  # the method is someone else's code
        raise DatasetError(f"{where}.{name}() raised {type(error).__name__}: {error}") from error


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
            f"{spec}('{split}') returned a {type(opened).__name__}, expected a sequence of (item, class index)"
        )
    return opened


def _names(opened: Any, attribute: str, where: str) -> tuple[str, ...] | None:
    names = getattr(opened, attribute, None)
    if names is None or callable(names):
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{where}.{attribute} is {names!r:.80}, expected a sequence of strings")
    return tuple(names)
