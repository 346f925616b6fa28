"""The directory of a report: locked while it is made, and replaced as a whole."""

from __future__ import annotations

import glob
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kdpipe import durable
from kdpipe.errors import RunError
from kdpipe.training.holding import locked

FILES = (
    *("metrics.json", "results.csv", "pareto.png", "report.html", "summary.txt"),
    *("predictions.npz", "quality.json"),
)


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the lock of the report directory ``out`` for the block.

    Raises:
        RunError: ``out`` holds something else than a report; hidden files, such as DVC's, are ignored.
        RunLockedError: another process is writing it.
    """
    _refuse_others(out)
    with locked(out):
        _recover(out.resolve())
        yield


def publish(out: Path, content: Mapping[str, bytes]) -> None:
    """Write the files of a report into a directory beside ``out``, then put it in the place of ``out``.

    On an error or a signal, ``out`` is as before. Hidden files in it are kept.

    Raises:
        RunError: ``out`` holds something else than a report.
        UnwritableError: the disk is full or fails.
    """
    _refuse_others(out)
    place = out.resolve()
    new, old = (place.with_name(f".{place.name}.{secrets.token_hex(4)}.{kind}") for kind in ("new", "old"))
    with durable.writing(out):
        try:
            new.mkdir(parents=True)
            for name, written in content.items():
                durable.write_bytes(new / name, written)
            _swap(place, new=new, old=old)
        finally:
            # A signal may end the program between the two renames.
            if old.exists() and not place.exists():
                old.rename(place)
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _swap(place: Path, *, new: Path, old: Path) -> None:
    if not place.exists():
        new.rename(place)
    else:
        for path in place.iterdir():
            if path.name not in FILES:
                _copy(path, new / path.name)
        place.rename(old)
        new.rename(place)
    durable.fsync_directory(place.parent)


def _copy(path: Path, target: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, target, symlinks=True)
    else:
        shutil.copy2(path, target, follow_symlinks=False)


def _refuse_others(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file: pass --out a directory.")
    if Path.cwd().is_relative_to(out.resolve()):
        raise RunError(f"{out} holds the working directory, and a report is replaced as a whole: pass --out another.")
    present = sorted(path.name for path in out.iterdir()) if out.exists() else []
    strangers = [name for name in present if name not in FILES and not name.startswith(".")]
    if strangers:
        raise RunError(
            f"{out} is not a report of kdpipe: it holds {strangers[0]}. Pass --out another directory, which is "
            "replaced as a whole."
        )


def _recover(place: Path) -> None:
    """Remove what a kill has left beside ``place``, or put it back where the kill came between the two renames."""
    name = glob.escape(place.name)
    for left in place.parent.glob(f".{name}.????????.old"):
        if not place.exists():
            left.rename(place)
    for kind in ("old", "new"):
        for left in place.parent.glob(f".{name}.????????.{kind}"):
            shutil.rmtree(left, ignore_errors=True)
