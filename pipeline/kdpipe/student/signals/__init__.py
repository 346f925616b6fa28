"""Losses on signals: what layers of the teacher show, kept in a store beside its logits (docs/SIGNALS.md).

They have another contract than those of ``kdpipe.student.losses``, which see logits alone, and are added to them.
"""

from kdpipe.student.signals.attention import AttentionTransfer
from kdpipe.student.signals.base import NoLogits, SignalLoss
from kdpipe.student.signals.features import FeatureRegression
from kdpipe.student.signals.rkd import RKD
from kdpipe.student.signals.terms import SignalTerm, SignalTerms, settle
from kdpipe.student.signals.written import SIGNAL_LOSSES, Wanted, split

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
