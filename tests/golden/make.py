"""Make the files of this directory that are missing: ``python -m tests.golden.make`` from the root of the repository.

``format1.zarr`` is a small sealed store, ``format1.json`` its content, ``klt.zarr`` and ``klt.json`` those of an
encoding that came later, ``klt_deviations.zarr`` and ``.json`` those since its encoder weighs the length of codes,
``crop_flip.json`` the hashes of rendered digits, ``views.json`` those of pictures in
the views of the first operations, ``flips_and_rotations.json`` in those of the operations that came later. All are made
once and committed: a change of the code that makes them differ breaks the stores that people have. Never make them
again for a format that has been released; add files for the next one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from blake3 import blake3

from kdpipe import durable
from kdpipe.dataset import load
from kdpipe.encoding.registry import get_encoding
from kdpipe.store.plan import Plan
from kdpipe.store.reader import open_store
from kdpipe.testing import stores
from kdpipe.views import render
from tests.unit.views import pictures

HERE = Path(__file__).parent
STORE = HERE / "format1.zarr"
VALUES = HERE / "format1.json"
ROTATED = HERE / "klt.zarr"
ROTATED_VALUES = HERE / "klt.json"
WEIGHED = HERE / "klt_deviations.zarr"
WEIGHED_VALUES = HERE / "klt_deviations.json"
PIXELS = HERE / "crop_flip.json"
VIEWS = HERE / "views.json"
ORIENTED = HERE / "flips_and_rotations.json"


def rotated_plan() -> Plan:
    """Return the plan of the small store whose encoding is rotated."""
    pilot = stores.random_logits("train", 1, samples=64)
    pilot[:, 1] = pilot[:, 0]
    fitted = get_encoding("klt0.4").calibrate(torch.from_numpy(pilot))
    return replace(stores.small_plan(encoding="klt0.4"), calibrated=fitted)


def pixel_hashes() -> dict[str, str]:
    """Hash the views of the first test digits, by seed and view."""
    digits = load("digits", "test")
    return {
        f"seed {seed}, view {view}": blake3(
            render(digits, "crop-flip", seed=seed, indices=range(64), view=view).numpy().tobytes()
        ).hexdigest(length=16)
        for seed in (0, 12345)
        for view in (0, 1, 2, 49)
    }


def view_hashes(recipes: Sequence[str] = pictures.RECIPES, device: str = "cpu") -> dict[str, dict[str, str]]:
    """Hash the views of synthetic pictures: by pictures, size in pixels and recipe, then by seed and view."""
    hashes = {}
    for spec, sizes in ((pictures.EQUAL, (None, 21, 64)), (pictures.MIXED, (12, 48))):
        dataset = load(spec, "test")
        for size in sizes:
            for recipe in recipes:
                renderer = partial(render, dataset, recipe, indices=range(len(dataset)), size=size, device=device)
                hashes[f"{spec.partition(':')[2]}, {size or 'own size'}, {recipe}"] = {
                    f"seed {seed}, view {view}": _pixel_hash(renderer(seed=seed, view=view))
                    for seed in (0, 12345)
                    for view in (0, 1, 2, 49)
                }
    return hashes


def _pixel_hash(images: torch.Tensor) -> str:
    return blake3(images.cpu().numpy().tobytes()).hexdigest(length=8)


def store_values(store: Path) -> dict[str, object]:
    """Return what a store holds as plain JSON values."""
    splits = {}
    for split in ("train", "test"):
        opened = open_store(store, split=split)
        splits[split] = {
            "logits": [opened.plane(view).tolist() for view in range(opened.num_views + 1)],
            "labels": opened.labels.tolist(),
            "ids": [row.tobytes().hex() for row in opened.sample_ids],
            "content_digests": [row.tobytes().hex() for row in opened.content_digests],
            "probe_rows": opened.probe_rows.tolist(),
            "probe_hashes": opened.probe_hashes.tolist(),
        }
    return {"digest": open_store(store).digest, "classes": list(open_store(store).classes), "splits": splits}


if __name__ == "__main__":
    if not STORE.exists():
        stores.small_store(STORE)
        durable.write_text(VALUES, json.dumps(store_values(STORE)) + "\n")
    if not WEIGHED.exists():
        stores.small_store(WEIGHED, rotated_plan())
        durable.write_text(WEIGHED_VALUES, json.dumps(store_values(WEIGHED)) + "\n")
    hashes = {
        PIXELS: pixel_hashes,
        VIEWS: view_hashes,
        ORIENTED: partial(view_hashes, pictures.ORIENTED),
    }
    for path, made in hashes.items():
        if not path.exists():
            durable.write_json(path, made())
