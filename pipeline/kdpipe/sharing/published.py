"""A version of a store at a shared place: found by its address, and its files fetched one by one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdpipe.errors import RemoteMissingError, StoreError, UntrustedStoreError, did_you_mean
from kdpipe.printable import printable
from kdpipe.reading import MEGABYTE
from kdpipe.sharing import catalog, remembered, signature
from kdpipe.sharing.address import Address
from kdpipe.sharing.catalog import Row
from kdpipe.sharing.remote import Folder, Report, connect
from kdpipe.store import manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.tree import COMPANIONS

_AT_ONCE = 4
"""Files that are fetched at once."""


@dataclass(frozen=True)
class Published:
    """A version whose manifest was read and checked."""

    folder: Folder
    address: Address
    """With the version that was found; without one for a store that was copied there without ``kdpipe publish``."""
    row: Row | None
    """Its row in the catalog."""
    manifest: Manifest
    content: bytes
    """The manifest as it was read, byte by byte."""
    warnings: tuple[str, ...] = ()
    """Remarks on the catalog."""

    @property
    def prefix(self) -> str:
        """Its folder below the place."""
        return self.address.name if self.address.version is None else self.address.folder

    def describe(self) -> str:
        """Return its address, without credentials."""
        return f"{self.folder.describe()}/{self.address.label}"

    def signer(self, wanted: str | None = None) -> str | None:
        """Check the signature; return the fingerprint of its key, ``None`` for an unsigned version.

        The first signer of a store is remembered; see ``signature.check``.

        Raises:
            UntrustedStoreError: the signature is wrong, or of another signer than the remembered or ``wanted`` one.
        """
        checksum = self.manifest.checksum
        assert checksum is not None
        content = self.companion(signature.FILE)
        place = remembered.place_of(self.folder)
        signer = signature.check(checksum, content, place=place, name=self.address.name, signer=wanted)
        if self.row is not None and self.row.signer is not None and signer is None:
            raise UntrustedStoreError(
                f"{self.describe()}: the catalog says that {self.row.signer} has signed it, and {signature.FILE} is "
                "missing. Tell its publisher."
            )
        return signer

    def introduce(self, say: Callable[[str], object], wanted: str | None = None) -> None:
        """Check the signature as ``signer`` does; report warnings, signer, license and origin."""
        for line in self.warnings:
            say(line)
        signed, given = self.signer(wanted), self.manifest.provenance
        origin = "not signed: anybody may have made it" if signed is None else f"signed by {signed}"
        use = f" ({given.allowed_use})" if given.allowed_use else ""
        say(f"{self.describe()}: {given.title or self.manifest.dataset}; {origin}.")
        say(f"License: {given.license or 'none stated'}{use}.")

    def companion(self, name: str) -> bytes | None:
        """Return a file beside those of the store, such as its card; ``None`` where there is none.

        Raises:
            RemoteError: it has more than a megabyte, or cannot be read.
        """
        try:
            return self.folder.read(f"{self.prefix}/{name}", limit=MEGABYTE)
        except RemoteMissingError:
            return None

    def companions(self) -> dict[str, bytes]:
        """Return all files beside those of the store, by name."""
        found = {name: self.companion(name) for name in COMPANIONS}
        return {name: content for name, content in found.items() if content is not None}

    def fetch(self, names: Sequence[str], into: Path, *, parts: Path, report: Report) -> None:
        """Fetch files of the store, several at once; each appears whole and checked.

        What has arrived of the others is in the folder ``parts``, by digest.

        Raises:
            RemoteError: a file is missing, or differs from the manifest; or the place cannot be reached.
            UnwritableError: the disk is full or fails.
        """

        def one(name: str, report: Report) -> None:
            file = self.manifest.files[name]
            # Files of equal content may be fetched at the same time.
            part = parts / f"{file.digest}-{manifest.digest_bytes(name.encode())[:8]}.part"
            self.folder.fetch(
                f"{self.prefix}/{name}", into / name, size=file.size, digest=file.digest, part=part, report=report
            )

        several(one, names, report)


def find(text: str) -> Published:
    """Return the version at an address, ``URL/NAME@VERSION``; without ``@VERSION`` the newest.

    Raises:
        ParamsError: the address is malformed.
        StoreError: the catalog or the manifest is damaged, they contradict each other, or the version was another one
            when it was seen first.
        RemoteError: there is no such store, or the place cannot be read.
    """
    address = Address.parse(text)
    folder = connect(address.url)
    try:
        rows = catalog.read(folder)
    except RemoteMissingError:
        row, warnings = None, []
    else:
        warnings = remembered.notice(remembered.place_of(folder), rows)
        row = rows.find(address.name, address.version)
        if row is None:
            raise _unlisted(address, rows, folder)
        address = Address(address.url, row.name, row.version)
    found = Published(folder, address, row, *_manifest(folder, address), warnings=tuple(warnings))
    if row is not None and row.checksum != found.manifest.checksum:
        raise StoreError(
            f"{found.describe()}: the catalog names another manifest than the one that is there: one of them was "
            "changed or rolled back. Tell its publisher."
        )
    return found


def _manifest(folder: Folder, address: Address) -> tuple[Manifest, bytes]:
    prefix = address.name if address.version is None else address.folder
    name = f"{prefix}/zarr.json"
    try:
        content = folder.read(name, limit=manifest.MAX_MANIFEST_BYTES)
    except RemoteMissingError:
        raise RemoteMissingError(
            f"{folder.describe()} has no store {printable(address.name)}: neither {catalog.INDEX} nor {name} is "
            "there. Run: kdpipe stores URL"
        ) from None
    try:
        found = manifest.parse(content, root=Path("zarr.json"))
    except StoreError as error:
        raise StoreError(f"{folder.describe(prefix)}: {error}") from None
    if found.state != "sealed" or found.is_part:
        raise StoreError(f"{folder.describe(prefix)} is no sealed store. Tell its publisher.")
    return found, content


def _unlisted(address: Address, rows: catalog.Catalog, folder: Folder) -> RemoteMissingError:
    versions = [row.version for row in rows.of(address.name)]
    if versions:
        which = f"{address.name}@{address.version}, only {', '.join(versions[-5:])}"
    else:
        which = f"{address.name}{did_you_mean(address.name, {row.name for row in rows.versions})}"
    end = "" if which.endswith("?") else "."
    known = remembered.remembered(remembered.place_of(folder)).versions
    lost = (
        " It was there before: the catalog is an older one, or it was removed."
        if f"{address.name}@{address.version}" in known
        else ""
    )
    return RemoteMissingError(f"{folder.describe()} has no {which}{end}{lost} Run: kdpipe stores {folder.describe()}")


class _AbandonedError(Exception):
    """Another file has failed, or the user has stopped the program."""


def several(work: Callable[[str, Report], None], names: Iterable[str], report: Report) -> None:
    """Call ``work`` for each name in a few threads, which a signal or an error ends."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    ended = threading.Event()
    count = 0
    for name in names:
        waiting.put(name)
        count += 1

    def moved(size: int) -> None:
        if ended.is_set():
            raise _AbandonedError
        done.put(size)

    def run() -> None:
        while not ended.is_set():
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(name, moved)
            except _AbandonedError:
                return
            except BaseException as failure:  # raised again in the thread that waits
                done.put(failure)
                return
            done.put(None)

    for _ in range(min(_AT_ONCE, count)):
        # Daemons: a silent server does not delay the end of the program.
        threading.Thread(target=run, daemon=True, name="kdpipe-fetch").start()
    try:
        while count:
            outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is None:
                count -= 1
            else:
                report(outcome)
    finally:
        ended.set()
