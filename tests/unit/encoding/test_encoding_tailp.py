"""Bytes linear in the tempered probability, and each row's own tail: closed forms, damage, and a store of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe.encoding.chooser import compressed_bytes
from kdpipe.encoding.fidelity import kl
from kdpipe.encoding.kinds.tailp import TailP
from kdpipe.encoding.registry import get_encoding
from kdpipe.store.reader import open_store
from kdpipe.testing import stores
from kdpipe.testing.encodings import EncodingSuite, decoded
from tests.unit.encoding.test_encoding_sqrtp import level_widths


def pilot(rows: int = 512, classes: int = 50) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(3))


class TestTailP(EncodingSuite):
    row_max_error = 2.0**-8

    @pytest.fixture(params=[(2, 1.0), (5, 0.5), (8, 4.0)], ids=str)
    def encoding(self, request: pytest.FixtureRequest) -> TailP:
        return TailP.nominal(*request.param)

    def error_bound(self, encoding: TailP, shifted: torch.Tensor) -> torch.Tensor:
        return level_widths(shifted, encoding.levels.bits, encoding.levels.temperature)


@pytest.mark.parametrize(("bits", "temperature"), [(2, 1.0), (5, 0.5), (8, 4.0)])
def test_codes_are_rounded_probabilities(bits: int, temperature: float) -> None:
    logits = pilot()
    shifted = (logits - logits.amax(dim=1, keepdim=True)).double().numpy()
    exact = (2**bits - 1) * np.exp(shifted / temperature)
    codes = get_encoding(f"tailp:{bits},{temperature}").encode(logits).codes[:, :-1]
    sure = np.abs(exact % 1 - 0.5) > 1e-4
    assert np.array_equal(codes[sure], np.rint(exact[sure]))


def test_a_tail_by_hand() -> None:
    # At T = 2, four levels: below 2 * log(0.5 / 3) = -3.58 a logit is in the tail.
    logits = torch.tensor([[7.0, 3.0, 1.0, 6.0], [-5.0, -5.5, -6.0, -6.5], [2.0, -60.0, -600.0, -6000.0]])
    chosen = get_encoding("tailp2@2")
    first = 2 * np.log((np.exp(-2) + np.exp(-3)) / 2)
    third = 2 * np.log((np.exp(-31)) / 3)
    codes = chosen.encode(logits).codes
    assert codes.tolist() == [[3, 0, 0, 2, round(-4 * first)], [3, 2, 2, 1, 0], [3, 0, 0, 0, 255]]
    assert -4 * third > 255
    assert decoded(chosen, logits)[0, 1:3].tolist() == pytest.approx([7 - round(-4 * first) / 4] * 2)


def test_the_row_s_maximum_is_kept_as_bfloat16() -> None:
    logits = torch.tensor([[1.0, 0.0], [3.14159, 0.0], [-2.7e-3, -7.0], [3.4e38, 0.0], [-3.4e38, -3.4e38]])
    row_max = get_encoding("tailp8@1").encode(logits).row_max
    assert np.isfinite(row_max).all()
    assert row_max == pytest.approx(logits.amax(dim=1).numpy(), rel=2**-8)
    assert (row_max.view(np.uint32) & 0xFFFF == 0).all()


@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_few_levels_lose_less_than_with_one_tail_for_all(temperature: float) -> None:
    easy = torch.linspace(0, 12, 400)[:, None] * torch.eye(200)[torch.arange(400) % 200]
    logits = pilot(400, 200) + easy
    shared, own = (get_encoding(name).calibrate(logits) for name in ("sqrtp3@1", "tailp3@2"))
    losses = [float(kl(logits, decoded(each, logits), temperature).mean()) for each in (shared, own)]
    assert losses[1] < 0.95 * losses[0]


def test_it_is_smaller_than_the_same_levels_of_sqrtp() -> None:
    logits = pilot(2000, 100)
    sizes = [
        compressed_bytes(each.encode(logits).codes, each.compression)
        for each in (get_encoding("sqrtp4@1"), get_encoding("tailp4@2"))
    ]
    assert sizes[1] < 0.85 * sizes[0]


def test_calibration_repeats_and_moves_no_codes() -> None:
    nominal = get_encoding("tailp6@2")
    fitted = nominal.calibrate(pilot())
    assert np.array_equal(fitted.encode(pilot()).codes, nominal.encode(pilot()).codes)
    assert nominal.calibrate(pilot()) == fitted != nominal


def test_rows_that_no_encoder_writes_are_found() -> None:
    codes = torch.tensor(
        [[15, 0, 3, 9], [15, 1, 3, 0], [15, 0, 3, 0], [15, 1, 3, 9], [14, 0, 3, 9], [16, 15, 0, 9], [0, 0, 0, 0]],
        dtype=torch.uint8,
    )
    assert get_encoding("tailp4@4").invalid(codes, 3).tolist() == [False, False, True, True, True, True, True]


def test_a_store_of_them(tmp_path: Path) -> None:
    chosen = get_encoding("tailp5@4").calibrate(pilot(64, stores.CLASSES))
    plan = replace(stores.small_plan(encoding="tailp5@4"), calibrated=chosen)
    stores.small_store(tmp_path / "a.zarr", plan)
    again = stores.small_store(tmp_path / "a.zarr", plan)
    logits = torch.from_numpy(stores.random_logits("train", 1, samples=stores.TRAIN))
    store = open_store(tmp_path / "a.zarr")
    assert store.digest == again.digest
    assert np.array_equal(store.plane(1), decoded(chosen, logits).numpy())
    assert blosc(tmp_path / "a.zarr/train/codes") == ("zstd", "noshuffle")
    assert blosc(tmp_path / "a.zarr/train/row_max") == ("lz4", "bitshuffle")


def blosc(array: Path) -> tuple[str, str]:
    """Return how an array's chunks are compressed, whether it is sharded or not."""
    codecs = json.loads((array / "zarr.json").read_text())["codecs"]
    codecs += [inner for codec in codecs for inner in codec.get("configuration", {}).get("codecs", [])]
    settings = next(codec["configuration"] for codec in codecs if codec["name"] == "blosc")
    return settings["cname"], settings["shuffle"]
