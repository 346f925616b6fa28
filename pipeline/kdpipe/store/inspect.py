"""Summary of a store as plain JSON values, for ``kdpipe inspect``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdpipe.store import arrays, manifest, partial
from kdpipe.store.ledger import Ledger
from kdpipe.store.manifest import Manifest, file_sizes
from kdpipe.store.sections import array_name


def summary(store: Path) -> dict[str, Any]:
    """Describe a sealed or unsealed store; ``samples``, ``classes`` and ``views`` are those of ``train``.

    ``here`` are the views of each split that are here; ``None`` for all of them.

    A split that has grown also has ``segments``: the samples of each, and the earlier rows that it replaces.

    Bytes per sample are those of one row of a plane: its codes and row maximum, without signals.

    Raises:
        StoreError: there is no store at the path, or its manifest is damaged.
    """
    found = manifest.read(store)
    entries = found.files if found.state == "sealed" else Ledger(store).read()
    sizes = {name: entry.size for name, entry in entries.items()}
    splits = {name: _split(found, name, sizes) for name in found.names}
    train = splits.get("train") or next(iter(splits.values()))
    return {
        "path": str(store),
        "format": found.format,
        "state": found.state,
        "shards_done": sum(split["shards_done"] for split in splits.values()),
        "shards_total": sum(split.shards for split in found.splits.values()),
        "samples": train["samples"],
        "classes": len(found.classes),
        "views": train["planes"] - 1,
        "encoding": found.fingerprint.encoding,
        "features": found.features,
        "signals": {name: _signal(found, name, sizes) for name in found.kept},
        "bytes": sum(file_sizes(store).values()),
        "bytes_per_sample": train["bytes_per_sample"],
        "fp32_bytes_per_sample": 4 * len(found.classes),
        "here": None if partial.read(store, found.checksum) is None else here(store, found),
        "digest": found.digest,
        "provenance": found.provenance.model_dump(exclude_none=True),
        "derived_from": None if found.derived_from is None else found.derived_from.model_dump(mode="json"),
        "teacher": found.fingerprint.teacher.model_dump(exclude={"class_maps"}),
        "class_map": class_map(found),
        "dataset": {"name": found.dataset, "fingerprint": found.fingerprint.dataset},
        "recipe": found.fingerprint.recipe.model_dump(exclude={"thresholds"}),
        "splits": splits,
        "budget": _budget(found),
        "batch_size": found.fingerprint.batch_size,
        "precision": found.fingerprint.precision,
        "device": found.fingerprint.device,
        "about": found.about,
    }


def class_map(found: Manifest) -> dict[str, list[list[int]]] | None:
    """Return the teacher's outputs that each class is made of, of each teacher; ``None`` where classes are the same."""
    maps = found.fingerprint.teacher.class_maps
    if not maps:
        return None
    return {name: [list(each[index]) for each in maps] for index, name in enumerate(found.classes)}


def fidelity_lines(found: Mapping[str, Any]) -> list[str]:
    """Return one line per split on what the encoding lost, and a warning where that exceeds the budget.

    ``found`` is the result of ``summary``.
    """
    lines = []
    for name, split in found["splits"].items():
        figures = split["fidelity"] or {"rows": 0}
        means = {key[4:-5]: value for key, value in figures.items() if key.endswith("_mean")}
        if means:
            losses = ", ".join(f"{mean:.1e} (p99 {figures[f'kl_t{t}_p99']:.1e}) at T={t}" for t, mean in means.items())
            lines.append(
                f"{found['encoding']} over {figures['rows']:,} {name} rows: mean KL {losses}; "
                f"top-1 agreement {figures['top1_agreement']:.3%}."
            )
    budget = found["budget"]
    if budget is not None and budget["exceeded"]:
        lost = ", ".join(f"{kl:.2e} at T={t:g}" for t, kl in zip(budget["temperatures"], budget["kl"], strict=True))
        lines.append(
            f"warning: the mean KL over all training rows, {lost}, exceeds the budget of {budget['max_kl']:g}. The "
            "pilot was not typical: make a store with a lower --max-kl."
        )
    return lines


