"""Settings of what a store tells its users, and of the processes that write it; the texts under fields are help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field

from kdpipe.errors import ParamsError
from kdpipe.settings import Parsed, Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One of the processes among which the shards of a store are dealt; each also takes what others leave."""

    number: int
    """From 1."""
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Parse ``NUMBER/OF``.

        Raises:
            ParamsError: it is something else.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ParamsError(f"'{text}' is no part, expected NUMBER/OF from 1/OF to OF/OF, such as 3/16.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        """Return the part as it is written."""
        return f"{self.number}/{self.of}"

    def dealt(self, things: list[T]) -> list[T]:
        """Return all things in the order in which this part takes them, from its own share on."""
        begin = (self.number - 1) * len(things) // self.of
        return things[begin:] + things[:begin]


WHOLE = Part(1, 1)
"""The part of the only process."""

PartSetting = Annotated[Part, Parsed("kdpipe.store.settings:Part.parse", "NUMBER/OF")]

MOST_CHARACTERS = 32_768
"""Characters of a statement."""
Statement = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class Provenance(Settings):
    """Provenance

    Statements of the makers of a store for its users. They are in the manifest; the store's digest does not cover them.
    """

    model_config = ConfigDict(strict=True)

    title: Statement | None = None
    """Title of the store."""
    license: Statement | None = None
    """License of the logits, preferably an SPDX identifier."""
    allowed_use: Statement | None = None
    """Permitted uses of the logits."""
    contact: Statement | None = None
    """Contact for questions about the store."""
    citation: Statement | None = None
    """Citation for those who use the logits."""
    notes: Statement | None = None
    """Further notes for the store's users."""

    def updated(self, newer: Provenance) -> Provenance:
        """Return this provenance with the fields that ``newer`` sets."""
        return self.model_copy(update=newer.model_dump(exclude_none=True))
