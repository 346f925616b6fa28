"""The logit store: codes in a Zarr v3 group that says what it is, and is complete and checked or refused."""

from kdpipe.store.attached import AttachedDataset
from kdpipe.store.inspect import summary
from kdpipe.store.join import changed_content, drifted_probes, join, join_checked, probe_hashes, probe_rows
from kdpipe.store.manifest import Fingerprint, Manifest, Recipe, Teacher
from kdpipe.store.plan import Plan, Shard, SplitPlan
from kdpipe.store.reader import LogitStore, Plane, open_store
from kdpipe.store.verify import verify_data, verify_files
from kdpipe.store.writer import Builder, build

__all__ = [
    "AttachedDataset",
    "Builder",
    "Fingerprint",
    "LogitStore",
    "Manifest",
    "Plan",
    "Plane",
    "Recipe",
    "Shard",
    "SplitPlan",
    "Teacher",
    "build",
    "changed_content",
    "drifted_probes",
    "join",
    "join_checked",
    "open_store",
    "probe_hashes",
    "probe_rows",
    "summary",
    "verify_data",
    "verify_files",
]
