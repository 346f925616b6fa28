"""Losses on signals of sequences: the hidden states of tokens, and the attention of heads.

The teacher's signals are 0 at padding, which therefore counts for nothing; see ``kdpipe.models.signals``.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdpipe.distil.losses.contract import layer_loss
from kdpipe.errors import UnsupportedLossError
from kdpipe.models.signals import HEADS, HIDDEN, Shape


def _per_token(student: Shape, teacher: Shape) -> nn.Module:
    """Return a linear map of the student's channels to the teacher's, at each token.

    Raises:
        UnsupportedLossError: they differ in the number of tokens.
    """
    if student[0] != teacher[0]:
        raise UnsupportedLossError(
            f"the loss hidden compares tokens one by one: the student's layer has {student[0]}, the teacher's "
            f"{teacher[0]}. Name layers with as many tokens."
        )
    return nn.Linear(student[1], teacher[1])


def _same_heads(student: Shape, teacher: Shape) -> nn.Module:
    """Return a projection without parameters.

    Raises:
        UnsupportedLossError: they differ in heads or tokens.
    """
    if student != teacher:
        raise UnsupportedLossError(
            f"the loss heads compares heads one by one: the student's layer has {student[0]} of {student[1]} tokens, "
            f"the teacher's {teacher[0]} of {teacher[1]}. Give the student as many heads."
        )
    return nn.Identity()


@layer_loss("hidden", kind=HIDDEN, weight=1.0, projection=_per_token, source="Jiao et al. 2020 (TinyBERT)")
def hidden(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the teacher's hidden states and a learned linear map of the student's, per token.

    States are ``(n, tokens, channels)``, the student's after its projection. The mean is over all tokens of the batch
    that are no padding, and channels.

    Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding" (2020), equation 8 (hidden states) and 9
    (embeddings); there the map has no bias.
    """
    present = (teacher != 0).any(dim=2)
    squared = (student - teacher).square().mean(dim=2) * present
    return squared.sum() / present.sum().clamp(min=1)


@layer_loss("heads", kind=HEADS, weight=1.0, projection=_same_heads, source="Jiao et al. 2020 (TinyBERT)")
def heads(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the attention of each head of student and teacher, per token that attends.

    Attention is ``(n, heads, tokens, tokens)``, a row for each token that attends. For each row that is no padding the
    squares are summed over the tokens attended to; the mean is over rows and heads.

    Jiao et al., "TinyBERT" (2020), equation 7, which compares the values before the softmax and takes the mean of a
    row, where the sum does not shrink with the length. ``transformers`` returns attention after the softmax.
    """
    present = (teacher != 0).any(dim=3)
    squared = (student - teacher).square().sum(dim=3) * present
    return squared.sum() / present.sum().clamp(min=1)
