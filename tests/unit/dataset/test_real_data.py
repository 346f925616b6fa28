"""Real files, where they are at hand."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch

from kdpipe.dataset import load

cifar10 = os.environ.get("KDPIPE_CIFAR10")
photos = os.environ.get("KDPIPE_PHOTOS")


@pytest.mark.skipif(not cifar10, reason="KDPIPE_CIFAR10 is not set to the unpacked CIFAR-10 folder")
def test_cifar10_as_a_folder() -> None:
    started = time.perf_counter()
    found = load(f"folder:{cifar10}", "test", 2000)
    assert time.perf_counter() - started < 10
    assert np.bincount(found.labels).tolist() == [200] * 10
    assert found.image_size == (32, 32)
    mean, deviation = found.statistics()
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.02)
    assert deviation == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.02)


@pytest.mark.skipif(not photos, reason="KDPIPE_PHOTOS is not set to the unpacked photographs")
def test_photographs_of_many_sizes() -> None:
    memory = load(f"folder:{photos}", "test")
    stream = load(f"folder:{photos}", "test", loading="stream")
    assert memory.classes == ("ants", "bees")
    assert len(memory) == 32
    assert memory.image_size is None
    assert memory.fingerprint == stream.fingerprint
    for index in (0, 13, 31):
        assert torch.equal(memory.image(index), stream.image(index))
