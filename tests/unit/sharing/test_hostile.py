"""Bytes from a web server that is slow, endless, broken or malicious."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from kdpipe.errors import ParamsError, RemoteError, RemoteMissingError
from kdpipe.sharing.remote import connect
from tests.unit.sharing.hostile import Hostile, Part, head, hostile, whole

CONTENT = bytes(range(256)) * 4096
"""1 MiB."""
DIGEST = blake3(CONTENT).hexdigest(length=16)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    monkeypatch.setenv("KDPIPE_TIMEOUT", "0.3")
    with hostile() as running:
        yield running


def read(server: Hostile, limit: int = 1000) -> bytes:
    return connect(server.url).read("x", limit=limit)


def fetch(server: Hostile, folder: Path) -> Path:
    target = folder / "fetched"
    connect(server.url).fetch("x", target, size=len(CONTENT), digest=DIGEST)
    return target


def drip(start: bytes, piece: bytes) -> Iterator[Part]:
    yield start
    while True:
        yield piece
        yield 0.05


def test_a_server_that_is_silent_is_cut_off(server: Hostile) -> None:
    for parts in ([60.0], [head(Content_Length=10), b"123", 60.0]):
        server.answer("x", *parts)
        began = time.monotonic()
        with pytest.raises(RemoteError, match=r"silent for 0\.3 seconds"):
            read(server)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (head(Content_Length=900), b"1"),
        (head(Transfer_Encoding="chunked"), b"1\r\nx\r\n"),
        (head(Transfer_Encoding="chunked"), b"0"),
    ],
    ids=["status", "headers", "content", "chunks", "size of a chunk"],
)
def test_a_server_that_drips_is_cut_off(server: Hostile, start: bytes, piece: bytes) -> None:
    server.answers["/x"] = lambda: drip(start, piece)
    began = time.monotonic()
    with pytest.raises(RemoteError, match=r"silent|bytes per second|connection failed"):
        read(server)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("start", [head(), head(Transfer_Encoding="chunked"), head(Content_Length=10**15)])
def test_an_endless_answer_is_not_kept(server: Hostile, tmp_path: Path, start: bytes) -> None:
    block = b"10000\r\n" + b"x" * 65536 + b"\r\n" if b"chunked" in start else b"x" * 65536
    server.answers["/x"] = lambda: itertools.chain([start], itertools.repeat(block))
    tracemalloc.start()
    try:
        with pytest.raises(RemoteError, match="larger than 1,000 bytes"):
            read(server)
        with pytest.raises(RemoteError, match=r"expected 1,048,576|more than the expected"):
            fetch(server, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= len(CONTENT)


def test_a_connection_that_is_cut_is_resumed(server: Hostile, tmp_path: Path) -> None:
    cuts = [0, 300_000, 600_000, 900_000]
    server.answer_in_turn(
        "x",
        [head(Content_Length=len(CONTENT)), CONTENT[: cuts[1]]],
        *(
            [
                head(
                    "206 Partial Content",
                    Content_Length=len(CONTENT) - start,
                    Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}",
                ),
                CONTENT[start:stop],
            ]
            for start, stop in itertools.pairwise([*cuts[1:], len(CONTENT)])
        ),
    )
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    ranges = [line for each in server.requests for line in each.splitlines() if line.startswith("Range")]
    assert ranges == [f"Range: bytes={start}-" for start in cuts[1:]]


def test_a_server_without_ranges_sends_all_again(server: Hostile, tmp_path: Path) -> None:
    server.answer_in_turn("x", [head(Content_Length=len(CONTENT)), CONTENT[:500_000]], whole(CONTENT))
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_connection_that_is_always_cut_ends(server: Hostile, tmp_path: Path) -> None:
    server.answer("x", head(Content_Length=len(CONTENT)), CONTENT[:1000])
    with pytest.raises(RemoteError, match=r"closed the connection after 1,000 of 1,048,576 bytes.*Run this again"):
        fetch(server, tmp_path)
    assert not (tmp_path / "fetched").exists()


def test_another_part_than_was_asked_for_is_refused(server: Hostile, tmp_path: Path) -> None:
    (tmp_path / "fetched.part").write_bytes(CONTENT[:1000])
    server.answer("x", head("206 Partial Content", Content_Length=10, Content_Range="bytes 2000-2009/2010"), b"0" * 10)
    with pytest.raises(RemoteError, match="another part"):
        fetch(server, tmp_path)


def test_an_overloaded_server_is_asked_again(server: Hostile) -> None:
    server.answer_in_turn("x", [head("503 Service Unavailable", Content_Length=0)], whole(b"content"))
    assert read(server) == b"content"
    server.answer("x", head("503 Service Unavailable", Content_Length=0))
    with pytest.raises(RemoteError, match=r"the server fails \(503\)"):
        read(server)


@pytest.mark.parametrize("scheme", ["https", "ftp", "file", "data", "ssh"])
def test_a_redirect_to_another_scheme_is_not_followed(server: Hostile, scheme: str) -> None:
    server.answer("x", head("302 Found", Location=f"{scheme}://127.0.0.1:9/etc/passwd?token=secret", Content_Length=0))
    with pytest.raises(RemoteError, match=r"redirects .*followed") as refused:
        read(server)
    assert "secret" not in str(refused.value)


def test_redirects_end(server: Hostile) -> None:
    server.answer("x", head("302 Found", Location=f"{server.url}/x", Content_Length=0))
    with pytest.raises(RemoteError, match=r"in a circle"):
        read(server)
    server.answer("x", head("302 Found", Location="http://[", Content_Length=0))
    with pytest.raises(RemoteError, match=r"malformed"):
        read(server)
    assert len(server.requests) < 10


def test_credentials_go_to_no_other_host_and_into_no_message(server: Hostile) -> None:
    with hostile() as other:
        other.answer("y", *whole(b"content"))
        server.answer("x", head("302 Found", Location=f"{other.url}/y", Content_Length=0))
        url = server.url.replace("//", "//someone:secret@") + "?token=hidden"
        folder = connect(url)
        assert folder.read("x", limit=100) == b"content"
        assert "token=hidden" in server.requests[0]
        assert "Authorization: Basic" in server.requests[0]
        assert "Authorization" not in other.requests[0]
        assert "hidden" not in other.requests[0]
        server.answer("x", head("403 Forbidden", Content_Length=0))
        for name, kind in (("x", RemoteError), ("y", RemoteMissingError)):
            with pytest.raises(kind) as refused:
                folder.read(name, limit=100)
            assert server.url in str(refused.value)
            assert not {"secret", "hidden", "someone"} & set(str(refused.value).replace("@", " ").split())
            assert "secret" not in str(refused.value)
            assert "hidden" not in str(refused.value)


def test_compressed_content_is_refused(server: Hostile) -> None:
    server.answer("x", head(Content_Encoding="gzip", Content_Length=10), b"0" * 10)
    with pytest.raises(RemoteError, match="compressed"):
        read(server)


def test_what_a_server_writes_is_escaped_in_messages(server: Hostile) -> None:
    server.answer("x", b"HTTP/1.1 \x1b[2J\r\n\r\n")
    server.answer("y", b"\x1b[2Jno http\r\n\r\n")
    for name in ("x", "y"):
        with pytest.raises(RemoteError) as refused:
            connect(server.url).read(name, limit=10)
        assert str(refused.value).isprintable()


def test_no_server_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_TIMEOUT", "0.3")
    with hostile() as server:
        url = server.url
    with pytest.raises(RemoteError, match=r"refused.*Check the URL and the network"):
        connect(url).read("x", limit=10)
    monkeypatch.setenv("KDPIPE_TIMEOUT", "soon")
    with pytest.raises(ParamsError, match="KDPIPE_TIMEOUT is 'soon', expected seconds"):
        connect(url).read("x", limit=10)
