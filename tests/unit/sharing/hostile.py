"""A web server that misbehaves: each path answers with the bytes, and the pauses, that a test gives it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

Part = bytes | float
"""Bytes that are sent, or seconds of silence."""
Answer = Callable[[], Iterator[Part]]


@dataclass
class Hostile:
    """A running server."""

    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    """What each path answers: one answer for all requests."""
    requests: list[str] = field(default_factory=list)
    """The requests, with their headers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, *parts: Part) -> None:
        """Answer a path with the same parts each time."""
        self.answers[f"/{path}"] = lambda: iter(parts)

    def answer_in_turn(self, path: str, *answers: Sequence[Part]) -> None:
        """Answer a path with the next parts each time, and the last ones from then on."""
        left = list(answers)
        self.answers[f"/{path}"] = lambda: iter(left.pop(0) if len(left) > 1 else left[0])


def head(status: str = "200 OK", **headers: object) -> bytes:
    """Return the head of an answer; ``Content_Length`` stands for Content-Length."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *lines, "", ""]).encode()


def whole(content: bytes) -> list[Part]:
    """Return a correct answer."""
    return [head(Content_Length=len(content)), content]


@contextmanager
def hostile() -> Iterator[Hostile]:
    """Serve on a free port until the end of the block."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Hostile(listener.getsockname()[1])
    ended = threading.Event()
    threading.Thread(target=_serve, args=(listener, server, ended), daemon=True).start()
    try:
        yield server
    finally:
        ended.set()
        listener.close()


def _serve(listener: socket.socket, server: Hostile, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_handle, args=(connection, server, ended), daemon=True).start()


def _handle(connection: socket.socket, server: Hostile, ended: threading.Event) -> None:
    with connection, contextlib.suppress(OSError):
        request = b""
        while b"\r\n\r\n" not in request:
            block = connection.recv(65536)
            if not block:
                return
            request += block
        server.requests.append(request.decode())
        path = request.split(b" ")[1].decode().partition("?")[0]
        answer = server.answers.get(path, lambda: iter([head("404 Not Found", Content_Length=0)]))
        for part in answer():
            if ended.is_set():
                return
            if isinstance(part, float):
                time.sleep(part)
            else:
                connection.sendall(part)
