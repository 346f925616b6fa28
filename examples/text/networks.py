"""A BERT-like teacher and a TinyBERT-like student, as ``networks:teacher`` and ``networks:student``.

Both are built from configurations of transformers, without pretrained weights.
"""

from reviews import PAD, TOKENS, VOCABULARY
from torch import nn
from transformers import BertConfig, BertForSequenceClassification


def teacher(num_classes: int) -> nn.Module:
    """Return four layers of 64 channels."""
    return _bert(num_classes, layers=4, channels=64, heads=4, dropout=0.3)


def student(num_classes: int) -> nn.Module:
    """Return two layers of 16 channels."""
    return _bert(num_classes, layers=2, channels=16, heads=4, dropout=0.1)


def _bert(num_classes: int, *, layers: int, channels: int, heads: int, dropout: float) -> nn.Module:
    config = BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=TOKENS,
        num_hidden_layers=layers,
        hidden_size=channels,
        num_attention_heads=heads,
        intermediate_size=4 * channels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,  # it would be in the attention matrices that are returned
        num_labels=num_classes,
        pad_token_id=PAD,
        attn_implementation="eager",  # the others do not return attention matrices
    )
    return BertForSequenceClassification(config)
