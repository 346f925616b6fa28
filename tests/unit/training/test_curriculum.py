"""The samples that the epochs of a curriculum draw."""

from __future__ import annotations

import numpy as np
import pytest

from kdpipe.training.curriculum import Curriculum
from kdpipe.training.schedule import epoch_samples

N, EPOCHS = 60, 8
RANKED = np.random.default_rng(1).permutation(N)
LABELS = (np.arange(N) % 3).astype(np.int32)


def _curriculum(share: float = 0.25, epochs: int = EPOCHS) -> Curriculum:
    return Curriculum(RANKED, LABELS, share, epochs)


@pytest.mark.parametrize(("epoch", "pool"), [(0, 15), (1, 26), (2, 38), (3, 49), (4, 60), (7, 60)])
def test_the_pool_grows_evenly_to_all_samples_over_half_of_the_epochs(epoch: int, pool: int) -> None:
    assert _curriculum().pool(epoch).tolist() == RANKED[:pool].tolist()


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_an_epoch_draws_its_pool_alike_and_as_many_as_there_are_samples(epoch: int) -> None:
    curriculum = _curriculum()
    drawn = epoch_samples(N, curriculum, data_seed=3, epoch=epoch)
    assert len(drawn) == N
    counts = np.bincount(drawn, minlength=N)
    inside = np.isin(np.arange(N), curriculum.pool(epoch))
    assert not counts[~inside].any()
    often = N / inside.sum()
    assert set(counts[inside]) <= {int(np.floor(often)), int(np.ceil(often))}


def test_with_all_samples_an_epoch_is_one_without_a_curriculum() -> None:
    with_all = epoch_samples(N, _curriculum(), data_seed=3, epoch=EPOCHS - 1)
    assert with_all.tolist() == epoch_samples(N, None, data_seed=3, epoch=EPOCHS - 1).tolist()


def test_a_single_epoch_draws_from_its_share_and_a_tiny_share_from_one_sample() -> None:
    assert len(_curriculum(epochs=1).pool(0)) == 15
    assert _curriculum(share=1e-6).pool(0).tolist() == RANKED[:1].tolist()


def test_draws_depend_on_the_seed_alone_and_the_digest_on_what_decides_them() -> None:
    assert (_curriculum().draw(data_seed=3, epoch=1) == _curriculum().draw(data_seed=3, epoch=1)).all()
    assert (_curriculum().draw(data_seed=3, epoch=1) != _curriculum().draw(data_seed=4, epoch=1)).any()
    others = [
        _curriculum(share=0.3),
        _curriculum(epochs=9),
        Curriculum(RANKED[::-1], LABELS, 0.25, EPOCHS),
        Curriculum(RANKED, LABELS[::-1], 0.25, EPOCHS),
    ]
    digests = {each.digest for each in (_curriculum(), *others)}
    assert len(digests) == 5
    assert _curriculum().digest in digests
