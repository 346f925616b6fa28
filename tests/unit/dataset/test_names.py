"""Names in a few arrays, and the ids of many samples, against plain Python."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.dataset import Names, find_ids, sample_id

STRINGS = st.lists(st.text(max_size=9), max_size=12)


@given(STRINGS, STRINGS)
def test_names_are_like_a_tuple_of_strings(first: list[str], second: list[str]) -> None:
    names, same = Names.of(first), tuple(first)
    assert names == same
    assert same == names
    assert names == list(first)
    assert list(names) == first
    assert len(names) == len(first)
    assert (names[:2], names[::-1], names[-1:]) == (same[:2], same[::-1], same[-1:])
    assert [names[index] for index in range(-len(first), len(first))] == first * 2
    assert names + second == (*first, *second)
    paths = [*(f"a/{name}" for name in first), *(f"b/c/{name}" for name in second)]
    assert Names.below([("a", first), ("b/c", second)]) == tuple(paths)
    assert (names == tuple(second)) == (first == second)
    assert pickle.loads(pickle.dumps(names)) == same


@given(st.lists(st.text(max_size=9), min_size=1, max_size=12), st.data())
def test_some_of_many_names(strings: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(strings) - 1), max_size=20))
    part = Names.of(strings).take(np.array(chosen, dtype=np.int64))
    expected = tuple(strings[index] for index in chosen)
    assert part == expected
    assert pickle.loads(pickle.dumps(part)) == expected


def test_a_few_names_are_pickled_without_the_others() -> None:
    names = Names.of(f"train/class/{index}.jpg" for index in range(10_000))
    assert len(pickle.dumps(names)) > 200_000
    assert len(pickle.dumps(names.take(np.arange(3)))) < 1_000


def test_names_are_no_string_and_have_no_other_length() -> None:
    assert Names.of("abc") != "abc"
    assert Names.of("abc") != ("a", "b")
    with pytest.raises(IndexError):
        Names.of("abc")[3]


@pytest.mark.parametrize("repeats", [False, True])
def test_ids_are_found_like_in_a_dictionary(repeats: bool) -> None:
    """With equal first halves and with ids that occur several times, of which the first is found."""
    draws = np.random.default_rng(5)
    among = draws.integers(0, 2, (300, 16)).astype(np.uint8)
    among[:, 2:14] = 7
    among = among if repeats else np.unique(among, axis=0)
    wanted = np.concatenate([among[::3], draws.integers(0, 3, (40, 16)).astype(np.uint8)])
    first: dict[bytes, int] = {}
    for index, each in enumerate(among):
        first.setdefault(each.tobytes(), index)
    assert find_ids(wanted, among).tolist() == [first.get(each.tobytes(), -1) for each in wanted]
    assert find_ids(wanted, among[:0]).tolist() == [-1] * len(wanted)


def test_ids_are_digests_of_keys() -> None:
    from kdpipe.dataset.ids import sample_ids

    keys = [f"train/grün/{index}.png" for index in range(5_000)]
    assert sample_ids(keys).tobytes() == b"".join(map(sample_id, keys))
