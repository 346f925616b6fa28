"""The command `kdpipe cache`: what the caches hold, and the removal of what is not needed."""

from __future__ import annotations

from datetime import UTC, datetime

from kdpipe.dataset import caching
from kdpipe.stages.console import say, show, show_json


def show_caches(*, prune: bool, everything: bool, as_json: bool) -> None:
    """List the files of the caches, or remove dead temporary files and what exceeds the limit, or everything.

    Raises:
        ParamsError: the limit in the environment is no number.
    """
    reason = caching.distrust()
    if reason is not None:
        say(f"warning: {reason}.")
    limit = caching.limit_bytes()
    removed = caching.prune(-1 if everything else limit) if prune or everything else None
    listed = caching.entries() if removed is None else removed
    if as_json:
        show_json([_row(entry) for entry in listed])
        return
    for entry in listed:
        row = _row(entry)
        note = "left by a process that ended" if entry.dead else entry.dataset
        show(f"{entry.bytes / 1e6:12,.2f} MB  {row['used']}  {entry.path}  {note}".rstrip())
    total = sum(entry.bytes for entry in listed) / 1e6
    if removed is None:
        show(
            f"{len(listed):,} files, {total:,.2f} MB of at most {limit / 1e6:,.0f} MB ({caching.LIMIT}, in GB), "
            f"in {caching.cache_directory()}."
        )
    else:
        show(f"Removed {len(removed):,} files, {total:,.2f} MB, from {caching.cache_directory()}.")


def _row(entry: caching.Entry) -> dict[str, str | int | bool]:
    used = datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds")
    return {
        "path": str(entry.path),
        "bytes": entry.bytes,
        "used": used,
        "dataset": entry.dataset,
        "temporary": entry.dead,
    }
