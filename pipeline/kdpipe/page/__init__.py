"""Self-contained HTML pages: style and scripts are in them, they load nothing, and all text is escaped."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(package: str) -> Environment:
    """Return the environment of a package's ``templates``, which escapes all text and refuses undefined names."""
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def source(package: str, name: str) -> str:
    """Return a style or script of a package's ``templates``."""
    return resources.files(package).joinpath("templates", name).read_text(encoding="utf-8").strip()


def sorting() -> str:
    """Return the script that lets people sort the tables of the class ``sortable``."""
    return source("kdpipe.page", "sort.js")


def policy(*, style: str, script: str, images: bool = False) -> str:
    """Return the content security policy of a page with this style and script, and images within it."""
    shown = "img-src data:; " if images else ""
    return f"default-src 'none'; {shown}style-src '{_hash(style)}'; script-src '{_hash(script)}'"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
