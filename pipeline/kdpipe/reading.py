"""Reading of files that others may have written: regular files only, of bounded size and nesting, by strict models.

Links are not followed, and FIFOs, devices and sockets are not opened. JSON and YAML are refused before they are parsed
where they are too large, too deep, or grow by YAML aliases.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import yaml
from blake3 import blake3
from pydantic import BaseModel, ValidationError

from kdpipe.errors import KdpipeError
from kdpipe.printable import printable

MEGABYTE = 1024**2
_MAX_DEPTH = 64
"""Levels of nesting in a file of JSON or YAML."""
_MAX_NODES = 100_000
"""Values in a YAML file, counted as often as aliases repeat them."""
_MAX_PLAIN = 1000
"""Characters of a YAML value without quotes, which may be a number."""

_Model = TypeVar("_Model", bound=BaseModel)


def open_regular(path: Path, *, follow: bool = False) -> BinaryIO:
    """Open a regular file for reading; ``follow`` allows ``path`` itself to be a link.

    Raises:
        OSError: there is no such file, or it is a link, a directory, a FIFO, a device or a socket (``ELOOP``,
            ``EINVAL``).
    """
    # Without O_NONBLOCK, opening a FIFO waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def hashed(path: Path) -> blake3:
    """Return the BLAKE3 hash of a regular file's content, of which the caller takes the digest.

    Raises:
        OSError: as for ``open_regular``.
    """
    hasher, buffer = blake3(), memoryview(bytearray(MEGABYTE))
    with open_regular(path) as stream:
        while size := stream.readinto(buffer):  # type: ignore[attr-defined]
            hasher.update(buffer[:size])
    return hasher


def why_unread(failure: OSError) -> str:
    """Return the reason of an error of ``open_regular``, for a message."""
    if failure.errno == errno.ELOOP:
        return "it is a link, and links are not followed"
    return failure.strerror or str(failure)


def read_bytes(
    path: Path, *, limit: int = MEGABYTE, error: type[KdpipeError] = KdpipeError, follow: bool = False
) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        KdpipeError: of the type ``error``: the file is missing, not regular, too large or cannot be read.
    """
    try:
        with open_regular(path, follow=follow) as stream:
            content = _read(stream, limit + 1)
    except FileNotFoundError:
        raise error(f"{path} does not exist.") from None
    except OSError as failure:
        raise error(f"{path} cannot be read: {why_unread(failure)}.") from failure
    if len(content) > limit:
        raise error(f"{path} is larger than {limit:,} bytes, which no such file of kdpipe is.")
    return content


def _read(stream: BinaryIO, most: int) -> bytes:
    # A single read of so many bytes would take their memory first.
    blocks = []
    while most and (block := stream.read(min(most, MEGABYTE))):
        blocks.append(block)
        most -= len(block)
    return b"".join(blocks)


def read_json(
    path: Path, model: type[_Model], *, limit: int = MEGABYTE, error: type[KdpipeError] = KdpipeError
) -> _Model:
    """Read a JSON file into a strict model.

    Raises:
        KdpipeError: of the type ``error``: as for ``read_bytes``, or the content is not what the model describes.
    """
    content = parse_json(read_bytes(path, limit=limit, error=error), of=path, error=error)
    return validated(content, model, of=path, error=error)


def validated(content: Any, model: type[_Model], *, of: Path, error: type[KdpipeError]) -> _Model:
    """Return ``content``, parsed from the file ``of``, as a model; raise ``error`` with the first fault otherwise."""
    try:
        return model.model_validate(content)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise error(f"{of} is damaged or not made by kdpipe: {printable(place)}: {first['msg']}.") from None


def parse_json(content: bytes, *, of: Path, error: type[KdpipeError] = KdpipeError) -> Any:
    """Parse JSON without NaN, infinity, repeated keys or deep nesting.

    Raises:
        KdpipeError: of the type ``error``, naming the file ``of``.
    """
    if _nesting(content) > _MAX_DEPTH:
        raise error(f"{of} is damaged: it is nested deeper than {_MAX_DEPTH} levels.")
    try:
        return json.loads(content.decode(), parse_constant=_no_constant, object_pairs_hook=_unique)
    except ValueError as invalid:
        raise error(f"{of} is damaged: it is not JSON ({printable(invalid)}).") from None


def read_yaml(path: Path, *, limit: int = MEGABYTE, error: type[KdpipeError] = KdpipeError, follow: bool = True) -> Any:
    """Read a YAML file of plain values; ``None`` where it is empty.

    Raises:
        KdpipeError: of the type ``error``: as for ``read_bytes``, or it is not YAML, too deep, or grows by aliases.
    """
    return parse_yaml(read_bytes(path, limit=limit, error=error, follow=follow), of=path, error=error)


def parse_yaml(content: bytes, *, of: Path, error: type[KdpipeError] = KdpipeError) -> Any:
    """Parse YAML of plain values from the file ``of``; ``None`` where it is empty.

    Raises:
        KdpipeError: of the type ``error``: it is not YAML, too deep, or grows by aliases.
    """
    try:
        _measure(content, of=of, error=error)
        return yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as invalid:
        if isinstance(invalid, KdpipeError):
            raise
        raise error(f"{of} is not valid YAML: {_reason(invalid)}.") from None


def _reason(invalid: Exception) -> str:
    mark = getattr(invalid, "problem_mark", None)
    if mark is None:
        return printable(" ".join(str(invalid).split()))[:200]
    return printable(f"{getattr(invalid, 'problem', invalid)} in line {mark.line + 1}, column {mark.column + 1}")[:200]


def _measure(content: bytes, *, of: Path, error: type[KdpipeError]) -> None:
    """Refuse YAML that is too deep or too large, before anything is built of it."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
            if event.style is None and len(event.value) > _MAX_PLAIN:
                raise error(f"{of} holds a value of {len(event.value):,} characters without quotes.")
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise error(f"{of} is not plain YAML: the alias *{printable(event.anchor)} has no value before it.")
            total += sizes[event.anchor]
        if len(opened) > _MAX_DEPTH:
            raise error(f"{of} is nested deeper than {_MAX_DEPTH} levels.")
        if total > _MAX_NODES:
            raise error(f"{of} holds more than {_MAX_NODES:,} values, counting what its aliases repeat.")


def _nesting(content: bytes) -> int:
    """Return the depth of brackets outside of strings."""
    depth = deepest = 0
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', content, re.DOTALL):
        first = token.group()[:1]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found
