"""Code that files name: refused unless the user trusts it.

A name such as ``package.module:function`` runs code. Typed on the command line it is the user's word; read from a file
it is a stranger's. Importing this does not import torch.
"""

from __future__ import annotations

from kdpipe.errors import ModelError, UntrustedCodeError
from kdpipe.models import registry


def runs_code(name: str) -> bool:
    """Return whether building the model ``name`` imports a module that the name gives."""
    try:
        kind, rest = registry.resolve(name)
        while kind.inner is not None:
            kind, rest = registry.resolve(kind.inner(rest))
    except ModelError:
        return False
    return kind.foreign and not kind.prefixed


def refuse_code(name: str, *, origin: object, trust_code: bool) -> None:
    """Refuse a model that the file ``origin`` names and that runs code, unless the user trusts it.

    Raises:
        UntrustedCodeError: it runs code, and is not trusted.
    """
    if runs_code(name) and not trust_code:
        raise UntrustedCodeError(
            f"{origin} says its network is made by {name}: pass --trust-code to run that code if you trust it."
        )
