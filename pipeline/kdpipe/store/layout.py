"""How a split's arrays are cut into chunks (decoded as a unit) and shards (files)."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_BYTES = 2 * 1024**2
SHARD_BYTES = 128 * 1024**2
SHARD_ROWS = 65_536
SPLIT_ROWS = 4_096
"""Planes of more rows than this are cut into at least four shards, so that a resumed run has units."""


@dataclass(frozen=True)
class Layout:
    """Rows per chunk and per shard of one split; the chunk divides the shard."""

    chunk_rows: int
    shard_rows: int

    @classmethod
    def choose(cls, *, samples: int, row_bytes: int) -> Layout:
        """Choose for ``samples`` rows of ``row_bytes`` undecoded bytes each.

        Chunks hold about 2 MB; shards at most 128 MB and 65,536 rows.
        """
        limit = max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes))
        shard = min(limit, -(-samples // 4) if samples > SPLIT_ROWS else samples)
        chunks = -(-shard // max(1, CHUNK_BYTES // row_bytes))
        chunk = -(-shard // chunks)
        if chunk * chunks > limit:
            chunk -= 1
        return cls(chunk_rows=chunk, shard_rows=chunk * chunks)

    def shards(self, samples: int) -> list[tuple[int, int]]:
        """Return the ``(start, stop)`` rows of each shard of a plane."""
        return [(start, min(start + self.shard_rows, samples)) for start in range(0, samples, self.shard_rows)]
