"""The address of a store version at a shared place: ``URL/NAME@VERSION``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kdpipe.errors import ParamsError
from kdpipe.settings import without_password

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
"""Pattern of the names of stores at a URL."""
VERSION = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Pattern of versions: ``v1``, ``v2`` and so on, or any short word; neither can leave its folder."""

_ADDRESS = re.compile(r"(?P<url>.*?)/(?P<name>[^/@]*)(?:@(?P<version>[^/@]*))?", re.DOTALL)
_COUNTED = re.compile(r"v([0-9]{1,18})")


@dataclass(frozen=True)
class Address:
    """A store at a shared place."""

    url: str = field(repr=False)
    """The place, without a slash at its end: a URL, which may hold a password or a token, or a folder."""
    name: str
    version: str | None
    """``None`` for the newest."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse ``URL/NAME`` or ``URL/NAME@VERSION``.

        Raises:
            ParamsError: there is no place, or the name or the version is malformed.
        """
        found, shown = _ADDRESS.fullmatch(text.rstrip("/")), without_password(text)
        if found is None or not found["url"].rstrip("/").removesuffix(":"):
            raise ParamsError(
                f"'{shown}' is no address of a store, expected URL/NAME@VERSION, such as /mnt/shared/cars@v1."
            )
        name, version = found["name"], found["version"]
        if re.fullmatch(NAME, name) is None:
            raise ParamsError(
                f"'{name.partition('?')[0]}' is no name of a shared store: 1 to 64 small letters, digits, dots, "
                f"hyphens and underscores, the first a letter or a digit, expected in URL/NAME@VERSION, got '{shown}'."
            )
        if version is not None and re.fullmatch(VERSION, version) is None:
            raise ParamsError(
                f"'{version.partition('?')[0]}' is no version: 1 to 64 letters, digits, dots, hyphens and underscores, "
                "the first a letter or a digit, such as v2."
            )
        return cls(found["url"].rstrip("/"), name, version)

    @property
    def folder(self) -> str:
        """The version's folder below the URL; raises ``ParamsError`` without a version."""
        if self.version is None:
            raise ParamsError(f"'{self}' has no version, expected {self.name}@VERSION, such as {self.name}@v1.")
        return f"{self.name}/{self.version}"

    @property
    def label(self) -> str:
        """``NAME@VERSION``, or ``NAME`` without a version."""
        return self.name if self.version is None else f"{self.name}@{self.version}"

    def __str__(self) -> str:
        """Return the address as it is written, without password."""
        return f"{without_password(self.url)}/{self.label}"


def version_order(version: str) -> tuple[int, int, str]:
    """Return a key that sorts versions: those that are words first, then ``v1``, ``v2``, ..., ``v10``."""
    counted = _COUNTED.fullmatch(version)
    return (1, int(counted[1]), version) if counted else (0, 0, version)
