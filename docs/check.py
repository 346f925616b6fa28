"""Checks of the built site that Zensical's strict mode does not make.

    python docs/check.py

fails where a page is not in the navigation or the navigation names none, and where a page would load something from the
network.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_LOADED = re.compile(
    r"""<(?:script|img|iframe)\b[^>]*\bsrc=["']?(https?:[^"'\s>]+)|<link\b[^>]*\bhref=["']?(https?:[^"'\s>]+)"""
)


def main() -> None:
    """Print every fault; exit with 1 if there is any."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    faults = [*_navigation(project), *_network(ROOT / project["site_dir"])]
    if faults:
        sys.exit("\n".join(faults))


def _navigation(project: dict[str, Any]) -> Iterator[str]:
    folder = ROOT / project["docs_dir"]
    named = list(_pages(project["nav"]))
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    yield from (f"zensical.toml: the navigation names {page}, which does not exist" for page in set(named) - pages)
    yield from (f"{folder.name}/{page}: the navigation in zensical.toml lacks it" for page in pages - set(named))
    yield from (f"zensical.toml: the navigation names {page} twice" for page in set(named) if named.count(page) > 1)


def _pages(nav: list[dict[str, Any]]) -> Iterator[str]:
    for entry in nav:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from _pages(target)


def _network(site: Path) -> Iterator[str]:
    for page in sorted(site.rglob("*.html")):
        for script, link in _LOADED.findall(page.read_text(encoding="utf-8")):
            yield f"{page.relative_to(ROOT)}: loads {script or link} from the network"


if __name__ == "__main__":
    main()
