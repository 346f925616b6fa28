"""Logits to codes and back. ``get("fp16")`` returns an encoding by name."""

from kdpipe.encoding.base import Encoded, Encoding
from kdpipe.encoding.dense import Dense
from kdpipe.errors import ParamsError, did_you_mean

__all__ = ["ENCODINGS", "Dense", "Encoded", "Encoding", "get"]

ENCODINGS: dict[str, Encoding] = {"fp16": Dense(name="fp16", dtype="float16")}
"""Every encoding by the name that flags and manifests use."""


def get(name: str) -> Encoding:
    """Return the encoding called ``name``.

    Raises:
        ParamsError: there is none; the message names the nearest.
    """
    if name not in ENCODINGS:
        hint = did_you_mean(name, ENCODINGS) or "."
        raise ParamsError(f"unknown encoding '{name}'{hint} Known: {', '.join(ENCODINGS)}.")
    return ENCODINGS[name]
