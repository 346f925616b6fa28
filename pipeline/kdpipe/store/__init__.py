"""The logit store: codes in a Zarr v3 group that says what it is, and is complete and checked or refused."""

from kdpipe.store.attached import AttachedDataset
from kdpipe.store.blocks import Pool, windows
from kdpipe.store.inspect import summary
from kdpipe.store.join import changed_content, join, join_checked
from kdpipe.store.manifest import Manifest
from kdpipe.store.opening import MEMORY_LIMIT, open_store
from kdpipe.store.plan import Plan, Shard, SplitPlan
from kdpipe.store.planes import Plane
from kdpipe.store.probes import Drift, drift, probe_hashes, probe_rows, rendering, replay, stored_recipe
from kdpipe.store.reader import LogitStore
from kdpipe.store.sections import Candidate, Choice, Fingerprint, Provenance, Recipe, Rendering, Teacher
from kdpipe.store.skeleton import settled
from kdpipe.store.verify import verify_data, verify_deep, verify_files
from kdpipe.store.writer import Builder, build

__all__ = [
    "MEMORY_LIMIT",
    "AttachedDataset",
    "Builder",
    "Candidate",
    "Choice",
    "Drift",
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
    "changed_content",
    "drift",
    "join",
    "join_checked",
    "open_store",
    "probe_hashes",
    "probe_rows",
    "rendering",
    "replay",
    "settled",
    "stored_recipe",
    "summary",
    "verify_data",
    "verify_deep",
    "verify_files",
    "windows",
]
