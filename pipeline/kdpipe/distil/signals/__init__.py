"""Losses on signals: what layers of the teacher show, kept in a store beside its logits (docs/guides/signals.md).

They have another contract than those of ``kdpipe.distil.losses``, which see logits alone, and are added to them.
"""

from kdpipe.distil.signals.attention import AttentionTransfer
from kdpipe.distil.signals.base import NoLogits, SignalLoss
from kdpipe.distil.signals.features import FeatureRegression
from kdpipe.distil.signals.rkd import RKD
from kdpipe.distil.signals.terms import SignalTerm, SignalTerms, settle
from kdpipe.distil.signals.written import SIGNAL_LOSSES, Wanted, split

__all__ = [
    "RKD",
    "SIGNAL_LOSSES",
    "AttentionTransfer",
    "FeatureRegression",
    "NoLogits",
    "SignalLoss",
    "SignalTerm",
    "SignalTerms",
    "Wanted",
    "settle",
    "split",
]
