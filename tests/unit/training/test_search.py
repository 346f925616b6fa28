"""Random search with successive halving: spaces, draws and rungs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdpipe.errors import ParamsError
from kdpipe.training.search import Choice, Range, Rung, best_first, draws, parse_space, rungs

KNOWN = ("lr", "loss", "kd_weight", "temperature")


def test_a_space_is_parsed() -> None:
    space = parse_space(["lr=0.01..0.3,log", "kd-weight = 0..1", "loss=kd|dkd:beta=2|kd+dist"], known=KNOWN)
    assert space == {
        "lr": Range(0.01, 0.3, log=True),
        "kd_weight": Range(0, 1, log=False),
        "loss": Choice(("kd", "dkd:beta=2", "kd+dist")),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "'lr' is no search"),
        ("lr=", "is no search"),
        ("temprature=1..2", "'temprature' cannot be searched; did you mean 'temperature'?"),
        ("lr=2..1", "LOW below HIGH"),
        ("lr=1..1", "LOW below HIGH"),
        ("lr=a..b", "expected two numbers"),
        ("lr=nan..1", "LOW below HIGH"),
        ("lr=0..1,log", "log needs numbers above 0"),
        ("lr=1..2,linear", "LOW..HIGH,log"),
        ("loss=kd||dkd", "must differ, none of them empty"),
        ("loss=kd|kd", "must differ"),
    ],
)
def test_what_is_no_space_is_refused(text: str, message: str) -> None:
    with pytest.raises(ParamsError) as refused:
        parse_space([text], known=KNOWN)
    assert message in str(refused.value)


def test_a_setting_is_searched_once() -> None:
    with pytest.raises(ParamsError, match="searched twice"):
        parse_space(["kd-weight=0..1", "kd_weight=0..2"], known=KNOWN)


def test_draws_are_uniform_in_numbers_logarithms_and_values() -> None:
    space = {"temperature": Range(1, 9, log=False), "lr": Range(1e-3, 10, log=True), "loss": Choice(("a", "b", "c"))}
    found = draws(space, 2000, seed=3)
    numbers = np.array([float(each["temperature"]) for each in found])
    logs = np.log10([float(each["lr"]) for each in found])
    assert stats.kstest(numbers, stats.uniform(1, 8).cdf).pvalue > 1e-3
    assert stats.kstest(logs, stats.uniform(-3, 4).cdf).pvalue > 1e-3
    counts = [sum(each["loss"] == name for each in found) for name in "abc"]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_draws_differ_and_fewer_are_the_first_of_more() -> None:
    space = {"loss": Choice(("a", "b", "c")), "temperature": Choice(("1", "2"))}
    found = draws(space, 6, seed=0)
    assert len({tuple(each.items()) for each in found}) == 6
    assert draws(space, 4, seed=0) == found[:4]
    assert draws(space, 6, seed=1) != found
    with pytest.raises(ParamsError, match="only 6 different settings: give --trials 6"):
        draws(space, 7, seed=0)


@pytest.mark.parametrize(
    ("trials", "epochs", "reduction", "expected"),
    [
        (27, 27, 3, [(27, 1), (9, 3), (3, 9), (1, 27)]),
        (9, 30, 3, [(9, 3), (3, 10), (1, 30)]),
        (16, 8, 2, [(16, 1), (8, 2), (4, 4), (2, 8)]),
        (10, 2, 3, [(10, 2)]),
        (1, 30, 3, [(1, 30)]),
        (5, 12, 4, [(5, 3), (1, 12)]),
    ],
)
def test_rungs_divide_trials_and_multiply_epochs(
    trials: int, epochs: int, reduction: int, expected: list[tuple[int, int]]
) -> None:
    assert rungs(trials, epochs, reduction=reduction) == [Rung(*each) for each in expected]


def test_failed_trials_are_never_the_best() -> None:
    assert best_first({"a": 0.5, "b": None, "c": 0.7, "d": 0.5}) == ["c", "a", "d"]
