"""A store paired with a dataset: joined by sample id, with the teacher's pixels checked by replay probes."""

from kdpipe.pairing.attach import AttachedDataset, attach
from kdpipe.pairing.join import changed_content, join, join_checked, verify_data
from kdpipe.pairing.probes import (
    Drift,
    drift,
    lacking,
    probe_hashes,
    probe_rows,
    rendering,
    replay,
    stored_recipe,
)

__all__ = [
    "AttachedDataset",
    "Drift",
    "attach",
    "changed_content",
    "drift",
    "join",
    "join_checked",
    "lacking",
    "probe_hashes",
    "probe_rows",
    "rendering",
    "replay",
    "stored_recipe",
    "verify_data",
]
