"""What a store says of itself, as plain JSON values."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kdpipe.store import arrays, manifest
from kdpipe.store.ledger import Ledger


def summary(store: Path) -> dict[str, Any]:
    """Describe a sealed or unsealed store; ``samples``, ``classes`` and ``views`` are those of ``train``.

    Raises:
        StoreError: there is no store, or its manifest is damaged.
    """
    found = manifest.read(store)
    finished = found.files.keys() if found.state == "sealed" else Ledger(store).read().keys()
    splits = {}
    for name, split in found.splits.items():
        done = _shards(name, finished)
        label_bytes = sum((store / path).stat().st_size for pair in done for path in pair if (store / path).exists())
        splits[name] = {
            "samples": split.samples,
            "planes": split.planes,
            "chunk_rows": split.chunk_rows,
            "shard_rows": split.shard_rows,
            "shards_done": len(done),
            "shards_total": split.shards,
            "bytes_per_sample": label_bytes / (split.samples * split.planes) if len(done) == split.shards else None,
        }
    train = found.splits["train"]
    recipe = found.fingerprint.recipe
    return {
        "path": str(store),
        "format": found.format,
        "state": found.state,
        "shards_done": sum(int(split["shards_done"] or 0) for split in splits.values()),
        "shards_total": sum(split.shards for split in found.splits.values()),
        "samples": train.samples,
        "classes": len(found.classes),
        "views": train.planes - 1,
        "encoding": found.fingerprint.encoding,
        "bytes": sum(path.stat().st_size for path in store.rglob("*") if path.is_file()),
        "bytes_per_sample": splits["train"]["bytes_per_sample"],
        "digest": found.digest,
        "teacher": found.fingerprint.teacher.model_dump(),
        "dataset": {"name": found.dataset, "fingerprint": found.fingerprint.dataset},
        "recipe": recipe.model_dump(),
        "splits": splits,
        "batch_size": found.fingerprint.batch_size,
        "precision": found.fingerprint.precision,
        "device": found.fingerprint.device,
        "about": found.about,
    }


def _shards(split: str, finished: Collection[str]) -> list[tuple[str, str]]:
    """Return the two files of each shard of a split that has both."""
    pattern = re.compile(rf"{re.escape(split)}/codes/c/(\d+)/(\d+)/0")
    places = [(int(place[1]), int(place[2])) for path in finished if (place := pattern.fullmatch(path))]
    pairs = [(arrays.code_path(split, *place), arrays.row_max_path(split, *place)) for place in places]
    return [pair for pair in pairs if pair[1] in finished]
