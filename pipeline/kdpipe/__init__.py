"""Offline knowledge distillation of image classifiers.

``kdpipe.open_store(path, split="train")`` opens a store of cached teacher logits; the rooms
(``kdpipe.dataset``, ``kdpipe.views``, ``kdpipe.store``, ...) hold everything else. Importing ``kdpipe`` is
cheap: torch and zarr are imported when a room that needs them is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdpipe.store import open_store

__all__ = ["__version__", "open_store"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "open_store":
        from kdpipe.store import open_store

        return open_store
    raise AttributeError(f"module 'kdpipe' has no attribute '{name}'")
