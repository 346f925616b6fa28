"""Processes that write one store together, on one machine or on several that share its folder.

Each holds the store's lock, shared with the others, and leases the shards that it computes: a locked byte of
``NAME.zarr.leases`` stands for a shard. The operating system takes the locks of a process that dies, so that another
computes what it has begun. One process at a time has the lock alone, to make the empty store or to seal the full one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from kdpipe import durable
from kdpipe.durable import HeldError
from kdpipe.errors import StoreLockedError
from kdpipe.store.ledger import Ledger

PATIENCE = 900.0
"""Seconds without a sign of life of any process after which waiting for the others ends."""
_POLL, _SLOWEST_POLL = 0.05, 1.0
"""Seconds between two looks at the others: at first, and later."""
_APPEARS = 120.0
"""Seconds until the store that another process has made must be seen."""
_REFUSED = 8
"""Looks at the lock of a process that shares it with none, before this one is refused."""
_TOUCH = 5.0
"""Seconds between two signs of life."""
_TOGETHER = "together"
"""Second word in the lock of a process that shares it."""

T = TypeVar("T")


class Membership:
    """This process's locks on a store that several write."""

    def __init__(self, store: Path, *, patience: float = PATIENCE) -> None:
        """Take the lock, alone if no other process has it, else shared.

        Raises:
            StoreLockedError: a process that shares it with none has it; or one has it alone for longer than
                ``patience`` seconds, without a sign of life.
            UnwritableStoreError: the folder is read-only.
        """
        self._store, self._patience = store, patience
        self._path = store.with_name(store.name + ".lock")
        self.token = f"{_host()}-{os.getpid()}-{secrets.token_hex(2)}"
        """Name of this process's ledger."""
        self._ledger = Ledger(store, token=self.token)
        self._touched = 0.0
        self._leases: int | None = None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.alone = True
        """Whether no other process has the lock."""
        self._descriptor: int | None = None
        self._enter()

    def __enter__(self) -> Self:
        """Return the membership."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Give back all locks, and remove the lock's file if this was the last process."""
        if self._leases is not None:
            os.close(self._leases)
        if self._descriptor is None:
            return
        with suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(self._descriptor), self._path.lstat()):
                self._path.unlink()
        self._drop()

    def prepare(self, make: Callable[[], None], made: Callable[[], bool]) -> None:
        """Call ``make`` if this is the first process, and then let the others in; else wait until it is ``made``.

        Where the first process has died before, another one is the first.
        """
        since = time.monotonic()
        while True:
            if self.alone:
                make()
                self.share()
            # Over a network, a new file may be seen a minute later.
            if made() or time.monotonic() - since > _APPEARS:
                return
            self._drop()
            time.sleep(_POLL)
            self._enter()

    def share(self) -> None:
        """Let others in, once the empty store is made."""
        self._drop()
        self._descriptor = self._wait_for(shared=True)
        self.alone = False

    def join(self) -> None:
        """Begin to work on shards: have a ledger, and a file of leases."""
        self._ledger.append([])
        self._leases = durable.open_beside(leases_of(self._store))

    def separate(self) -> None:
        """Wait for the others to end, and take the lock alone.

        Raises:
            StoreLockedError: some process shows no sign of life, and does not end.
        """
        self._drop()
        self._descriptor = self._wait_for(shared=False)
        self.alone = True

    def lease(self, shard: int) -> bool:
        """Lease the shard of this number; return whether no other process has it."""
        assert self._leases is not None
        try:
            fcntl.lockf(self._leases, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def release(self, shard: int) -> None:
        """Give the lease of a shard back."""
        assert self._leases is not None
        fcntl.lockf(self._leases, fcntl.LOCK_UN, 1, shard)

    def touch(self) -> None:
        """Give a sign of life, which is cheap to do often."""
        now = time.monotonic()
        if now - self._touched >= _TOUCH:
            self._touched = now
            self._ledger.touch()
            if self.alone and self._descriptor is not None:
                os.utime(self._descriptor)

    def wait(self, done: Callable[[], T | None], what: str) -> T:
        """Call ``done`` until it returns something; ``what`` says what for.

        Raises:
            StoreLockedError: no process has given a sign of life for the time that this one has patience.
        """
        seen, since = self._signs(), time.monotonic()
        pause = _POLL
        while (result := done()) is None:
            time.sleep(pause)
            pause = min(1.2 * pause, _SLOWEST_POLL)
            signs = self._signs()
            if signs != seen:
                seen, since = signs, time.monotonic()
            elif time.monotonic() - since > self._patience:
                raise StoreLockedError(
                    f"{self._store} cannot be finished: waited {self._patience:.0f} s for {what}, without a sign of "
                    f"life.{self._names(seen)} End what hangs, and run this again: finished shards are kept."
                )
        return result

    def _enter(self) -> None:
        try:
            self._descriptor = durable.take_lock(self._path)
            durable.write_holder(self._descriptor, f"{os.getpid()} {_TOGETHER}")
            self.alone = True
        except HeldError:
            self._descriptor = self._wait_for(shared=True)
            self.alone = False

    def _drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _wait_for(self, *, shared: bool) -> int:
        refused = 0

        def take() -> int | None:
            nonlocal refused
            try:
                return durable.take_lock(self._path, shared=shared)
            except HeldError as held:
                # A process that has just taken the lock may not have written its name over that of a dead one.
                refused = 0 if held.holder.endswith(_TOGETHER) else refused + 1
                if refused > _REFUSED:
                    raise StoreLockedError(
                        f"{self._store} is being written by process {held.holder[:20]}. Wait for it, or stop it, and "
                        "run this again."
                    ) from None
                return None

        descriptor = self.wait(take, "another process to prepare or to seal it" if shared else "the others to end")
        if not shared:
            durable.write_holder(descriptor, f"{os.getpid()} {_TOGETHER}")
        return descriptor

    def _signs(self) -> dict[str, int]:
        """Return when each process last gave a sign of life, by the clock of the file system."""
        found = {}
        for path in [self._path, *self._ledger.of_processes()]:
            with suppress(FileNotFoundError):
                found[path.name] = path.lstat().st_mtime_ns
        return found

    def _names(self, signs: dict[str, int]) -> str:
        """Return which other processes have ledgers, without those of this machine that have ended."""
        tokens = [name.removeprefix(f"{self._store.name}.ledger.") for name in signs if name != self._path.name]
        names = [token.rpartition("-")[0] for token in tokens if token != self.token]
        others = [name for name in names if not _has_ended(name)]
        return f" The others (host-process): {', '.join(others[:8])}." if others else ""


def _has_ended(name: str) -> bool:
    host, _, process = name.rpartition("-")
    return host == _host() and process.isdecimal() and not Path(f"/proc/{process}").exists() and Path("/proc").exists()


def _host() -> str:
    return re.sub("[^A-Za-z0-9-]", "", socket.gethostname())[:32]


def leases_of(store: Path) -> Path:
    """Return the file whose bytes stand for leased shards."""
    return store.with_name(store.name + ".leases")
