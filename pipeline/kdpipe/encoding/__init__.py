"""Logits to codes and back, and what that costs.

``get("sqrtp8@4")`` returns an encoding by name, ``from_description`` the one that a manifest describes,
``choose`` the smallest that stays within a budget of KL; ``Fidelity`` measures what a whole store lost.
"""

from kdpipe.encoding.base import LZ4, ZSTD, Compression, Encoded, Encoding
from kdpipe.encoding.chooser import Choice, Measured, choose
from kdpipe.encoding.dense import Dense
from kdpipe.encoding.fidelity import Fidelity, kl
from kdpipe.encoding.names import FORMS, from_description, get
from kdpipe.encoding.sqrtp import SqrtP
from kdpipe.encoding.tailp import TailP
from kdpipe.encoding.topk import TopK

__all__ = [
    "FORMS",
    "LZ4",
    "ZSTD",
    "Choice",
    "Compression",
    "Dense",
    "Encoded",
    "Encoding",
    "Fidelity",
    "Measured",
    "SqrtP",
    "TailP",
    "TopK",
    "choose",
    "from_description",
    "get",
    "kl",
]
