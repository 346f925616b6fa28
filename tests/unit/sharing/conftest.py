"""Places of shared stores on real servers, each started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from tests import servers
from tests.servers import Place

KINDS = ("disk", "web", "bucket", "host")


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """Returns the server of a kind, which is started when it is first needed."""
    started: dict[str, Place] = {}
    with ExitStack() as stack:

        def place(kind: str) -> Place:
            if kind not in started:
                base = tmp_path_factory.mktemp(kind.replace(" ", "-"))
                start: dict[str, Callable[[Path], AbstractContextManager[Place]]] = {
                    "web": lambda base: servers.nginx(base, writable=True),
                    "read-only web": servers.nginx,
                    "bucket": servers.s3,
                    "host": servers.sshd,
                }
                if kind == "disk":
                    started[kind] = Place(str(base), folder=base)
                else:
                    started[kind] = stack.enter_context(start[kind](base))
            return started[kind]

        yield place


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest,
    places: Callable[[str], Place],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    """An empty folder on each kind of server, in the environment that its clients need."""
    found = places(request.param)
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    with servers.environment(found, monkeypatch):
        yield Place(f"{found.url}/{name}", found.env, None if found.folder is None else found.folder / name)
