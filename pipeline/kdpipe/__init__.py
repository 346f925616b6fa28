"""Offline knowledge distillation for classifiers.

``kdpipe.open_store(path_or_url, split="train")`` opens a store of cached teacher logits, and
``kdpipe.attach(store, dataset)`` appends them to the items of a dataset. Everything else is in the rooms
(``kdpipe.dataset``, ``kdpipe.views``, ``kdpipe.store``, ...). Importing ``kdpipe`` is cheap: torch and zarr are
imported with the rooms that need them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdpipe.pairing.attach import attach
    from kdpipe.store.reader import open_store

__all__ = ["__version__", "attach", "open_store"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "open_store":
        # By its name, so that code which opens no store does not depend on that which reads URLs.
        opener: object = import_module("kdpipe.sharing.streaming").open_store
        return opener
    if name == "attach":
        from kdpipe.pairing.attach import attach

        return attach
    raise AttributeError(f"module 'kdpipe' has no attribute '{name}'")
