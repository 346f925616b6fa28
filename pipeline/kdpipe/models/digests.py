"""Digests of a run's weights, which its metrics.json records and which are compared whenever they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from kdpipe.errors import ModelError
from kdpipe.reading import MEGABYTE, hashed, read_json, why_unread


class _Recorded(BaseModel):
    """The part of ``metrics.json`` and ``run.json`` that holds the digests."""

    model_config = ConfigDict(extra="ignore", strict=True)

    weights: dict[str, Annotated[str, Field(max_length=64)]] | None = None


def digest_of(path: Path) -> str:
    """Return the BLAKE3 digest of a file, in hexadecimal.

    Raises:
        ModelError: it is missing, no regular file, or cannot be read.
    """
    try:
        return hashed(path).hexdigest()
    except OSError as failure:
        raise ModelError(f"{path} cannot be read: {why_unread(failure)}.") from None


def refuse_damaged(weights: Path) -> None:
    """Compare a run's weights with the digest in the ``metrics.json`` beside them, where it has one.

    Raises:
        ModelError: they differ, or one of the two files is no regular file.
    """
    found = digest_of(weights)
    for name in ("metrics.json", "run.json"):
        record = weights.with_name(name)
        if not record.exists():
            continue
        recorded = (read_json(record, _Recorded, limit=16 * MEGABYTE, error=ModelError).weights or {}).get(weights.name)
        if recorded is not None and recorded != found:
            raise ModelError(
                f"{weights} is damaged or was replaced: its digest is {found[:8]}, {name} recorded {recorded[:8]}. "
                "Restore it from a copy, or train again with --overwrite."
            )
