"""Places of shared stores on real servers, each started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests import servers
from tests.servers import Place

KINDS = ("disk", "web", "bucket", "host")


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
