"""Stage `import-logits`: make a store of logits that someone already has."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import numpy as np

from kdpipe.dataset import Dataset
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import DatasetError
from kdpipe.models import Preset
from kdpipe.pairing.growth import row_order
from kdpipe.stages.console import progress, say
from kdpipe.stages.provenance import versions
from kdpipe.stages.settings.storing import ImportLogits
from kdpipe.stages.sources import load_split
from kdpipe.stages.storing import check_top1, ordered, report, settle
from kdpipe.store.writer import build
from kdpipe.teacher.cache import Imported, copy_plane, plan
from kdpipe.teacher.settings import ImportSettings


def run(params: ImportLogits) -> None:
    """Build, resume or confirm the store at ``params.output.out``."""
    view, given = params.view, params.source
    asked = get_encoding(params.encoding.encoding)
    files = {"train": given.logits} | ({} if given.test_logits is None else {"test": given.test_logits})
    datasets = {split: load_split(params.dataset, split) for split in files}
    asked.width(len(datasets["train"].classes))
    source = Imported(
        files, datasets, name=given.teacher_name, preset=_preset(given, datasets["train"]), views=view.augmented
    )
    scored = "test" if "test" in datasets else "train"
    top1 = check_top1(source.plane(scored, 0), datasets[scored], min_top1=given.min_top1)
    stored, order = ordered(datasets, params, seed=view.seed)
    wanted = plan(
        source,
        stored,
        recipe=view.recipe,
        seed=view.seed,
        views=view.augmented,
        encoding=asked,
        batch_size=1,
        order=order,
        pixel_digests=all(each.in_memory or each.digests_pixels for each in stored.values()),
    )
    wanted = settle(wanted, params, pilot=lambda rows: source.pilot(seed=view.seed, rows=rows))
    with build(params.output.out, wanted, overwrite=params.output.overwrite) as builder:
        builder.memory_limit = params.output.memory_bytes
        if builder.sealed:
            say(f"{params.output.out} is sealed and holds exactly this: nothing to do.")
        else:
            began = time.perf_counter()
            for split, dataset in datasets.items():
                planes = builder.manifest.splits[split].planes
                rows = np.arange(len(dataset)) if order is None else row_order(len(dataset), seed=view.seed)
                with progress(f"importing {split}", total=len(dataset) * planes) as advance:
                    advance(builder.rows_elsewhere(split))
                    for number in range(planes):
                        copy_plane(
                            builder, split, number, source=source, order=rows, dataset=stored[split], advance=advance
                        )
                    builder.drain()
            sealed = builder.seal(
                {
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": round(time.perf_counter() - began, 2),
                    "versions": dict(versions()),
                    f"teacher_{scored}_top1": top1,
                }
            )
            say(f"{builder.path} sealed, digest {sealed.digest}.")
    report(params)


def _preset(settings: ImportSettings, train: Dataset) -> Preset:
    """Return the preset of the teacher's images; without a size, that of the dataset."""
    if settings.input_size is None and train.image_size is None:
        raise DatasetError(
            f"{train.spec} has images of different sizes: give --input-size, the side of the teacher's input in pixels."
        )
    side = settings.input_size or min(train.image_size or (0,))
    return Preset(size=side, resize=side, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
