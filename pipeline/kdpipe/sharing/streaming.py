"""Stores that are used without being pulled: from a URL, or out of a ``.zip`` or ``.tar`` file.

    store = open_store("https://models.example.org/stores/cifar10@v2", "test")

Their files are kept in the cache, in ``stores/KEY/NAME.zarr``, a partial store that grows: a file is fetched when it is
needed for the first time, and checked. What is there is used without the network. ``kdpipe cache`` lists and removes
such stores.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdpipe import durable
from kdpipe.dataset import caching
from kdpipe.errors import KdpipeError, StoreNotFoundError, UnwritableError
from kdpipe.reading import read_json
from kdpipe.sharing import archive, published
from kdpipe.sharing.address import NAME, VERSION, Address
from kdpipe.sharing.catalog import INDEX
from kdpipe.sharing.place import PassingError
from kdpipe.sharing.published import Published
from kdpipe.sharing.remote import Folder, connect, is_url
from kdpipe.store import manifest, partial
from kdpipe.store.manifest import Manifest, digest_bytes
from kdpipe.store.partial import Present, Supply
from kdpipe.store.sections import Digest
from kdpipe.store.tree import PRESENT

if TYPE_CHECKING:
    from kdpipe.store.reader import LogitStore

_POLL = 0.1
"""Seconds between two looks at another process that fetches files of the same store."""

_connected: dict[str, Folder] = {}
"""Places that this process fetches from, by URL."""
_held: dict[Path, int] = {}
"""Descriptors of the locks of cached stores that this process uses."""


@dataclass(frozen=True)
class Local:
    """A store as it is on this machine."""

    path: Path
    supply: Supply | None = None
    """Fetches files that are not here; ``None`` where none can be."""
    address: str | None = None
    """Address that it was opened by, without credentials; ``None`` for a store that lies on this machine."""

    @property
    def place(self) -> str:
        """The path or address by which it is found again."""
        return str(self.path) if self.address is None else self.address

    def complete(self) -> Path:
        """Fetch all files that are not here, and return the path."""
        if self.supply is not None:
            self.supply(sorted(manifest.read(self.path).files))
        return self.path


def open_store(
    place: str | Path,
    split: str = "train",
    *,
    memory_limit: int | None = None,
    beside: Sequence[str] = (),
    say: Callable[[str], object] = lambda _: None,
) -> LogitStore:
    """Open one split of a store at a path or URL, or in an archive; see ``kdpipe.store.reader.open_store``.

    ``say`` is called with warnings, and with signer and license of a version that is fetched.

    Raises:
        StoreError: as there.
        RemoteError: a file is neither here nor can it be fetched.
    """
    from kdpipe.store import reader  # which imports torch, as commands that look at a store do not

    found, limit = localize(place, say=say), reader.MEMORY_LIMIT if memory_limit is None else memory_limit
    return reader.open_store(found.path, split, memory_limit=limit, beside=beside, supply=found.supply)


def localize(place: str | Path, *, say: Callable[[str], object] = lambda _: None) -> Local:
    """Return a store on this machine for a path, an archive or a URL; of the last, the manifest alone is fetched.

    ``say`` is called with warnings, and with signer and license of a version that is fetched.

    Raises:
        StoreError: there is no store, or it is damaged.
        RemoteError: it is not in the cache, and cannot be fetched.
        UnwritableError: the cache cannot be written, or is not trusted.
    """
    text = str(place)
    if isinstance(place, str) and is_url(text):
        return _of_url(text, say)
    path = Path(place)
    if archive.is_archive(path):
        return Local(_unpacked(path))
    if "@" in path.name and not os.path.lexists(path) and os.path.lexists(path.parent / INDEX):
        return _in_folder(text, say)
    return Local(path)


def _in_folder(text: str, say: Callable[[str], object]) -> Local:
    """Return a version in a shared folder of this machine, ``FOLDER/NAME@VERSION``, where it lies."""
    found = published.find(text)
    found.introduce(say)
    return Local(Path(found.address.url, found.prefix))


def _of_url(url: str, say: Callable[[str], object]) -> Local:
    address, shown = Address.parse(url), _shown(url)
    noted = _noted(shown)
    if address.version is not None and noted is not None:
        return _cached(url, shown, noted)  # a version never changes
    try:
        found = published.find(url)
    except PassingError:
        if noted is None:
            raise
        return _cached(url, shown, noted)
    found.introduce(say)
    return _kept(url, shown, found)


def _shown(url: str) -> str:
    address = Address.parse(url)
    return f"{connect(address.url).describe()}/{address.label}"


class _Note(BaseModel):
    """The store that an address has led to."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    address: Annotated[str, Field(max_length=4096)]
    checksum: Digest
    store: Annotated[str, Field(pattern=rf"^{NAME}$")]
    version: Annotated[str, Field(pattern=rf"^{VERSION}$")] | None

    @property
    def name(self) -> str:
        """The name of its folder in the cache."""
        version = "" if self.version is None else f"@{self.version}"
        return f"{self.store.removesuffix('.zarr')}{version}.zarr"


