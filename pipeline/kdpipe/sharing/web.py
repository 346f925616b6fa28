"""Files of a web server: read by GET with ranges; written by PUT where the server takes that (WebDAV)."""

from __future__ import annotations

import base64
import http.client
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from kdpipe.errors import ParamsError, RemoteChangedError, RemoteError, RemoteExistsError, RemoteMissingError
from kdpipe.printable import printable
from kdpipe.sharing.place import BLOCK, Expected, PassingError, Stream, timeout

_OVERLOADED = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Web:
    """Files below a URL."""

    base: str
    """The URL without credentials, query and trailing slash."""
    query: str = field(repr=False)
    """Sent with each request; it may hold a token, so it is never printed."""
    authorization: str | None = field(repr=False)
    """The header of that name, from the URL."""

    @classmethod
    def of(cls, url: str) -> Web:
        """Parse a URL, which may hold ``user:password@`` and a query.

        Raises:
            ParamsError: it has characters that no URL has.
        """
        parts = urlsplit(url)
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ParamsError(f"the URL {parts.scheme}://{printable(parts.hostname)}… has characters that no URL has.")
        host = parts.netloc.rpartition("@")[2]
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")), parts.query, authorization)

    def describe(self, name: str = "") -> str:
        """Return the URL."""
        return f"{self.base}/{name}" if name else self.base

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, by HEAD."""
        try:
            with self._response("HEAD", name) as response:
                return _length(response)
        except RemoteMissingError:
            return None

    def open(self, name: str, start: int) -> Stream:
        """Open a file, by a range request where ``start`` is not 0."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        response = self._request("GET", name, headers=headers)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            raise RemoteError(f"{self.describe(name)}: the server sends it compressed, expected the plain file.")
        length = _length(response)
        begin = _begin(response) if response.status == 206 else 0
        if begin is None or begin > start:
            response.close()
            raise RemoteError(f"{self.describe(name)}: the server sends another part of the file than was asked for.")
        total = None if length is None else begin + length
        return Stream(begin, total, response.headers.get("ETag"), self._blocks(name, response))

    def put(self, name: str, content: Path | bytes, expected: Expected | None) -> None:
        """Write a file by PUT, and the folders above it by MKCOL where the server asks for them."""
        headers = {}
        if expected is not None:
            headers = {"If-None-Match": "*"} if expected.version is None else {"If-Match": expected.version}
            if expected.version is None and self.size(name) is not None:
                raise RemoteExistsError(f"{self.describe(name)} exists already.")
            if expected.version is not None and not expected.version.startswith(('"', "W/")):
                headers = {}  # the server names no versions
        try:
            self._put(name, content, headers)
        except _NoFolderError:
            self._make_folders(name)
            self._put(name, content, headers)
        except RemoteChangedError:
            if expected is not None and expected.version is None:
                raise RemoteExistsError(f"{self.describe(name)} exists already.") from None
            raise

    def copy(self, name: str, new_name: str) -> bool:
        """Copy a file by WebDAV's COPY, where the server has it."""
        headers = {"Destination": self._url(new_name), "Overwrite": "T"}
        try:
            try:
                self._request("COPY", name, headers=headers).close()
            except _NoFolderError:
                self._make_folders(new_name)
                self._request("COPY", name, headers=headers).close()
        except PassingError:
            raise
        except RemoteError:
            return False
        return True

    def names(self, prefix: str) -> dict[str, int]:
        """Refuse: web servers list no files that a program can rely on."""
        raise RemoteError(f"{self.describe(prefix)}: files on a web server cannot be listed.")

    def _put(self, name: str, content: Path | bytes, headers: dict[str, str]) -> None:
        if isinstance(content, bytes):
            self._request("PUT", name, headers=headers, body=content, size=len(content)).close()
        else:
            with content.open("rb") as file:
                self._request("PUT", name, headers=headers, body=file, size=content.stat().st_size).close()

    def _make_folders(self, name: str) -> None:
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            try:
                self._request("MKCOL", "/".join(parts[:depth]) + "/").close()
            except PassingError:
                raise
            except RemoteError:
                continue  # it exists; else the PUT that follows fails, and says why

    def _url(self, name: str) -> str:
        url = f"{self.base}/{quote(name)}"
        return f"{url}?{self.query}" if self.query else url

    def _request(
        self,
        method: str,
        name: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | IO[bytes] | None = None,
        size: int | None = None,
    ) -> http.client.HTTPResponse:
        every = {"User-Agent": "kdpipe", "Accept-Encoding": "identity"} | (headers or {})
        if size is not None:
            every |= {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        if self.authorization is not None:
            every["Authorization"] = self.authorization
        request = urllib.request.Request(self._url(name), data=body, headers=every, method=method)
        address = self.describe(name)
        with _translated(address, method):
            # A second later than those who watch what arrives, who say how long the server was silent.
            response = _opener(address).open(request, timeout=timeout() + 1)
        if not isinstance(response, http.client.HTTPResponse):
            raise RemoteError(f"{address}: the server gives no answer of HTTP.")
        return response

    @contextmanager
    def _response(self, method: str, name: str) -> Iterator[http.client.HTTPResponse]:
        response = self._request(method, name)
        try:
            yield response
        finally:
            response.close()

    def _blocks(self, name: str, response: http.client.HTTPResponse) -> Iterator[bytes]:
        with response, _translated(self.describe(name), "GET"):
            while block := response.read1(BLOCK):
                yield block


class _NoFolderError(RemoteError):
    """The folder of a file is not there."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects to the same scheme; credentials go to no other host."""

    max_redirections = max_repeats = 5

    def __init__(self, address: str) -> None:
        """Keep the address, for messages."""
        self._address = address

    def http_error_302(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any) -> Any:
        """Follow a redirect; close its answer if it cannot be followed."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except BaseException:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request that follows, or raise RemoteError."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme != old.scheme:
            raise RemoteError(
                f"{self._address}: the server redirects from {old.scheme} to {printable(new.scheme)[:20]}, which is "
                "not followed. Check the URL."
            )
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        if followed is not None and new.netloc != old.netloc:
            followed.remove_header("Authorization")
        return followed


def _opener(address: str) -> urllib.request.OpenerDirector:
    """Return what opens URLs of http and https, and of no other scheme."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(address),
    ):
        opener.add_handler(handler)
    return opener


