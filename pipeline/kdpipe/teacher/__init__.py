"""The frozen teacher over the views: logits for a store, or for a student that wants them live."""

from kdpipe.teacher.cache import cache_plane, pilot, plan
from kdpipe.teacher.forward import PRECISIONS, Forward

__all__ = ["PRECISIONS", "Forward", "cache_plane", "pilot", "plan"]
