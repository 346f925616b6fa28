"""The command `kdpipe pull`: a version of a store, or a part of it, from a shared place."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.errors import MissingSplitError, StaleStoreError
from kdpipe.sharing import published
from kdpipe.sharing.published import Published
from kdpipe.sharing.pulling import Pull, Wanted
from kdpipe.stages.console import amount, progress, say, show
from kdpipe.store.inspect import not_here

if TYPE_CHECKING:
    from kdpipe.pairing.coverage import Coverage


def pull(
    source: str,
    out: Path | None,
    *,
    splits: tuple[str, ...] | None,
    views: int | None,
    data: str | None,
    signer: str | None,
    overwrite: bool,
) -> None:
    """Pull a version; manifest, signature, license and the match with ``data`` come before the first plane.

    Raises:
        KdpipeError: see ``published.find`` and ``Pull``; or the signature is wrong, or no image matches.
    """
    found = published.find(source)
    found.introduce(say, signer)
    if data is not None and found.manifest.hides_names:
        raise StaleStoreError(
            f"{found.describe()} hides the names of its samples: their ids are keyed by a secret of its publisher, so "
            "no images can be matched with it. Ask for a version with names, or pull it without --data."
        )
    place = _default(found) if out is None else out
    with Pull.begun(found, place, Wanted(splits, views), overwrite=overwrite, progress=progress) as pulling:
        to_fetch = pulling.missing()
        pulling.fetch(pulling.sides())
        left = f"{amount(to_fetch)} of {amount(pulling.size)} to fetch"
        if data is None:
            say(f"{left}.")
        else:
            matches = _coverage(pulling, data)
            say(f"{'; '.join(map(str, matches))}; {left}.")
            if not any(each.usable for each in matches):
                pulling.abandon()
                raise StaleStoreError(
                    f"no image of {data} matches {found.describe()}: no view was fetched. They are other images, or "
                    "lossy copies, as another JPEG quality makes: use those that the store was made from, "
                    f"{found.manifest.dataset}."
                )
        pulling.fetch(pulling.planes())
        pulling.finish()
        moved = f"{amount(pulling.fetched)} fetched"
        moved += f", {amount(pulling.reused)} from other stores here" if pulling.reused else ""
    rest = not_here(place)
    show(f"{place}: {moved}; {'complete' if rest is None else rest}. Digest {found.manifest.digest}.")
    target = shlex.quote(str(place))
    trains = "train" in pulling.wanted or (rest is None and "train" in found.manifest.names)
    if trains and not found.manifest.hides_names:
        say(f"Next: kdpipe train-student --data {data or 'DATA'} --store {target} --student NAME --out DIR")


def _coverage(pulling: Pull, data: str) -> list[Coverage]:
    from kdpipe import dataset
    from kdpipe.pairing.coverage import Coverage  # imports torch, which a pull without data does not need
    from kdpipe.store.reader import open_store

    matches = []
    splits = dict.fromkeys(group.partition(".")[0] for group in pulling.wanted)
    for split in splits:
        try:
            samples = dataset.load(data, split, progress=progress)
        except MissingSplitError as missing:
            say(f"warning: {missing}.")
            continue
        matches.append(Coverage.of(open_store(pulling.work, split), samples, progress=progress))
    return matches


def _default(found: Published) -> Path:
    version = "" if found.address.version is None else f"-{found.address.version}"
    return Path(f"{found.address.name.removesuffix('.zarr')}{version}.zarr")
