"""Commands by which teams exchange stores.

``cli`` registers them. Rooms are imported inside the commands, as there; the texts of the help are those of settings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from kdpipe.sharing.settings import Withholding
from kdpipe.store.settings import Provenance

_SAID = {name: field.description for name, field in Provenance.model_fields.items()}
_LESS = {name: field.description for name, field in Withholding.model_fields.items()}
_MAX_KL = Withholding.model_fields["max_kl"].default

Title = Annotated[str | None, typer.Option(help=_SAID["title"])]
License = Annotated[str | None, typer.Option(help="License of the logits, an SPDX identifier such as CC-BY-4.0.")]
AllowedUse = Annotated[str | None, typer.Option(help=_SAID["allowed_use"])]
Contact = Annotated[str | None, typer.Option(help=_SAID["contact"])]
Citation = Annotated[str | None, typer.Option("--cite", "--citation", help=_SAID["citation"])]
Notes = Annotated[str | None, typer.Option(help=_SAID["notes"])]


def describe(
    store: Annotated[Path, typer.Argument(help="The store, NAME.zarr.")],
    title: Title = None,
    license: License = None,  # noqa: A002
    allowed_use: AllowedUse = None,
    contact: Contact = None,
    citation: Citation = None,
    notes: Notes = None,
) -> None:
    """Change what a store says of itself, without data or teacher: its digest stays, its checksum is another.

    An empty text removes an entry.

    Example:

        kdpipe describe logits.zarr --license CC-BY-4.0 --contact team@example.org
    """
    from kdpipe.stages.describe import describe_store

    said = {"title": title, "license": license, "allowed_use": allowed_use, "contact": contact}
    describe_store(store, said | {"citation": citation, "notes": notes})


def publish(
    store: Annotated[Path, typer.Argument(help="The store, NAME.zarr.")],
    address: Annotated[
        str, typer.Argument(help="URL/NAME@VERSION: a folder, ssh://, s3://, gs://, az:// or https:// with WebDAV.")
    ],
    sign: Annotated[Path | None, typer.Option(help="SSH key to sign the manifest with.")] = None,
    title: Title = None,
    license: License = None,  # noqa: A002
    allowed_use: AllowedUse = None,
    contact: Contact = None,
    citation: Citation = None,
    notes: Notes = None,
    views: Annotated[int | None, typer.Option(help=_LESS["views"])] = None,
    splits: Annotated[str | None, typer.Option(help=_LESS["splits"])] = None,
    encoding: Annotated[str | None, typer.Option(help=_LESS["encoding"])] = None,
    max_temperature: Annotated[float | None, typer.Option(help=_LESS["max_temperature"])] = None,
    max_kl: Annotated[float | None, typer.Option(help=f"{_LESS['max_kl']} (default: {_MAX_KL:g})")] = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help=_LESS["no_labels"])] = False,
    no_signals: Annotated[bool, typer.Option("--no-signals", help=_LESS["no_signals"])] = False,
    hide_names: Annotated[bool, typer.Option("--hide-names", help=_LESS["hide_names"])] = False,
    names_key: Annotated[
        Path | None, typer.Option(help="File of the secret of --hide-names, made if it is missing; keep it at home.")
    ] = None,
) -> None:
    """Publish a version of a store at a shared place, whole or without some of its parts; a version never changes.

    Example:

        kdpipe publish logits.zarr /mnt/shared/cars@v1 --license CC-BY-4.0 --contact team@example.org
    """
    from kdpipe.stages.publish import publish_store

    said = {"title": title, "license": license, "allowed_use": allowed_use, "contact": contact}
    less = {"views": views, "splits": splits, "encoding": encoding, "max_temperature": max_temperature}
    parts = {"no_labels": no_labels, "no_signals": no_signals, "hide_names": hide_names}
    publish_store(
        store,
        address,
        said=said | {"citation": citation, "notes": notes},
        withheld=less | {"max_kl": max_kl} | parts,
        key=sign,
        names_key=names_key,
    )


def pull(
    source: Annotated[str, typer.Argument(help="URL/NAME@VERSION, or URL/NAME for the newest version.")],
    out: Annotated[
        Path | None, typer.Option(help="Store to write (default: NAME-VERSION.zarr in this folder).")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Pull this split alone; repeat for several (default: all).")
    ] = None,
    views: Annotated[
        int | None, typer.Option(min=0, help="Pull the plain view and this many augmented ones (default: all).")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Compare with this dataset before the first view, as in the other commands.")
    ] = None,
    signer: Annotated[
        str | None,
        typer.Option(
            help="Refuse a version that this key has not signed: its fingerprint, or a name in git's allowed signers."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another store at --out; files that both have are kept.")
    ] = False,
) -> None:
    """Pull a version of a store from a URL or folder, or a part of it; run again, it goes on, and repairs files.

    Example:

        kdpipe pull https://models.example.org/stores/cifar10@v2 --split test --data cifar10:data
    """
    from kdpipe.stages.pull import pull as run

    splits = tuple(dict.fromkeys(split)) if split else None
    run(source, out, splits=splits, views=views, data=data, signer=signer, overwrite=overwrite)


def stores(
    place: Annotated[str, typer.Argument(help="URL or folder: a shared place, or a folder of stores.")],
    data: Annotated[
        str | None, typer.Option(help="List first the stores that have most images of this dataset.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the stores at a place: teacher, classes, views, encoding, size, license, signer.

    Example:

        kdpipe stores /mnt/shared --data digits
    """
    from kdpipe.stages.stores import show_stores

    show_stores(place, data=data, as_json=as_json)


NAMED: dict[str, Callable[..., None]] = {
    "describe": describe,
    "publish": publish,
    "pull": pull,
    "stores": stores,
}
"""The commands by name."""
