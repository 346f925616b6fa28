"""Commands that take arguments instead of a stage's settings: stores are joined, labels audited, lists printed.

``cli`` registers them. Rooms are imported inside the commands, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def merge(
    stores: Annotated[list[Path], typer.Argument(help="Two or more stores, NAME.zarr.")],
    out: Annotated[Path, typer.Option(help="Store to write, NAME.zarr.")],
) -> None:
    """Join stores of the same teacher, recipe and encoding that have different samples; files are copied as they are.

    Example:

        kdpipe merge first-half.zarr second-half.zarr --out all.zarr
    """
    from kdpipe.stages.merging import merge_stores

    merge_stores(stores, out)


def compact(
    store: Annotated[Path, typer.Argument(help="The store, NAME.zarr.")],
    data: Annotated[str, typer.Option(help="The dataset whose samples are kept, as in the other commands.")],
    out: Annotated[Path, typer.Option(help="Store to write, NAME.zarr.")],
) -> None:
    """Copy a store that has grown without the rows of images that were removed or have changed.

    Example:

        kdpipe compact logits.zarr --data folder:images --out compacted.zarr
    """
    from kdpipe.stages.merging import compact_store

    compact_store(store, data, out)


def list_command(
    kind: Annotated[
        str,
        typer.Argument(
            help="losses, recipes, encodings, models, datasets, presets, metrics, curves, attacks, corruptions, tasks, "
            "engines or formats."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what can be chosen by name, with parameters, help and source.

    Example:

        kdpipe list losses
    """
    from kdpipe.stages.listing import show_list

    show_list(kind, as_json=as_json)


def models_command(
    name: Annotated[
        str | None, typer.Argument(help="One model; any name that a stage takes (default: the zoo).")
    ] = None,
    num_classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    size: Annotated[
        int | None, typer.Option(help="Side of the input in pixels: 32, or with --layers the model's own.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List the layers of NAME instead, for --signals.")] = False,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Run the code that a run or a .pt2 names.")] = False,
) -> None:
    """Measure models: parameters, multiply-accumulates and the length of the penultimate features.

    Example:

        kdpipe models resnet20 --num-classes 100
    """
    from kdpipe.stages import listing

    if layers:
        listing.show_layers(name, num_classes=num_classes, size=size, trust_code=trust_code)
    else:
        listing.show_costs(name, num_classes=num_classes, size=size or 32)


def presets_command(
    name: Annotated[str | None, typer.Argument(help="Print this one as a params file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List published training recipes with their results, or print one for --params.

    Example:

        kdpipe presets cifar100-kd-wrn_40_2-wrn_16_2 > params.yaml
    """
    from kdpipe.stages import presets

    presets.show_presets(name, as_json=as_json)


def cache_command(
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove files of ended processes, and what exceeds the limit.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Remove all files of the caches.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the caches of decoded images and of stores, or remove what is not needed; KDPIPE_CACHE_LIMIT is in GB.

    Example:

        kdpipe cache --prune
    """
    from kdpipe.stages.caches import show_caches

    show_caches(prune=prune, everything=everything, as_json=as_json)


def audit(
    store: Annotated[str, typer.Argument(help="The store, NAME.zarr, or URL/NAME@VERSION.")],
    data: Annotated[str, typer.Option(help="The dataset whose labels are compared, as in the other commands.")],
    out: Annotated[Path, typer.Option(help="Directory for audit.html and audit.csv.")],
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Samples in the page and the table.")] = 400,
    class_map: Annotated[
        Path | None, typer.Option(help="CSV file, class,store_class, of classes with other names.")
    ] = None,
) -> None:
    """Find mislabeled images: those whose label the teacher finds unlikely in all views, as a page to look through.

    Example:

        kdpipe audit logits.zarr --data folder:images --out audit
    """
    from kdpipe.stages.audit import audit_store

    audit_store(store, data, split=split, class_map=class_map, count=count, out=out)


NAMED: dict[str, Callable[..., None]] = {
    "merge": merge,
    "compact": compact,
    "audit": audit,
    "list": list_command,
    "models": models_command,
    "presets": presets_command,
    "cache": cache_command,
}
"""The commands by name."""
