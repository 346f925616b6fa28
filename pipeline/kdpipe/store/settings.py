"""Settings of what a store tells its users; the texts under the fields are the command line's help."""

from __future__ import annotations

from pydantic import ConfigDict

from kdpipe.settings import Settings


class Provenance(Settings):
    """Provenance

    Statements of the makers of a store for its users. They are in the manifest; the store's digest does not cover them.
    """

    model_config = ConfigDict(strict=True)

    title: str | None = None
    """Title of the store."""
    license: str | None = None
    """License of the logits, preferably an SPDX identifier."""
    allowed_use: str | None = None
    """Permitted uses of the logits."""
    contact: str | None = None
    """Contact for questions about the store."""
    notes: str | None = None
    """Further notes for the store's users."""

    def updated(self, newer: Provenance) -> Provenance:
        """Return this provenance with the fields that ``newer`` sets."""
        return self.model_copy(update=newer.model_dump(exclude_none=True))
