"""Cached labels as others publish them: what a row costs on disk and what it says once decoded.

Each format is written and read again as its code does, bytes included; only what differs from row to row is
counted, not crop coordinates, seeds, ids or file headers. All keep probabilities at temperature 1, so decoded rows
are log-probabilities. Where rounding makes the kept mass reach one, their readers take the logarithm of zero or less
or fall back to a wrong target; here the rest is raised to ``FLOOR`` instead, in their favour.
"""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdpipe.encoding.chooser import compressed_bytes

FLOOR = 1e-8
"""Smallest probability of a class that was not kept."""

_CROPS_PER_FILE = 50


@dataclass(frozen=True)
class Read:
    """The decoded logits."""

    log_probabilities: torch.Tensor
    """Float32 ``(n, classes)``."""
    stored: float
    """Bytes per row in the files that training reads."""
    packed: float
    """Bytes per row of the same, compressed: by the format's own means, or else as kdpipe's codes are."""


@dataclass(frozen=True)
class Format:
    """A published format with its setting."""

    name: str
    k: int
    source: str
    """Address of its code."""
    roundtrip: Callable[[torch.Tensor, int], Read]


def _top(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    kept, index = logits.softmax(dim=1).topk(k, dim=1)
    return kept, index


def _spread(kept: torch.Tensor, index: torch.Tensor, classes: int) -> torch.Tensor:
    """Spread what the kept probabilities leave of one evenly over the other classes; return logarithms."""
    rest = (1 - kept.sum(dim=1, keepdim=True)) / (classes - kept.shape[1])
    return rest.clamp(min=FLOOR).repeat(1, classes).scatter_(1, index, kept.clamp(min=FLOOR)).log()


def fkd(logits: torch.Tensor, k: int) -> Read:
    """FKD (Shen and Xing 2022), ``marginal_smoothing_k<k>``: float32 ``(2, k)``, indices as floats."""
    kept, index = _top(logits, k)
    words = torch.stack([index, kept], dim=1)  # float32, as torch promotes
    read = words.numpy().copy()
    decoded = _spread(torch.from_numpy(read[:, 1]), torch.from_numpy(read[:, 0]).long(), logits.shape[1])
    return Read(decoded, 8.0 * k, compressed_bytes(read.reshape(len(read), -1)) / len(read))


def tinyvit(logits: torch.Tensor, k: int) -> Read:
    """TinyViT (Wu et al. 2022): ``k`` int16 indices, then ``k`` float16 probabilities."""
    kept, index = _top(logits, k)
    words = torch.cat([index.to(torch.int16), kept.to(torch.float16).view(torch.int16)], dim=1)
    decoded = _spread(words[:, k:].contiguous().view(torch.float16).float(), words[:, :k].long(), logits.shape[1])
    return Read(decoded, 4.0 * k, compressed_bytes(words.numpy()) / len(words))


def ml_dr(logits: torch.Tensor, k: int) -> Read:
    """Dataset reinforcement (Faghri et al. 2023): pickled lists of floats and ints, 50 crops a file, then tar.gz.

    The floats are float32 widened to float64, nine bytes each in a pickle. Files stay open pickles while they are
    read; the archive that is shared is gzipped.
    """
    kept, index = _top(logits, k)
    probabilities, ids = kept.numpy(), index.numpy()
    files = [
        pickle.dumps(
            [(p.tolist(), i.tolist()) for p, i in zip(probabilities[at:to], ids[at:to], strict=True)], protocol=4
        )
        for at, to in ((at, at + _CROPS_PER_FILE) for at in range(0, len(ids), _CROPS_PER_FILE))
    ]
    archive = gzip.compress(b"".join(files))
    return Read(_spread(kept, index, logits.shape[1]), sum(map(len, files)) / len(ids), len(archive) / len(ids))


def distillkit(logits: torch.Tensor, k: int) -> Read:
    """DistillKit (Goddard and Atkins 2024): bfloat16 for the first, float32 polynomials in the rank for the rest.

    Its two recommended settings: 50 values with 1 exact and terms 1, x, sqrt(x); 128 with 16 exact and the powers
    0 to 4 and sqrt(x). Indices are packed into ceil(log2(classes)) bits. The rest of the mass is spread evenly, its
    ``symmetric_uniform``; its ``zero`` has no finite KL.
    """
    exact, powers = (1, 2) if k == 50 else (16, 5)
    classes = logits.shape[1]
    values, index = logits.log_softmax(dim=1).topk(k, dim=1)
    rank = torch.arange(k - exact, dtype=torch.float64)
    terms = torch.stack([*(rank**power for power in range(powers)), rank.sqrt()], dim=1)
    coefficients = (values[:, exact:].double() @ torch.linalg.pinv(terms).T).float()
    head = values[:, :exact].to(torch.bfloat16)
    tail = (coefficients.double() @ terms.T).float()
    kept = torch.cat([head.float(), tail], dim=1).exp()
    kept = kept / kept.sum(dim=1, keepdim=True).clamp(min=1)
    bits = (classes - 1).bit_length()
    packed_index = np.packbits(
        (index.numpy()[:, :, None] >> np.arange(bits)[::-1] & 1).reshape(len(index), -1) > 0, axis=1
    )
    words: Any = np.concatenate(
        [head.view(torch.int16).numpy().view(np.uint8), coefficients.numpy().view(np.uint8), packed_index], axis=1
    )
    return Read(_spread(kept, index, classes), float(words.shape[1]), compressed_bytes(words) / len(words))


FORMATS = (
    *(Format("FKD", k, "github.com/szq0214/FKD: FKD_SLG/generate_soft_label.py", fkd) for k in (5, 10)),
    *(Format("TinyViT", k, "github.com/microsoft/Cream: TinyViT/save_logits.py", tinyvit) for k in (5, 10, 100)),
    *(Format("ml-dr", k, "github.com/apple/ml-dr: reinforce.py, dr/utils.py", ml_dr) for k in (5, 10)),
    *(Format("DistillKit", k, "github.com/arcee-ai/DistillKit: distillkit/compression", distillkit) for k in (50, 128)),
)
