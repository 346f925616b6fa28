"""Licenses as SPDX expressions, the form that dataset hubs and catalogs read."""

from __future__ import annotations

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from kdpipe.errors import ParamsError, did_you_mean

_MOST = 512
_COMMON = (
    *("CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0"),
    *("Apache-2.0", "MIT", "BSD-3-Clause", "ODbL-1.0", "ODC-By-1.0", "PDDL-1.0", "CDLA-Permissive-2.0"),
)


def spdx(text: str) -> str:
    """Return an SPDX license expression in its canonical spelling, such as ``CC-BY-4.0`` for ``cc-by-4.0``.

    Raises:
        ParamsError: it is none; the message has the nearest of the usual ones.
    """
    try:
        if len(text) > _MOST:
            raise InvalidLicenseExpression
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        near = did_you_mean("-".join(text[:_MOST].split()), _COMMON) or "."
        raise ParamsError(
            f"'{text[:80]}' is no SPDX license{near} Usual ones: {', '.join(_COMMON[:5])}; terms of your own: "
            "LicenseRef-NAME."
        ) from None
