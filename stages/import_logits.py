"""Stage `import-logits`: make a store of logits that someone already has."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from kdpipe import encoding
from kdpipe.dataset import Dataset
from kdpipe.errors import DatasetError
from kdpipe.models import Preset
from kdpipe.store import build
from kdpipe.teacher import Imported, copy_plane, plan
from kdpipe.views import Recipe
from stages.console import progress, say
from stages.params import ImportLogits
from stages.provenance import versions
from stages.sources import load_split
from stages.storing import check_top1, report, settle


def run(params: ImportLogits) -> None:
    """Build, resume or confirm the store at ``params.out``."""
    recipe = Recipe.parse(params.recipe)
    asked = encoding.get(params.encoding)
    files = {"train": params.logits} | ({} if params.test_logits is None else {"test": params.test_logits})
    datasets = {split: load_split(params, split) for split in files}
    asked.width(len(datasets["train"].classes))
    source = Imported(
        files, datasets, name=params.teacher_name, preset=_preset(params, datasets["train"]), views=params.views
    )
    scored = "test" if "test" in datasets else "train"
    top1 = check_top1(source.plane(scored, 0), datasets[scored], min_top1=params.min_top1)
    wanted = plan(source, datasets, recipe=recipe, seed=params.seed, views=params.views, encoding=asked, batch_size=1)
    wanted = settle(wanted, params, pilot=lambda: source.pilot(seed=params.seed))
    with build(params.out, wanted, overwrite=params.overwrite) as builder:
        if builder.sealed:
            say(f"{params.out} is sealed and holds exactly this: nothing to do.")
        else:
            began = time.perf_counter()
            for split, dataset in datasets.items():
                planes = builder.manifest.splits[split].planes
                with progress(f"importing {split}", total=len(dataset) * planes) as advance:
                    for view in range(planes):
                        copy_plane(builder, split, view, source=source, advance=advance)
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


def _preset(params: ImportLogits, train: Dataset) -> Preset:
    """Return the geometry of the images that the logits are of; without a size, that of the dataset."""
    if params.input_size is None and train.image_size is None:
        raise DatasetError(
            f"{train.spec} has images of different sizes: give --input-size, the side in pixels that the teacher saw."
        )
    side = params.input_size or min(train.image_size or (0,))
    return Preset(size=side, resize=side, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
