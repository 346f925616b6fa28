"""Sentences of film reviews, positive or negative, as token ids: ``reviews:polarity``.

Reads ``positive.txt`` and ``negative.txt``, one sentence per line, from the folder that ``KDPIPE_SENTENCES`` names
(default: ``sentences``): the sentence polarity set of Pang and Lee, "Seeing Stars" (2005).
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

TOKENS = 32
"""Length of each item; longer sentences are cut."""
PAD, UNKNOWN, CLS, MASK = range(4)
"""Ids of the special tokens; words follow."""
VOCABULARY = 8192
"""Largest number of token ids, as the networks have it."""
LEAST = 2
"""Times that a word must occur in the training split to have an id."""

_CLASSES = ("negative", "positive")


def polarity(split: str) -> "Reviews":
    """Return the sentences of ``train`` or ``test``, about 80 and 20 % of them."""
    folder = Path(os.environ.get("KDPIPE_SENTENCES", "sentences"))
    lines = {name: (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in _CLASSES}
    return Reviews(lines, split)


class Reviews(Sequence):
    """The sentences of one split: ``({"input_ids", "attention_mask"}, class index)``, both int64 ``(TOKENS,)``."""

    classes = _CLASSES

    def __init__(self, lines: dict[str, list[str]], split: str) -> None:
        """Split ``lines``, the sentences of each class, by their text: equal sentences are in one split."""
        chosen = [
            (f"{name}/{number}", line, label)
            for label, name in enumerate(self.classes)
            for number, line in enumerate(lines[name])
            if ("test" if is_test(line) else "train") == split
        ]
        self.keys, sentences, self.targets = (list(column) for column in zip(*chosen, strict=True))
        self._sentences: list[str] = sentences
        self._training = [line for name in self.classes for line in lines[name] if not is_test(line)]

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Ids of the words of the training split, the most frequent first."""
        counts = Counter(word for line in self._training for word in words(line))
        frequent = sorted((word for word in counts if counts[word] >= LEAST), key=lambda word: (-counts[word], word))
        return {word: MASK + 1 + place for place, word in enumerate(frequent[: VOCABULARY - MASK - 1])}

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that the items depend on."""
        return blake2b(repr((TOKENS, list(self.vocabulary), self._sentences)).encode()).hexdigest()

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self._sentences)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        """Return one sentence and its class."""
        found = [self.vocabulary.get(word, UNKNOWN) for word in words(self._sentences[index])]
        return pad([CLS, *found]), self.targets[index]


def words(sentence: str) -> list[str]:
    """Return the words and punctuation marks of a sentence in lower case."""
    return re.findall(r"\w+|[^\w\s]", sentence.lower())


def is_test(sentence: str) -> bool:
    """Return whether a sentence is in the test split, by a keyed hash of its text."""
    return blake2b(sentence.encode(), key=b"reviews", digest_size=8).digest()[0] < 256 // 5


def pad(ids: Iterable[int]) -> dict[str, np.ndarray]:
    """Return token ids cut or padded to ``TOKENS``, and a mask with 1 for those of the sentence."""
    kept = list(ids)[:TOKENS]
    rest = TOKENS - len(kept)
    return {
        "input_ids": np.array(kept + [PAD] * rest, np.int64),
        "attention_mask": np.array([1] * len(kept) + [0] * rest, np.int64),
    }
