"""How planes are cut at the sizes of real datasets."""

from __future__ import annotations

import pytest

from kdpipe.store.plan import Layout, Limits

FORMAT_1 = Limits()


@pytest.mark.parametrize(
    ("samples", "classes", "files"),
    [(50_000, 10, 4), (50_000, 100, 4), (1_281_167, 1000, 20), (1_797, 10, 1)],
)
def test_few_files(samples: int, classes: int, files: int) -> None:
    chosen = Layout.choose(samples=samples, row_bytes=2 * classes, limits=FORMAT_1)
    assert len(chosen.shards(samples)) == files


def test_fifty_views_of_imagenet_stay_below_2500_files() -> None:
    chosen = Layout.choose(samples=1_281_167, row_bytes=2000, limits=FORMAT_1)
    codes_and_row_max = 2 * 51 * len(chosen.shards(1_281_167))
    assert codes_and_row_max < 2500


def test_one_row() -> None:
    assert Layout.choose(samples=1, row_bytes=20, limits=FORMAT_1).shards(1) == [(0, 1)]


def test_a_row_larger_than_a_shard() -> None:
    assert Layout.choose(samples=3, row_bytes=2**30, limits=FORMAT_1) == Layout(chunk_rows=1, shard_rows=1)
