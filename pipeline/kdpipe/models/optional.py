"""Packages of kdpipe's extras: their import, and calls of them without what they log.

Importing this does not import torch.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kdpipe.errors import ModelError


def required(module: str, *, extra: str, by: str = "this") -> Any:
    """Import a module of an optional package, which ``by`` needs.

    Raises:
        ModelError: it is not installed; the message names the extra of kdpipe that has it.
    """
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ModelError(f"{by} needs {package}, which is not installed: pip install 'kdpipe[{extra}]'") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep a loader or an exporter from logging and warning in the block, such as a traceback for a damaged file."""
    before = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
