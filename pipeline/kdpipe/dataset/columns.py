"""Columns of a table that hold images, labels and keys: found by their types, or asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdpipe.dataset.arrow import Schema, library
from kdpipe.dataset.labels import SUPPORTED, Column, checked_names, column
from kdpipe.errors import DatasetError, did_you_mean

_LABELS = ("label", "labels", "class", "target")
"""Names of a column that is the labels where several could be, the preferred one first."""


@dataclass(frozen=True)
class Chosen:
    """The columns of a dataset."""

    image: str
    """The column of encoded images, or ``a.bytes`` for the field ``bytes`` of ``a``."""
    path: str | None
    """The column of the paths of images that are not in the table."""
    label: str
    key: str | None
    classes: tuple[str, ...] | None
    """Class names of a ``ClassLabel``."""


def choose(schema: Schema, features: Mapping[str, Any], given: Mapping[str, str], *, where: str) -> Chosen:
    """Return the columns of images, labels and keys; ``given`` names some as ``image``, ``label`` and ``key``.

    Raises:
        DatasetError: one is missing, there are several, or its type is not supported.
    """
    types = {field.name: field.type for field in schema}
    for role in ("image", "label", "key"):
        if given.get(role, next(iter(types))) not in types:
            near = did_you_mean(given[role], types)
            raise DatasetError(f"{where} has no column '{given[role]}', found {_listed(types)}{near}")
    image = given.get("image") or _image(types, features, where)
    label = given.get("label") or _label(types, features, {image, given.get("key")}, where)
    for name in (image, label, given.get("key")):
        if name is not None and isinstance(types[name], library("pyarrow").BaseExtensionType):
            raise DatasetError(
                f"the column '{name}' of {where} is of the extension type {types[name]}; expected plain bytes"
            )
    field, path = _encoded(image, types[image], where)
    return Chosen(field, path, label, given.get("key"), class_label_names(features, label, where=where))


def class_label_names(features: Mapping[str, Any], label: str, *, where: str) -> tuple[str, ...] | None:
    """Return the class names of a column that is a ``ClassLabel``; ``None`` for another one.

    Raises:
        DatasetError: they are not different strings.
    """
    feature = features.get(label)
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return checked_names(names, where=f"the names of '{label}' of {where}") if isinstance(names, list) else None


def labels_of(values: Any, *, where: str) -> Column:
    """Return a column of class indices or names from a ``pyarrow.ChunkedArray``.

    Raises:
        DatasetError: its values are something else.
    """
    arrow = library("pyarrow")
    if arrow.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    if arrow.types.is_integer(kind) or arrow.types.is_null(kind):
        try:
            found: Column = values.cast(arrow.int64()).fill_null(-1).to_numpy()
        except arrow.ArrowInvalid:
            raise DatasetError(f"{where} has labels beyond 64 bits; {SUPPORTED}") from None
        return found
    if _is_text(kind):
        return column(values.to_pylist(), where=where)
    raise DatasetError(f"{where} is {kind!s:.60}: {_unsupported(kind)}; {SUPPORTED}")


def keys_of(values: Any, *, where: str) -> list[str]:
    """Return the names of samples from a ``pyarrow.ChunkedArray`` of text or integers.

    Raises:
        DatasetError: its values are something else, or one is missing.
    """
    if not (_is_text(values.type) or library("pyarrow").types.is_integer(values.type)):
        raise DatasetError(f"{where} is {values.type!s:.60}, expected text or integers as names of samples")
    if values.null_count:
        raise DatasetError(f"{where} has {values.null_count:,} rows without a value, expected a name for each sample")
    return [str(value) for value in values.to_pylist()]


def _image(types: Mapping[str, Any], features: Mapping[str, Any], where: str) -> str:
    featured = [name for name in types if _feature(features, name) == "Image"]
    structs = [name for name, kind in types.items() if _has_bytes(kind)]
    binary = [name for name, kind in types.items() if _is_binary(kind)]
    found = featured or structs or binary
    if len(found) == 1:
        return found[0]
    if found:
        raise DatasetError(f"{where} has several columns of images, {_listed(found)}; choose one with ,image=NAME")
    raise DatasetError(
        f"{where} has no column of encoded images (bytes, or an Image of datasets), found {_listed(types)}"
    )


def _label(types: Mapping[str, Any], features: Mapping[str, Any], others: set[str | None], where: str) -> str:
    rest = {name: kind for name, kind in types.items() if name not in others}
    classes = [name for name in rest if _feature(features, name) == "ClassLabel"]
    integer = library("pyarrow").types.is_integer
    plain = [name for name, kind in rest.items() if integer(kind) or _is_text(kind)]
    named = [name for name in _LABELS if name in rest]
    found = classes or (named[:1] if named else plain)
    if len(found) == 1:
        return found[0]
    if found:
        raise DatasetError(f"{where} has several columns of labels, {_listed(found)}; choose one with ,label=NAME")
    reasons = [f"'{name}' is {reason}" for name, kind in rest.items() if (reason := _unsupported(kind))]
    raise DatasetError(f"{where} has no column of labels ({'; '.join(reasons) or _listed(types)}); {SUPPORTED}")


def _encoded(name: str, kind: Any, where: str) -> tuple[str, str | None]:
    if _has_bytes(kind):
        inner = [field.name for field in kind]
        return f"{name}.bytes", f"{name}.path" if "path" in inner else None
    if _is_binary(kind):
        return name, None
    raise DatasetError(f"the column '{name}' of {where} is {kind!s:.60}, expected encoded images (bytes)")


def _feature(features: Mapping[str, Any], name: str) -> Any:
    found = features.get(name)
    return found.get("_type") if isinstance(found, dict) else None


def _has_bytes(kind: Any) -> bool:
    return bool(library("pyarrow").types.is_struct(kind)) and any(
        field.name == "bytes" and _is_binary(field.type) for field in kind
    )


def _is_binary(kind: Any) -> bool:
    types = library("pyarrow").types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    types = library("pyarrow").types
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _unsupported(kind: Any) -> str:
    types = library("pyarrow").types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "several labels for each image"
    if types.is_struct(kind):
        return "objects in images"
    if types.is_floating(kind):
        return "a number to be predicted"
    return "no class"


def _listed(names: Any) -> str:
    found = list(names)
    return ", ".join(f"'{name}'" for name in found[:8]) + (", …" if len(found) > 8 else "")
