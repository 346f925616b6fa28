"""Files in a bucket: S3 and what speaks like it, Google Cloud Storage, Azure; by the library ``obstore``.

Credentials and endpoints come from the environment, as the services' own tools have them: ``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME`` and so on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kdpipe.errors import ParamsError, RemoteChangedError, RemoteError, RemoteExistsError, RemoteMissingError
from kdpipe.printable import printable
from kdpipe.sharing.place import BLOCK, Expected, PassingError, Stream, Version, timeout

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_ENDPOINT")


@dataclass(frozen=True)
class Bucket:
    """Objects below a prefix of a bucket."""

    address: str
    """The URL, which holds no credentials."""
    store: Any
    """A store of ``obstore``."""

    @classmethod
    def of(cls, url: str) -> Bucket:
        """Connect to ``s3://BUCKET/PREFIX``, ``gs://…`` or ``az://CONTAINER/…``.

        Raises:
            ParamsError: the URL holds credentials or a query.
            RemoteError: ``obstore`` is not installed, or refuses the settings in the environment.
        """
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise ParamsError(
                f"{parts.scheme}://{printable(parts.hostname)}: credentials and options belong in the environment."
            )
        try:
            from obstore.store import from_url
        except ImportError:
            raise RemoteError(f"{parts.scheme}:// needs obstore: pip install 'kdpipe[remote]'") from None
        seconds = timedelta(seconds=timeout())
        plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
        client: Any = {"connect_timeout": seconds, "read_timeout": seconds, "timeout": timedelta(days=7)}
        if plain:
            client["allow_http"] = True
        address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        with _translated(address):
            # Retries are this package's, which knows what has arrived.
            store = from_url(address, client_options=client, retry_config={"max_retries": 0})
        return cls(printable(address), store)

    def describe(self, name: str = "") -> str:
        """Return the URL."""
        return f"{self.address}/{name}" if name else self.address

    def size(self, name: str) -> int | None:
        """Return the bytes of an object."""
        try:
            with _translated(self.describe(name)):
                return int(self.store.head(name)["size"])
        except RemoteMissingError:
            return None

    def open(self, name: str, start: int) -> Stream:
        """Open an object by a range request."""
        with _translated(self.describe(name)):
            got = self.store.get(name, options={"range": {"offset": start}} if start else None)
            meta = got.meta
        return Stream(start, int(meta["size"]), _version(meta), self._blocks(name, got))

    def put(self, name: str, content: Path | bytes, expected: Expected | None) -> None:
        """Put an object, compared with what is there by the service itself."""
        mode: Any = "overwrite"
        if expected is not None:
            mode = "create"
            if expected.version is not None:
                tag, _, version = expected.version.partition("\n")
                mode = {key: value for key, value in (("e_tag", tag), ("version", version)) if value}
        with _translated(self.describe(name)):
            self.store.put(name, content, mode=mode)

    def copy(self, name: str, new_name: str) -> bool:
        """Copy an object within its bucket."""
        try:
            with _translated(self.describe(name)):
                self.store.copy(name, new_name)
        except RemoteMissingError:
            return False
        return True

    def names(self, prefix: str) -> dict[str, int]:
        """List the objects."""
        with _translated(self.describe(prefix)):
            return {entry["path"]: int(entry["size"]) for page in self.store.list(prefix or None) for entry in page}

    def _blocks(self, name: str, got: Any) -> Iterator[bytes]:
        with _translated(self.describe(name)):
            for block in got.stream(min_chunk_size=BLOCK):
                yield bytes(block)


def _version(meta: Any) -> Version:
    return f"{meta.get('e_tag') or ''}\n{meta.get('version') or ''}"


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """Raise the errors of ``obstore`` as kdpipe's, in one line without signatures of requests."""
    from obstore import exceptions as theirs

    try:
        yield
    except (theirs.NotFoundError, FileNotFoundError):
        raise RemoteMissingError(f"{address} does not exist.") from None
    except theirs.AlreadyExistsError:
        raise RemoteExistsError(f"{address} exists already.") from None
    except theirs.PreconditionError:
        raise RemoteChangedError(f"{address} was changed by another process meanwhile.") from None
    except (theirs.PermissionDeniedError, theirs.UnauthenticatedError):
        raise RemoteError(
            f"{address}: the service refuses access. Check the credentials in the environment, and what they allow."
        ) from None
    except theirs.BaseError as failure:
        raise PassingError(f"{address}: {_reason(failure)}") from None


def _reason(failure: Exception) -> str:
    text = " ".join(str(failure).split("Debug source")[0].split())
    text = re.sub(r"\?[^\s\"')]*", "", text)  # signatures in queries
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return printable(text)[:300]
