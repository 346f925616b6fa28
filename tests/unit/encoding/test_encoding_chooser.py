"""Choosing an encoding: it is the one that trying them all would pick."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numcodecs import blosc

from kdpipe.encoding.chooser import CANDIDATES, choose_encoding, compressed_bytes, largest_kl
from kdpipe.encoding.fidelity import kl
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import ParamsError


def pilot(rows: int = 256, classes: int = 40) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(8))


def dense(temperatures: list[float]) -> list[float]:
    """Return the temperatures and twenty between their ends."""
    return sorted({*temperatures, *np.geomspace(min(temperatures), max(temperatures), 20).tolist()})


def peaked(classes: int = 200) -> torch.Tensor:
    """Logits of a teacher that is sure of a class: at T = 1 and 4 an error in the others costs less than at T = 2.5."""
    generator = torch.Generator().manual_seed(5)
    sure = torch.nn.functional.one_hot(torch.randint(0, classes, (512,), generator=generator), classes)
    return 2 * torch.randn(512, classes, generator=generator) + 12 * sure


def brute_force(logits: torch.Tensor, names: tuple[str, ...], limit: float, temperatures: list[float]) -> str:
    """Try every encoding, and return the smallest that keeps to the limit."""
    best = (math.inf, "")
    for name in names:
        chosen = get_encoding(name).calibrate(logits[0::2])
        encoded = chosen.encode(logits[1::2])
        codes, row_max = torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max)
        back = chosen.decode(codes, row_max, logits.shape[1])
        losses = [float(kl(logits[1::2], back, temperature).mean()) for temperature in dense(temperatures)]
        allowed = chosen.max_temperature is None or chosen.max_temperature >= max(temperatures)
        if allowed and max(losses) <= limit:
            best = min(best, (len(blosc.compress(encoded.codes, b"lz4", 5, blosc.BITSHUFFLE)), name))
    return best[1]


@pytest.mark.parametrize("max_kl", [1e-1, 1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("temperatures", [[1.0], [1.0, 4.0], [16.0]])
def test_the_choice_is_that_of_brute_force(max_kl: float, temperatures: list[float]) -> None:
    names = ("fp32", "fp16", "fp16r7", "fp16r4", "fp16r2", "sqrtp8@1", "sqrtp8@4", "sqrtp5@4", "sqrtp4@16", "topk20")
    found = choose_encoding(pilot(), max_kl=max_kl, temperatures=temperatures, candidates=names)
    expected = brute_force(pilot(), names, max_kl / 1.2, temperatures)
    assert found.encoding.name == expected
    assert found.encoding == get_encoding(expected).calibrate(pilot())
    assert found.temperatures == tuple(temperatures)
    assert [row.name for row in found.table] == list(names)
    winner = next(row for row in found.table if row.name == expected)
    assert winner.within
    assert max(winner.kl) <= max_kl / 1.2
    assert all(row.bytes_per_sample >= winner.bytes_per_sample for row in found.table if row.within)


@pytest.mark.parametrize("max_kl", [8.4e-4, 3e-3])
def test_the_budget_holds_between_the_temperatures(max_kl: float) -> None:
    """The smallest encoding within the budget at T = 1 and 4 alone exceeds it at T = 2.5."""
    names = tuple(f"fp16r{bits}" for bits in range(9, 1, -1))
    logits = peaked()
    found = choose_encoding(logits, max_kl=max_kl, temperatures=[4.0, 1.0], candidates=names)
    assert found.encoding.name == brute_force(logits, names, max_kl / 1.2, [1.0, 4.0])
    at_the_ends = [row for row in found.table if max(row.kl) <= max_kl / 1.2]
    smallest = min(at_the_ends, key=lambda row: row.bytes_per_sample)
    assert smallest.name != found.encoding.name
    assert not smallest.within
    assert smallest.largest is not None
    assert smallest.largest > max_kl / 1.2
    winner = next(row for row in found.table if row.name == found.encoding.name)
    assert winner.largest is not None
    assert winner.largest <= max_kl / 1.2


def test_the_largest_loss_of_a_span_is_found() -> None:
    """To 0.1 percent, of the largest at a hundred times as many temperatures."""
    for logits, names in ((peaked(), ("fp16r3", "sqrtp8@4", "tailp6@8")), (pilot(), ("fp16r4", "sqrtp5@2", "topk5"))):
        for encoding in map(get_encoding, names):
            fitted = encoding.calibrate(logits)
            encoded = fitted.encode(logits)
            codes, row_max = torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max)
            back = fitted.decode(codes, row_max, logits.shape[1])
            everywhere = [float(kl(logits, back, t).mean()) for t in np.geomspace(0.5, 8, 300).tolist()]
            assert largest_kl(logits, back, [8, 0.5]) >= 0.999 * max(everywhere), fitted.name


def test_an_impossible_budget_names_one_that_is_kept() -> None:
    with pytest.raises(ParamsError, match="Allow --max-kl") as refused:
        choose_encoding(peaked(), max_kl=1e-5, temperatures=[1, 4], candidates=["fp16r3", "fp16r4"])
    allowed = float(str(refused.value).split("--max-kl ")[1].split()[0])
    found = choose_encoding(peaked(), max_kl=allowed, temperatures=[1, 4], candidates=["fp16r3", "fp16r4"])
    assert found.encoding.name == "fp16r4"


def test_the_usual_candidates() -> None:
    found = choose_encoding(pilot(64, 20), max_kl=1e-3, temperatures=[1, 4])
    assert tuple(row.name for row in found.table) == CANDIDATES
    assert [get_encoding(name).name for name in CANDIDATES] == list(CANDIDATES)
    assert len(CANDIDATES) == 2 + 8 + 25 + 42
    assert choose_encoding(pilot(64, 20), max_kl=1e-3, temperatures=[1, 4]) == found
    assert choose_encoding(pilot(64, 20), max_kl=1e-9, temperatures=[1, 4]).encoding.name == "fp32"


def test_an_encoding_is_not_chosen_above_its_temperature() -> None:
    found = choose_encoding(pilot(), max_kl=100, temperatures=[1.5], candidates=["topk20", "sqrtp2@1", "fp16"])
    assert found.encoding.name == "fp16"
    assert [row.within for row in found.table] == [False, False, True]


def test_no_candidate_is_good_enough() -> None:
    with pytest.raises(ParamsError, match=r"the best is fp16r4 with .*Allow --max-kl") as caught:
        choose_encoding(pilot(), max_kl=1e-6, temperatures=[1, 4], candidates=["fp16r2", "fp16r4", "sqrtp8@1"])
    allowed = float(str(caught.value).rsplit(" ", 3)[-3])
    assert (
        choose_encoding(pilot(), max_kl=allowed, temperatures=[1, 4], candidates=["fp16r2", "fp16r4"]).encoding.name
        == "fp16r4"
    )
    with pytest.raises(ParamsError, match="no encoding among topk20 serves temperatures 4"):
        choose_encoding(pilot(), max_kl=1, temperatures=[4], candidates=["topk20"])


def test_arguments_out_of_range() -> None:
    with pytest.raises(ParamsError, match="at least 2"):
        choose_encoding(pilot(1), max_kl=1, temperatures=[1])
    for max_kl in (0, -1, math.nan, math.inf):
        with pytest.raises(ParamsError, match="max_kl must be a positive number"):
            choose_encoding(pilot(), max_kl=max_kl, temperatures=[1])
    for temperatures in ([], [0.0], [1, math.nan], [-1.0]):
        with pytest.raises(ParamsError, match="temperatures must be positive"):
            choose_encoding(pilot(), max_kl=1, temperatures=temperatures)
    with pytest.raises(ParamsError, match="no encodings to choose from"):
        choose_encoding(pilot(), max_kl=1, temperatures=[1], candidates=[])
    with pytest.raises(ParamsError, match="did you mean"):
        choose_encoding(pilot(), max_kl=1, temperatures=[1], candidates=["fp61"])


def test_sizes_are_of_chunks() -> None:
    codes = get_encoding("fp16").encode(pilot(5000, 300)).codes
    assert 0.5 * codes.nbytes < compressed_bytes(codes) < codes.nbytes
    zeros = 0 * codes
    assert compressed_bytes(zeros) < 0.02 * codes.nbytes