def here(store: Path, found: Manifest) -> dict[str, list[int]]:
    """Return the views of each split of which all files are here; a split without ids and labels is left out."""
    absent = manifest.absent(store, found)
    lacking = {(group, view) for group, view in map(partial.place_of, filter(absent.has, found.files))}
    present = {}
    for split in found.names:
        groups = found.segments(split)
        if not any((group, None) in lacking for group in groups):
            views = range(found.splits[groups[0]].planes)
            present[split] = [view for view in views if not any((group, view) in lacking for group in groups)]
    return present


def not_here(store: Path) -> str | None:
    """Return one line on the parts of a store that are not here; ``None`` where all are.

    Raises:
        StoreError: the manifest cannot be read.
    """
    found = manifest.read(store)
    if partial.read(store, found.checksum) is None:
        return None
    present, parts = here(store, found), []
    for split in found.names:
        views = found.splits[found.segments(split)[0]].planes
        left = [view for view in range(views) if view not in present.get(split, ())]
        if split not in present or not present[split]:
            parts.append(f"all of {split}" if split not in present else f"all views of {split}")
        elif left:
            parts.append(f"view{'s' * (len(left) > 1)} {_ranges(left)} of {split}")
    return f"not here: {', '.join(parts)}" if parts else None


def _ranges(numbers: list[int]) -> str:
    """Return sorted numbers as ``0, 5 to 8``."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and groups[-1][-1] == number - 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(str(each[0]) if len(each) == 1 else f"{each[0]} to {each[-1]}" for each in groups)


def _split(found: Manifest, name: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Describe one split; ``sizes`` are those of the finished files by path."""
    groups = found.segments(name)
    cuts = [found.splits[group] for group in groups]
    pattern = re.compile(rf"({re.escape(name)}(?:\.\d+)?)/codes/c/(\d+)/(\d+)/0")
    done, label_bytes = 0, 0
    for path in sizes:  # not over the shards that the manifest claims, which may be any number
        place = pattern.fullmatch(path)
        row_max = place and arrays.shard_path(place[1], "row_max", view=int(place[2]), shard=int(place[3]))
        if row_max is not None and row_max in sizes:
            done += 1
            label_bytes += sizes[path] + sizes[row_max]
    shards = sum(cut.shards for cut in cuts)
    rows = sum(cut.samples * cut.planes for cut in cuts)
    measured = found.fidelity_of(name)
    described = {
        "samples": found.samples(name),
        "planes": cuts[0].planes,
        "chunk_rows": cuts[0].chunk_rows,
        "shard_rows": cuts[0].shard_rows,
        "shards_done": done,
        "shards_total": shards,
        "bytes_per_sample": label_bytes / rows if done == shards else None,
        "fidelity": None if measured is None else measured.summary(),
    }
    if len(groups) > 1:
        described["segments"] = {
            group: {"samples": cut.samples, "replaces": cut.replaces} for group, cut in zip(groups, cuts, strict=True)
        }
    return described


def _signal(found: Manifest, name: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Describe one signal; ``bytes`` are the sizes on disk of its finished shards in all splits."""
    array = array_name(name)
    stored = sum(size for path, size in sizes.items() if path.split("/")[1:3] == [array, "c"])
    rows = sum(split.samples * split.planes for split in found.splits.values())
    return {
        "shape": list(found.kept[name]),
        "array": array,
        "bytes": stored,
        "bytes_per_sample": stored / rows if found.state == "sealed" else None,
    }


def _budget(found: Manifest) -> dict[str, Any] | None:
    """Compare the KL over all training rows with the budget that the encoding was chosen by.

    It is compared at every measured temperature from the lowest to the highest of the budget.
    """
    if found.choice is None:
        return None
    asked = found.choice.temperatures
    within = [t for t in found.temperatures if min(asked) <= t <= max(asked)]
    measured = found.fidelity_of("train")
    lost = [] if measured is None else [measured.mean(t) for t in within]
    return {
        "max_kl": found.choice.max_kl,
        "temperatures": within,
        "kl": lost,
        "exceeded": max(lost) > found.choice.max_kl if lost else None,
        "chosen_from": [candidate.model_dump() for candidate in found.choice.table],
    }
