"""A small dataset of tokens, one of a table, and networks for them; a module that commands import by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

TOKENS, LENGTH = 24, 10


class Samples:
    """A sequence of (item, label) that lists its labels and keys."""

    def __init__(self, split: str, items: list[Any], labels: np.ndarray, classes: list[str]) -> None:
        self.items, self.targets, self.classes = items, labels, classes
        self.keys = [f"{split}/{index}" for index in range(len(items))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.items[index], int(self.targets[index])


def tokens(split: str) -> Samples:
    """Sentences of 4 to 10 tokens, padded with 0; the class is whether token 7 or 8 is there."""
    random = np.random.default_rng(["train", "test"].index(split))
    count = 160 if split == "train" else 60
    ids = random.integers(2, TOKENS, (count, LENGTH))
    mask = (np.arange(LENGTH) < random.integers(4, LENGTH + 1, count)[:, None]).astype(np.int64)
    ids = ids * mask
    items = [{"input_ids": ids[index], "attention_mask": mask[index]} for index in range(count)]
    return Samples(split, items, np.isin(ids, (7, 8)).any(axis=1).astype(np.int64), ["without", "with"])


def table(split: str) -> Samples:
    """Rows of five numbers; three classes by the first two."""
    random = np.random.default_rng(["train", "test"].index(split))
    rows = random.normal(size=(120 if split == "train" else 45, 5)).astype(np.float32)
    labels = (rows[:, 0] > 0).astype(np.int64) + (rows[:, 1] > 0.5)
    return Samples(split, [torch.from_numpy(row) for row in rows], labels, ["low", "middle", "high"])


class Reader(nn.Module):
    """Self-attention over tokens, and a classifier on their mean; returns an object with logits."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, width)
        self.attention = Attention(width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        states, _ = self.attention(self.embedding(input_ids), attention_mask)
        mask = attention_mask[..., None].float()
        return Output(self.head((states * mask).sum(1) / mask.sum(1)))


class Attention(nn.Module):
    """Two heads of attention; returns the states and the weights of each head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 3 * width)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = (
            part.unflatten(2, (2, -1)).transpose(1, 2) for part in self.project(states).chunk(3, dim=2)
        )
        scores = query @ key.transpose(2, 3) / key.shape[-1] ** 0.5
        weights = scores.masked_fill(mask[:, None, None] == 0, -1e4).softmax(dim=3)
        return states + torch.relu(weights @ value).transpose(1, 2).flatten(2), weights


class Output:
    """An output as those of transformers."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def teacher(classes: int) -> nn.Module:
    """A reader of 32 channels."""
    return Reader(classes, 32)


def student(classes: int) -> nn.Module:
    """A reader of 8 channels."""
    return Reader(classes, 8)


def mlp(classes: int) -> nn.Module:
    """A perceptron for the table."""
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, classes))


def short_vocabulary(classes: int) -> nn.Module:
    """A reader that does not know the last tokens of the data."""
    reader = Reader(classes, 8)
    reader.embedding = nn.Embedding(TOKENS // 2, 8)
    return reader