def _note_of(shown: str) -> Path:
    return caching.cache_directory() / "addresses" / f"{digest_bytes(shown.encode())}.json"


def _noted(shown: str) -> _Note | None:
    """Return what is known of an address, if its store is still in the cache."""
    path = _note_of(shown)
    if not path.exists() or caching.distrust() is not None:
        return None
    try:
        note = read_json(path, _Note)
        found = manifest.read(_folder(note.checksum) / note.name)
    except KdpipeError:
        return None
    return note if note.address == shown and found.checksum == note.checksum else None


def _kept(url: str, shown: str, found: Published) -> Local:
    """Return the cached store of a version, which is made if it is not there."""
    checksum = found.manifest.checksum
    assert checksum is not None
    note = _Note(address=shown, checksum=checksum, store=found.address.name, version=found.address.version)
    path = _folder(checksum) / note.name
    with _writing(path):
        _prepare(path)
        with _alone(path.parent):
            path.mkdir(exist_ok=True)
            if not (path / PRESENT).exists():
                partial.write(path, Present(checksum=checksum, source=found.describe()[:4096]))
            if not (path / "zarr.json").exists():
                durable.write_bytes(path / "zarr.json", found.content, temporary=path.parent / "zarr.json.tmp")
        durable.write_bytes(_note_of(shown), json.dumps(note.model_dump()).encode())
    _connected[Address.parse(url).url] = found.folder
    return _cached(url, shown, note)


def _cached(url: str, shown: str, note: _Note) -> Local:
    path = _folder(note.checksum) / note.name
    _use(path.parent)
    return Local(path, Fetching(url, note.store, note.version, path), shown)


def _folder(key: str) -> Path:
    return caching.cache_directory() / caching.STORES / key


@dataclass(frozen=True)
class Fetching:
    """Fetches files of a cached store from its place, one process at a time; can be pickled."""

    url: str = field(repr=False)
    name: str
    version: str | None
    path: Path

    def __call__(self, files: Sequence[str]) -> None:
        """Fetch those files that are not here.

        Raises:
            RemoteError: they cannot be fetched, or the version was changed there.
        """
        _use(self.path.parent)
        with _writing(self.path), _alone(self.path.parent):
            left = [name for name in files if not (self.path / name).is_file()]
            if not left:
                return
            found = self._found()
            parts = self.path.parent / "parts"
            found.fetch(left, self.path, parts=parts, report=lambda _bytes: None)
        caching.prune(caching.limit_bytes(), keep=self.path.parent)

    def _found(self) -> Published:
        address = Address(Address.parse(self.url).url, self.name, self.version)
        if address.url not in _connected:
            _connected[address.url] = connect(address.url)
        return Published(_connected[address.url], address, None, manifest.read(self.path), b"")


def known_manifest(place: str) -> Manifest | None:
    """Return the manifest of a store of which a run recorded the place; ``None`` where it is not on this machine."""
    try:
        if not is_url(place):
            return manifest.read(Path(place))
        noted = _noted(place)
        return None if noted is None else manifest.read(_folder(noted.checksum) / noted.name)
    except (KdpipeError, OSError):
        return None


def _unpacked(path: Path) -> Path:
    """Return the store of an archive, unpacked into the cache."""
    if not path.exists():
        raise StoreNotFoundError(f"{path} does not exist.")
    status = path.stat()
    key = digest_bytes(f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    target = _folder(key) / f"{path.name.removesuffix('.zip').removesuffix('.tar').removesuffix('.zarr')}.zarr"
    with _writing(target):
        _prepare(target)
        with _alone(target.parent):
            if not target.exists():
                archive.unpack(path, target)
        _use(target.parent)
    caching.prune(caching.limit_bytes(), keep=target.parent)
    return target


def _prepare(path: Path) -> None:
    """Make the folder of a cached store, for this user alone."""
    caching.prepare(path.parent / "lock")
    if not (path.parent / "lock").exists():
        os.close(durable.open_beside(path.parent / "lock"))
    caching.prepare(_note_of(""))


def _use(folder: Path) -> None:
    """Keep a cached store from being removed while this process lives, and note that it is used."""
    lock = folder / "lock"
    with suppress(OSError):
        if folder not in _held:
            descriptor = durable.open_beside(lock)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _held[folder] = descriptor
        os.utime(lock)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of the process that adds files to a cached store; wait for another that does."""
    descriptor = durable.open_beside(folder / "fetching")
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Report that the cache cannot be written."""
    try:
        with durable.writing(path, kept="what has arrived is kept"):
            yield
    except UnwritableError as error:
        raise UnwritableError(f"{error} Stores from a URL are kept in the cache: set KDPIPE_CACHE.") from None
