"""The frozen teacher over the views: logits for a store, or for a student that wants them live."""

from kdpipe.teacher.cache import cache_plane, pilot, plan
from kdpipe.teacher.ensemble import Ensemble
from kdpipe.teacher.forward import PRECISIONS, Forward, FrozenTeacher
from kdpipe.teacher.imported import Imported, copy_plane
from kdpipe.teacher.recompute import Difference, recompute

__all__ = [
    "PRECISIONS",
    "Difference",
    "Ensemble",
    "Forward",
    "FrozenTeacher",
    "Imported",
    "cache_plane",
    "copy_plane",
    "pilot",
    "plan",
    "recompute",
]
