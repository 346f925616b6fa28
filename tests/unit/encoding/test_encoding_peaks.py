"""Levels above the row's mean: codes by hand, the mass of the rest, sizes, damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdpipe.encoding.chooser import stored_bytes
from kdpipe.encoding.fidelity import kl
from kdpipe.encoding.kinds.peaks import Peaks
from kdpipe.encoding.registry import get_encoding, restore_encoding
from kdpipe.errors import CorruptStoreError, ParamsError
from kdpipe.testing.encodings import EncodingSuite, decoded


def confident(rows: int = 512, classes: int = 400, *, seed: int = 3) -> torch.Tensor:
    """Return normal logits with one class far above the others."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    logits[torch.arange(rows), torch.randint(0, classes, (rows,), generator=generator)] += 9
    return logits


class TestPeaks(EncodingSuite):
    row_max_error = 2.0**-8

    @pytest.fixture(params=[(1.0, 4.0), (0.25, 0.0), (10.0, 2.5)], ids=str)
    def encoding(self, request: pytest.FixtureRequest) -> Peaks:
        return Peaks(*request.param)

    def error_bound(self, encoding: Peaks, shifted: torch.Tensor) -> torch.Tensor:
        above = shifted - shifted.mean(dim=1, keepdim=True) - encoding.floor
        kept = (above >= 0.01) & (above < 254 * encoding.step)
        # A class and the row's largest each lie somewhere in their level.
        sure = kept & kept.gather(1, shifted.argmax(dim=1, keepdim=True))
        return torch.where(sure, 2 * encoding.step + 0.01, torch.inf)


def test_codes_by_hand() -> None:
    # The means are 2, 0 and -1; at least 1.5 above them, a logit has a level of width 2.
    logits = torch.tensor([[10.0, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.5, 4.6, -8.1]])
    chosen = get_encoding("peaks:2,1.5")
    first = 2 * np.log((2 * np.exp(-1) + np.exp(-2)) / 3)
    third = 2 * np.log((1 + np.exp(-7.1 / 2)) / 2)
    expected = [[4, 0, 0, 0, 128 + round(4 * first)], [0, 0, 0, 0, 128], [0, 1, 3, 0, 128 + round(4 * third)]]
    assert chosen.encode(logits).codes.tolist() == expected
    # The levels are 1.5 to 3.5, 3.5 to 5.5, 5.5 to 7.5 and 7.5 to 9.5 above the mean.
    values = decoded(chosen, logits)
    assert values[0].tolist() == pytest.approx([10, *[10 - 8.5 + round(4 * first) / 4] * 3])
    assert values[2, 1:3].tolist() == pytest.approx([4.59375 - 4, 4.59375])


def test_the_rest_keeps_its_mass_at_temperature_2() -> None:
    logits = confident()
    chosen = Peaks(1.0, 4.0).calibrate(confident(seed=1))
    encoded = chosen.encode(logits)
    rest = encoded.codes[:, :-1] == 0
    centered = (logits - logits.mean(dim=1, keepdim=True)).double().numpy()
    mass = (np.exp(centered / 2) * rest).sum(axis=1)
    kept = np.exp((encoded.codes[:, -1].astype(float) - 128) / 8) * rest.sum(axis=1)
    assert np.abs(np.log(kept / mass)).max() <= 1 / 16 + 1e-3
    values = np.array(chosen.table)
    for level in range(1, 8):
        there = encoded.codes[:, :-1] == level
        assert ((centered[there] >= 4 + level - 1 - 2e-3) & (centered[there] < 4 + level + 2e-3)).all()
        assert 4 + level - 1 <= values[level] < 4 + level


def test_a_few_dozen_bytes_have_a_lower_kl_than_those_of_tailp() -> None:
    pilot, logits = confident(seed=1), confident()
    ours, other = get_encoding("peaks:1,3.7").calibrate(pilot), get_encoding("tailp:2,2.5").calibrate(pilot)
    sizes = [stored_bytes(each.encode(logits), each.compression) for each in (ours, other)]
    assert sizes[0] <= sizes[1]
    for temperature in (1, 2, 4):
        losses = [kl(logits, decoded(each, logits), temperature).mean() for each in (ours, other)]
        assert losses[0] < 0.96 * losses[1]


def test_calibration_lowers_the_kl() -> None:
    logits = confident()
    nominal = Peaks(3.0, 3.0)
    losses = [
        float(kl(logits, decoded(each, logits), 2).mean()) for each in (nominal.calibrate(confident(seed=1)), nominal)
    ]
    assert losses[0] < 0.98 * losses[1]


def test_rows_that_are_never_written_are_found() -> None:
    chosen = get_encoding("peaks:1,2")
    codes = torch.tensor([[0, 3, 128], [0, 3, 0], [1, 3, 128], [1, 3, 0], [0, 0, 0]], dtype=torch.uint8)
    assert chosen.invalid(codes, 2).tolist() == [False, True, True, False, True]


def test_damaged_tables_are_refused() -> None:
    described = get_encoding("peaks:1,4").calibrate(confident()).describe()
    table = described["table"]
    assert isinstance(table, list)
    for wrong in ([], None, table[:-1], [*table, 300.0], ["x", *table[1:]], [0.0, 9.0, *table[2:]], [True] * 256):
        with pytest.raises(CorruptStoreError, match=r"does not fit|table"):
            restore_encoding({**described, "table": wrong})


@pytest.mark.parametrize(
    "name", ["peaks", "peaks:1", "peaks:0,4", "peaks:11,4", "peaks:1,-1", "peaks:1,101", "peaks:nan,1"]
)
def test_wrong_names(name: str) -> None:
    with pytest.raises(ParamsError):
        get_encoding(name)
    with pytest.raises(ParamsError, match="2 classes or more, found 1"):
        get_encoding("peaks:1,4").width(1)
