"""The logit store: codes and their manifest in a Zarr v3 group; an incomplete or damaged one is refused."""

from kdpipe.store.blocks import Pool, windows
from kdpipe.store.inspect import summary
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Plan, Shard, SplitPlan
from kdpipe.store.planes import Plane
from kdpipe.store.reader import MEMORY_LIMIT, LogitStore, open_store
from kdpipe.store.sections import Candidate, Choice, Fingerprint, Provenance, Recipe, Rendering, Teacher
from kdpipe.store.skeleton import settled
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.store.writer import Builder, build

__all__ = [
    "MEMORY_LIMIT",
    "Builder",
    "Candidate",
    "Choice",
    "Fingerprint",
    "LogitStore",
    "Manifest",
    "Plan",
    "Plane",
    "Pool",
    "Provenance",
    "Recipe",
    "Rendering",
    "Shard",
    "SplitPlan",
    "Teacher",
    "build",
    "open_store",
    "settled",
    "summary",
    "verify_deep",
    "verify_files",
    "windows",
]
