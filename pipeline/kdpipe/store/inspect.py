"""What a store says of itself, as plain JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdpipe.store import arrays, manifest
from kdpipe.store.layout import Layout
from kdpipe.store.ledger import Ledger


def summary(store: Path) -> dict[str, Any]:
    """Describe a sealed or unsealed store; ``samples``, ``classes`` and ``views`` are those of ``train``.

    Raises:
        StoreError: there is no store, or its manifest is damaged.
    """
    found = manifest.read(store)
    finished = found.files.keys() if found.state == "sealed" else Ledger(store).read().keys()
    shards_done = shards_total = 0
    splits = {}
    for name, split in found.splits.items():
        shards = len(Layout(split.chunk_rows, split.shard_rows).shards(split.samples))
        pairs = [
            (arrays.code_path(name, view, shard), arrays.row_max_path(name, view, shard))
            for view in range(split.planes)
            for shard in range(shards)
        ]
        done = [pair for pair in pairs if finished >= set(pair)]
        shards_total += len(pairs)
        shards_done += len(done)
        label_bytes = sum((store / path).stat().st_size for pair in done for path in pair if (store / path).exists())
        splits[name] = {
            "samples": split.samples,
            "planes": split.planes,
            "chunk_rows": split.chunk_rows,
            "shard_rows": split.shard_rows,
            "bytes_per_sample": label_bytes / (split.samples * split.planes) if len(done) == len(pairs) else None,
        }
    train = found.splits["train"]
    recipe = found.fingerprint.recipe
    return {
        "path": str(store),
        "format": found.format,
        "state": found.state,
        "shards_done": shards_done,
        "shards_total": shards_total,
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
