"""Output directories: locked while they are made, and replaced as a whole.

with held(out, kind):
    publish(out, {"report.html": page}, kind)
"""

from __future__ import annotations

import glob
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdpipe import durable
from kdpipe.errors import RunError, RunLockedError


@dataclass(frozen=True)
class Kind:
    """A kind of directories that kdpipe makes."""

    noun: str
    """Its name in messages, such as ``report``."""
    files: Collection[str]
    """The names of all files that it may hold; hidden ones, such as DVC's, are ignored and kept."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the directory ``path``, the file ``NAME.lock`` beside it, for the block.

    Raises:
        RunLockedError: another process holds it; the message has its process id.
        UnwritableError: the lock cannot be made.
    """

    def refuse(holder: str) -> RunLockedError:
        return RunLockedError(
            f"{path} is being written by process {holder}. Wait for it to end, or pass --out another directory."
        )

    place = path.resolve()
    if not place.name:
        raise RunError(f"{path} cannot be written: pass --out a directory below it.")
    with durable.locked(place.with_name(f"{place.name}.lock"), refuse):
        yield


@contextmanager
def held(out: Path, kind: Kind) -> Iterator[None]:
    """Hold the lock of the directory ``out`` for the block.

    Raises:
        RunError: ``out`` holds something else than its kind; hidden files are ignored.
        RunLockedError: another process is writing it.
    """
    _refuse_others(out, kind)
    with locked(out):
        _recover(out.resolve())
        yield


def publish(out: Path, content: Mapping[str, bytes], kind: Kind) -> None:
    """Write files into a directory beside ``out``, then put it in the place of ``out``.

    On an error or a signal, ``out`` is as before. Hidden files in it are kept.

    Raises:
        RunError: ``out`` holds something else than its kind.
        UnwritableError: the disk is full or fails.
    """
    _refuse_others(out, kind)
    place = out.resolve()
    new, old = (place.with_name(f".{place.name}.{secrets.token_hex(4)}.{end}") for end in ("new", "old"))
    with durable.writing(out):
        try:
            new.mkdir(parents=True)
            for name, written in content.items():
                durable.write_bytes(new / name, written)
            _swap(place, kind, new=new, old=old)
        finally:
            # A signal may end the program between the two renames.
            if old.exists() and not place.exists():
                old.rename(place)
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def present(out: Path) -> list[str]:
    """Return the names in the directory ``out`` that are not hidden, sorted; none where it does not exist."""
    return sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []


def _swap(place: Path, kind: Kind, *, new: Path, old: Path) -> None:
    if not place.exists():
        new.rename(place)
    else:
        for path in place.iterdir():
            if path.name not in kind.files:
                _copy(path, new / path.name)
        place.rename(old)
        new.rename(place)
    durable.fsync_directory(place.parent)


def _copy(path: Path, target: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, target, symlinks=True)
    else:
        shutil.copy2(path, target, follow_symlinks=False)


def _refuse_others(out: Path, kind: Kind) -> None:
    noun = kind.noun
    article = "an" if noun[0] in "aeiou" else "a"
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file: pass --out a directory.")
    if Path.cwd().is_relative_to(out.resolve()):
        raise RunError(
            f"{out} holds the working directory, and {article} {noun} is replaced as a whole: pass --out another."
        )
    strangers = [name for name in present(out) if name not in kind.files]
    if strangers:
        raise RunError(
            f"{out} is not {article} {noun} of kdpipe: it holds {strangers[0]}. Pass --out another directory, which is "
            "replaced as a whole."
        )


def _recover(place: Path) -> None:
    """Remove what a kill has left beside ``place``, or put it back where the kill came between the two renames."""
    name = glob.escape(place.name)
    for left in place.parent.glob(f".{name}.????????.old"):
        if not place.exists():
            left.rename(place)
    for end in ("old", "new"):
        for left in place.parent.glob(f".{name}.????????.{end}"):
            shutil.rmtree(left, ignore_errors=True)
