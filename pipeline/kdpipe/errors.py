"""Errors that a user can cause or encounter, grouped by their remedy.

Only the command line catches these (one line on stderr, exit code 1); any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KdpipeError(Exception):
    """Base of all errors that kdpipe raises on purpose."""


class ParamsError(KdpipeError, ValueError):
    """A flag or a key of params.yaml is unknown, missing or out of range."""


class DatasetError(KdpipeError):
    """The dataset cannot be read, or lacks samples that are needed."""


class UnreadError(DatasetError):
    """Something must be known of images before the pass that reads them: read them first."""


class MissingSplitError(DatasetError):
    """The dataset has no such split; without a test split, most stages go on."""


class ModelError(KdpipeError):
    """A model is unknown, or its weights do not fit it."""


class ClassMismatchError(ModelError):
    """A model has another number of classes than the dataset; a class map may pair them."""

    def __init__(self, message: str, *, found: int) -> None:
        """Keep the number of the model's classes."""
        super().__init__(message)
        self.found = found


class RecipeError(KdpipeError, ValueError):
    """A view recipe is unknown or malformed."""


class DeviceError(KdpipeError):
    """The requested device does not exist, or its memory is too small."""


class UnwritableError(KdpipeError, OSError):
    """A file cannot be written: the disk is full or fails, or the folder is read-only."""


class UntrustedCodeError(ModelError):
    """A file would run code, and ``--trust-code`` was not given."""


class StoreError(KdpipeError):
    """Base of all errors of logit stores."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at the path."""


class UnsealedStoreError(StoreError):
    """The store is still being built, or its build was interrupted."""


class StaleStoreError(StoreError):
    """The store was made from other inputs than the requested ones."""


class CorruptStoreError(StoreError):
    """The store's files do not match its manifest."""


class StoreLockedError(StoreError):
    """Another process is writing this store."""


class UnwritableStoreError(StoreError, UnwritableError):
    """The store cannot be written: the disk is full, or the path is read-only."""


class RemoteError(KdpipeError):
    """A place of shared stores cannot be reached, read or written, or sends something else than it should."""


class RemoteMissingError(RemoteError):
    """A place of shared stores has no such file."""


class RemoteExistsError(RemoteError):
    """A place of shared stores has a file that was to be created."""


class RemoteChangedError(RemoteError):
    """A file at a place of shared stores was changed by someone else meanwhile."""


class UntrustedStoreError(StoreError):
    """A shared store is not what it was: its signature or signer is wrong, or a version has changed."""


class UnsupportedLossError(KdpipeError):
    """The loss needs something that the store or the data lacks."""


class RunError(KdpipeError):
    """A run directory is missing, incomplete, or not made by kdpipe."""


class RunLockedError(RunError):
    """Another process is writing this run directory."""


class AccuracyLossError(KdpipeError):
    """A network that was made from another one is less accurate than allowed."""


class DivergedError(KdpipeError):
    """Training or caching produced a value that is not finite."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate nearest to ``name``, or an empty string.

    If none is near, it is the only one that begins with the same four characters, such as probabilities for probs.
    """
    known = list(candidates)
    near = difflib.get_close_matches(name, known, n=1)
    if not near:
        alike = [each for each in known if each[:4] == name[:4] and len(name) >= 4]
        near = alike if len(alike) == 1 else []
    return f"; did you mean '{near[0]}'?" if near else ""
