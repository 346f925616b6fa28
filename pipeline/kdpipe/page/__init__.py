"""Self-contained HTML pages: style and scripts are in them, they load nothing, and all text is escaped.

A package's template extends ``base.html``, which has the head, and fills its block ``main``. Its style comes after
``base.css``, which has colors, text and tables.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(
    package: str,
    template: str,
    *,
    title: str,
    version: str,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    images: bool = False,
    **content: Any,
) -> str:
    """Return a page of a package's ``templates``; with ``images`` it may have some, which are within it.

    ``styles`` and ``scripts`` are files there, or here: ``sort.js`` lets people sort the tables of the class
    ``sortable``. ``version`` is that of kdpipe, and ``content`` is what the template names.
    """
    environment = _environment(package)
    style, script = _joined(environment, ("base.css", *styles)), _joined(environment, scripts)
    return environment.get_template(template).render(
        title=title,
        style=style,
        script=script,
        policy=_policy(style=style, script=script, images=images),
        version=version,
        **content,
    )


@cache
def _environment(package: str) -> Environment:
    """Return the environment of a package's templates, which escapes all text and refuses undefined names."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("kdpipe.page")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _joined(environment: Environment, names: Iterable[str]) -> str:
    """Return files of the templates as they are, one after the other."""
    assert environment.loader is not None
    return "\n".join(environment.loader.get_source(environment, name)[0].strip() for name in names)


def _policy(*, style: str, script: str, images: bool) -> str:
    """Return the content security policy of a page with this style and script, and with images within it."""
    shown = "img-src data:; " if images else ""
    return f"default-src 'none'; {shown}style-src '{_hash(style)}'; script-src '{_hash(script)}'"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
