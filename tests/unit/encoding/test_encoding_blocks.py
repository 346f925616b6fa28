"""Rows that are encoded in blocks: the codes and the loss of all at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdpipe.encoding.blocks import encode
from kdpipe.encoding.fidelity import TEMPERATURES, Fidelity
from kdpipe.encoding.registry import get_encoding

NAMES = ("fp16", "fp16r5", "sqrtp8@4", "tailp6@4", "topk5")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "classes"), [(600, 8_001), (1, 10)])
def test_blocks_change_nothing(name: str, rows: int, classes: int) -> None:
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(0)) * 5
    encoding = get_encoding(name).calibrate(logits[:50])
    found, lost = encode(encoding, logits, temperatures=TEMPERATURES)
    whole = encoding.encode(logits)
    assert np.array_equal(found.codes, whole.codes)
    assert found.codes.dtype == whole.codes.dtype
    assert np.array_equal(found.row_max, whole.row_max)
    decoded = encoding.decode(torch.from_numpy(whole.codes), torch.from_numpy(whole.row_max), classes)
    assert lost == Fidelity.of(logits, decoded)
