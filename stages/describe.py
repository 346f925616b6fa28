"""Command `describe`: what the makers of a store say about it, changed without data or teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from kdpipe.errors import ParamsError, UnsealedStoreError
from kdpipe.sharing.licensing import spdx
from kdpipe.stages.console import say, show
from kdpipe.stages.flags import as_sentence, in_words
from kdpipe.store import manifest, partial
from kdpipe.store.ledger import lock, writing
from kdpipe.store.settings import Provenance


def describe_store(path: Path, given: Mapping[str, str | None]) -> None:
    """Change the provenance of the store at ``path``, and print it; an empty text removes an entry.

    Raises:
        ParamsError: nothing is given, or the license is no SPDX expression.
        StoreError: there is no sealed store.
    """
    changed = changes(given)
    if not changed:
        raise ParamsError("kdpipe describe needs an entry to change, such as --license CC-BY-4.0.")
    manifest.read(path)
    with writing(path), lock(path):
        found = manifest.read(path)
        if found.state != "sealed":
            raise UnsealedStoreError(f"{path} is not sealed: finish its build with the same command, then describe it.")
        partial.refuse(path, found.checksum, what="describing it")
        updated = found.model_copy(update={"provenance": with_changes(found.provenance, changed)}).sealed()
        if updated != found:
            manifest.write(path, updated)
    for name, text in updated.provenance.model_dump(exclude_none=True).items():
        show(f"{name:12} {text}")
    say(f"{path}: digest {updated.digest}, as before; checksum {updated.checksum}.")
    if updated != found and (path / "manifest.sig").exists():
        say(f"warning: {path / 'manifest.sig'} is of the former description. kdpipe publish --sign makes another.")


def changes(given: Mapping[str, str | None]) -> dict[str, str]:
    """Return the entries that are given, with the license in its canonical spelling.

    Raises:
        ParamsError: it is no SPDX expression, or a text is too long.
    """
    changed = {key: text for key, text in given.items() if text is not None}
    if changed.get("license"):
        changed["license"] = spdx(changed["license"])
    try:
        Provenance.of(changed)
    except ValidationError as error:
        raise ParamsError(as_sentence(in_words(error, Provenance))) from None
    return changed


def with_changes(provenance: Provenance, changed: Mapping[str, str]) -> Provenance:
    """Return the provenance with other entries; an empty text removes one."""
    return Provenance(**{key: text for key, text in {**provenance.model_dump(), **changed}.items() if text})
