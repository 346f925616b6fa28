"""The command `kdpipe verify --teacher`: recompute some rows of a store with its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from kdpipe import dataset, models
from kdpipe.dataset import Dataset
from kdpipe.errors import ParamsError
from kdpipe.models import Preset, parse_preset
from kdpipe.models.interface import Interface
from kdpipe.stages.console import progress, say
from kdpipe.stages.teachers import Normalization, load_mapped
from kdpipe.store.manifest import Manifest, read
from kdpipe.store.reader import open_store
from kdpipe.teacher.forward import PRECISIONS, Ensemble, Forward, FrozenTeacher
from kdpipe.teacher.recompute import recompute
from kdpipe.teacher.settings import with_weights

_SEED = 0


def recomputed(
    path: Path,
    data: str,
    *,
    teachers: Sequence[str],
    weights: Sequence[str],
    rows: int,
    device: str,
    trust_code: bool = False,
) -> list[str]:
    """Compare ``rows`` random rows with what the teachers say now; return one line for each fault.

    The teacher's normalization, size and precision are those that the store records.

    Raises:
        ParamsError: the numbers of teachers and weights differ.
        KdpipeError: the store, the dataset or a teacher cannot be loaded, or would run code that is not trusted.
    """
    try:
        named = with_weights(teachers, weights)
    except ValueError as error:
        raise ParamsError(f"verify --teacher: {error}.") from None
    found = read(path)
    if found.fingerprint.precision not in PRECISIONS:
        return ["its logits were not computed by a model of kdpipe: there is no teacher to recompute them with"]
    stated = found.fingerprint.teacher
    presets = cast(list[dict[str, Any]], stated.preset.get("members", [stated.preset]))
    if len(teachers) != len(presets):
        return [f"it was written by {stated.name}, {len(presets)} teachers; --teacher names {len(teachers)}"]
    datasets = {split: dataset.load(data, split, progress=progress) for split in found.names}
    forward = _load(found, datasets["train"], teachers=named, presets=presets, device=device, trust_code=trust_code)
    given = forward.identity
    if given.digest != stated.digest:
        return [f"it was written by {stated.name}@{stated.digest[:8]}, not by {given.name}@{given.digest[:8]}"]
    stores = {split: open_store(path, split=split) for split in found.names}
    difference = recompute(stores, datasets, forward, rows=rows, seed=_SEED)
    measured = (
        f"{difference.rows} recomputed rows: logits differ by {difference.mean:.2e} on average and "
        f"{difference.largest:.2e} at most, mean KL {difference.kl:.2e}"
    )
    if difference.explained:
        say(f"{measured}; {found.fingerprint.encoding} explains that.")
        return []
    return [
        f"{measured}; {found.fingerprint.encoding} leaves {difference.unexplained:.2e} of their spread unexplained, "
        f"{difference.tolerance:g} is tolerated: the teacher's code, the images or the store have changed"
    ]


def _load(
    found: Manifest,
    train: Dataset,
    *,
    teachers: Sequence[tuple[str, str | None]],
    presets: Sequence[dict[str, Any]],
    device: str,
    trust_code: bool,
) -> FrozenTeacher:
    members = []
    maps = found.fingerprint.teacher.class_maps or (None,) * len(presets)
    for (name, file), described, outputs in zip(teachers, presets, maps, strict=True):
        preset, interface = parse_preset(described), Interface.parse(described)
        given = Normalization(recorded=preset, interface=interface)
        if isinstance(preset, Preset):
            given = Normalization(preset.mean, preset.std, preset.size, interface=interface)
        teacher = load_mapped(name, train, given, recorded=outputs, weights=file, trust_code=trust_code, quiet=True)
        members.append(
            Forward(
                teacher.model,
                device=models.resolve_device(device),
                precision=found.fingerprint.precision,
                channels_last=None if found.fingerprint.memory_format else False,
                outputs=teacher.outputs,
            )
        )
    return members[0] if len(members) == 1 else Ensemble(members)