@contextmanager
def _translated(address: str, method: str) -> Iterator[None]:
    """Raise the errors of urllib as kdpipe's, in one line without what the server wrote."""
    try:
        yield
    except HTTPError as failure:
        failure.close()
        raise _refusal(failure.code, address, method) from None
    except ssl.SSLError as failure:
        raise RemoteError(f"{address}: {printable(failure.reason)}. Check the certificate of the server.") from None
    except URLError as failure:
        if isinstance(failure.reason, ssl.SSLError):
            why = printable(getattr(failure.reason, "verify_message", "") or failure.reason.reason)
            raise RemoteError(f"{address}: {why}. Check the certificate of the server.") from None
        raise PassingError(f"{address}: {printable(failure.reason)[:200]}. Check the URL and the network.") from None
    except ValueError:
        raise RemoteError(f"{address}: the server's answer is malformed. Check the URL.") from None
    except (OSError, http.client.HTTPException) as failure:
        why = printable(failure)[:200] or type(failure).__name__
        raise PassingError(f"{address}: the connection failed ({why}).") from None


def _refusal(code: int, address: str, method: str) -> RemoteError:
    if code in (404, 410) and method in ("GET", "HEAD"):
        return RemoteMissingError(f"{address} does not exist ({code}).")
    if code in (401, 403, 407):
        return RemoteError(
            f"{address}: the server refuses access ({code}). Check the credentials, and what they allow."
        )
    if (code in (404, 409) and method in ("PUT", "COPY")) or (code == 500 and method == "COPY"):  # 500: nginx
        return _NoFolderError(f"{address}: the server has no folder for it ({code}).")
    if code == 412:
        return RemoteChangedError(f"{address} was changed by another process meanwhile.")
    if code in (405, 501) and method == "PUT":
        return RemoteError(f"{address}: the server takes no uploads ({code}). Publish to a folder, a bucket or by ssh.")
    if code in _OVERLOADED:
        return PassingError(f"{address}: the server fails ({code}). Run this again later.")
    if 300 <= code < 400:
        return RemoteError(
            f"{address}: the server redirects to no address that is followed ({code}): to another scheme, or in a "
            "circle. Check the URL."
        )
    return RemoteError(f"{address}: the server answers {method} with {code}. Check the URL.")


def _length(response: http.client.HTTPResponse) -> int | None:
    written = response.headers.get("Content-Length", "")
    return int(written) if written.isascii() and written.isdecimal() and len(written) < 20 else None


def _begin(response: http.client.HTTPResponse) -> int | None:
    """Return the first byte of a part that a server sends."""
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isascii() and first.isdecimal() and len(first) < 20 else None
