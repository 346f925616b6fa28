"""Commands by which teams exchange stores.

``cli`` registers them. Rooms are imported inside the commands, as there; the texts of the help are those of settings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from kdpipe.store.settings import Provenance

_SAID = {name: field.description for name, field in Provenance.model_fields.items()}

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


NAMED: dict[str, Callable[..., None]] = {
    "describe": describe,
}
"""The commands by name."""
