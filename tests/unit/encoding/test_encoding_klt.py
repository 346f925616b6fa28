"""Transform coding: the decoder by hand, errors of likely classes, exact sums, damage, and the layout in a store."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from kdpipe.encoding.base import Encoding
from kdpipe.encoding.chooser import choose_encoding, pilot_rows, stored_bytes
from kdpipe.encoding.fidelity import kl
from kdpipe.encoding.kinds.klt import KLT
from kdpipe.encoding.registry import get_encoding, restore_encoding
from kdpipe.errors import CorruptStoreError, ParamsError, StoreError
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.testing import stores
from kdpipe.testing.encodings import CLASSES, EncodingSuite, decoded


def correlated(rows: int = 256, classes: int = 80, *, seed: int = 3) -> torch.Tensor:
    """Return logits of 8 features, a little noise, and one class that stands out."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(8, classes, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(rows, 8, generator=generator) @ head + 0.2 * torch.randn(rows, classes, generator=generator)
    logits[torch.arange(rows), torch.randint(0, classes, (rows,), generator=generator)] += 3
    return logits


def unpacked(codes: np.ndarray, vectors: int) -> np.ndarray:
    """Return the multiples of the step."""
    packed = codes[:, :vectors].astype(np.int64)
    return np.where(packed % 2, -(packed + 1) // 2, packed // 2)


def basis_of(encoding: Encoding) -> np.ndarray:
    table = encoding.describe()["table"]
    assert isinstance(table, list)
    return np.array([np.frombuffer(base64.b64decode(str(row)), "<i2") for row in table]).astype(np.float64)


class TestKLT(EncodingSuite):
    row_max_error = 2.0**-8
    fits_codes = True

    @pytest.fixture(params=[0.05, 0.4])
    def encoding(self, request: pytest.FixtureRequest) -> KLT:
        return KLT(request.param)

    def error_bound(self, encoding: KLT, shifted: torch.Tensor) -> torch.Tensor:
        # Each coefficient is off by one step at most, a class by sqrt(classes) steps, and so is the largest one. What
        # is left out has a deviation of 0.02 steps; a vector is rounded to 2^-11.
        size = shifted.abs().amax(dim=1, keepdim=True)
        bound = 2 * CLASSES**0.5 * (1.05 * encoding.step + 2e-3) + 0.02 * encoding.step * 40 + 0.01 * size
        clipped = size > 32_000 * encoding.step / CLASSES**0.5
        return torch.where(clipped, torch.inf, bound).expand_as(shifted)


def test_codes_by_hand() -> None:
    logits = torch.tensor([[4.0, 5.0, 6.0], [2.0, 2.0, 2.0], [-1.0, 4.0, 0.0]])
    chosen = get_encoding("klt0.5")
    encoded = chosen.encode(logits)
    # Without a pilot there is no rotation: -1, 0, 1 around the mean are -2, 0, 2 steps.
    assert encoded.codes.tolist() == [[3, 0, 4, 1], [0, 0, 0, 1], [7, 12, 3, 1]]
    assert decoded(chosen, logits).tolist() == logits.tolist()


@pytest.mark.parametrize("step", [0.1, 0.4])
def test_decoding_is_a_product_with_the_table(step: float) -> None:
    logits = correlated()
    chosen = get_encoding(f"klt{step}").calibrate(correlated(seed=1))
    encoded, basis = chosen.encode(logits), basis_of(chosen)
    values = unpacked(encoded.codes, len(basis)) @ basis * (chosen.describe()["step"] / 2048)
    expected = values - values.max(axis=1, keepdims=True) + encoded.row_max[:, None]
    assert decoded(chosen, logits).numpy() == pytest.approx(expected, abs=1e-5)
    assert basis @ basis.T / 2048**2 == pytest.approx(np.eye(len(basis)), abs=5e-3)


def nearest(logits: torch.Tensor, basis: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients in steps, and centered logits, in float64 and without rounding to a grid."""
    centered = logits.double().numpy()
    centered = centered - centered.mean(axis=1, keepdims=True)
    return centered @ basis.T / 2048 / step, centered


def weights(centered: np.ndarray) -> np.ndarray:
    """Return p (1 - p) at T = 1.75."""
    p = np.exp(centered / 1.75)
    p /= p.sum(axis=1, keepdims=True)
    weighted: np.ndarray = p * (1 - p)
    return weighted


def test_no_other_move_lowers_the_weighted_error() -> None:
    """With at most 64 classes each has its own weight: the codes are a local minimum, within the grid of weights."""
    logits = correlated(64, 24)
    chosen = replace(KLT(0.8).calibrate(correlated(seed=1, classes=24)), deviations=())
    step, basis = 819 / 1024, basis_of(chosen)
    assert chosen.describe()["step"] == step
    exact, centered = nearest(logits, basis, step)
    codes = unpacked(chosen.encode(logits).codes, len(basis))
    assert (np.abs(codes - exact) <= 1 + 0.01).all()
    weight = weights(centered)

    def error(values: np.ndarray) -> np.ndarray:
        return (weight * (values @ basis * step / 2048 - centered) ** 2).sum(axis=1)

    found = error(codes)
    assert (found <= error(np.rint(exact)) * 1.02 + 1e-4).all()
    assert found.mean() < 0.7 * error(np.rint(exact)).mean()
    for place in range(len(basis)):
        for move in (-1, 1):
            other = codes.copy()
            other[:, place] += move
            allowed = np.abs(other[:, place] - exact[:, place]) <= 0.99
            assert (error(other)[allowed] >= found[allowed] * 0.98 - 1e-4).all()


def test_moves_lower_the_kl_at_no_cost() -> None:
    logits = correlated(512)
    chosen = get_encoding("klt0.4").calibrate(correlated(1024, seed=1))
    encoded, basis = chosen.encode(logits), basis_of(chosen)
    rounded = np.rint(nearest(logits, basis, 410 / 1024)[0]).astype(np.int64)
    plain = encoded.codes.copy()
    plain[:, : len(basis)] = np.where(rounded < 0, -2 * rounded - 1, 2 * rounded)
    row_max = torch.from_numpy(encoded.row_max)
    worse = chosen.decode(torch.from_numpy(plain), row_max, logits.shape[1])
    assert kl(logits, decoded(chosen, logits), 1).mean() < 0.6 * kl(logits, worse, 1).mean()
    assert kl(logits, decoded(chosen, logits), 4).mean() < 1.05 * kl(logits, worse, 4).mean()
    size = stored_bytes(encoded, chosen.compression)
    assert size <= 1.02 * stored_bytes(replace(encoded, codes=plain), chosen.compression)


def test_codes_are_shorter_where_little_is_lost() -> None:
    """With the deviations of the coefficients: the same error in fewer bytes, by way of a smaller step."""
    generator = torch.Generator().manual_seed(0)
    spectrum = 8 * torch.arange(1, 201) ** -0.7
    rotation = torch.linalg.qr(torch.randn(200, 200, generator=generator)).Q
    pilot, logits = ((torch.randn(rows, 200, generator=generator) * spectrum) @ rotation for rows in (1600, 800))
    shorter = KLT(0.48).calibrate(pilot)
    exact, _ = nearest(pilot, basis_of(shorter), 1 / 1024)
    assert np.array(shorter.deviations) == pytest.approx(np.sqrt((exact**2).mean(axis=0)), rel=0.02)
    without = replace(KLT(0.5).calibrate(pilot), deviations=())
    sizes = [stored_bytes(each.encode(logits), each.compression) for each in (shorter, without)]
    assert sizes[0] < 0.98 * sizes[1]
    for temperature in (1, 2, 4):
        losses = [kl(logits, decoded(each, logits), temperature).mean() for each in (shorter, without)]
        assert losses[0] <= 1.02 * losses[1]


@pytest.mark.parametrize("wrong", ["x", None, [1], [1.5] * 80, [-1] * 80, [True] * 80, [2**31] * 80, []])
def test_damaged_deviations_are_refused(wrong: object) -> None:
    described = get_encoding("klt0.4").calibrate(correlated()).describe()
    with pytest.raises(CorruptStoreError):
        restore_encoding({**described, "deviations": wrong})


def test_an_unusual_row_keeps_its_errors_below_a_step() -> None:
    """Coefficients far beyond the pilot's deviation are rounded to a neighbor, too."""
    fitted = get_encoding("klt0.4").calibrate(correlated())
    logits = 20 * correlated(32, seed=9).roll(7, dims=1)
    basis = basis_of(fitted)
    exact, _ = nearest(logits, basis, 410 / 1024)
    assert np.abs(exact).max() > 300
    assert np.abs(unpacked(fitted.encode(logits).codes, len(basis)) - exact).max() <= 1.02


def test_codes_do_not_depend_on_threads_or_batches() -> None:
    logits, pilot = correlated(130, 80), correlated(300, 80, seed=1)
    fitted = get_encoding("klt0.3").calibrate(pilot)
    expected, threads = fitted.encode(logits).codes, torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert get_encoding("klt0.3").calibrate(pilot) == fitted
            for size in (7, 64, 130):
                parts = [fitted.encode(logits[start : start + size]).codes for start in range(0, 130, size)]
                assert np.array_equal(np.concatenate(parts), expected)
    finally:
        torch.set_num_threads(threads)


def test_sums_are_exact_in_any_order() -> None:
    """The same classes in another order, and so other orders of all sums, have the same codes."""
    logits, order = correlated(200, 32), torch.randperm(32, generator=torch.Generator().manual_seed(2))
    fitted = get_encoding("klt0.3").calibrate(correlated(600, 32, seed=1))
    rows = [base64.b64encode(row.astype("<i2").tobytes()).decode() for row in basis_of(fitted)[:, order.numpy()]]
    reordered = restore_encoding({**fitted.describe(), "table": list(rows)})
    assert np.array_equal(reordered.encode(logits[:, order]).codes, fitted.encode(logits).codes)
    assert torch.equal(decoded(reordered, logits[:, order]), decoded(fitted, logits)[:, order])


def test_it_is_chosen_where_a_store_pays_for_its_table() -> None:
    pilot = correlated(1024)
    large = choose_encoding(pilot, max_kl=1e-3, temperatures=[1, 4], rows=10_000_000)
    assert large.encoding.name.startswith("klt")
    rows = {row.name: row for row in large.table}
    best = min((row for row in large.table if row.within and not row.name.startswith("klt")), key=_size)
    assert rows[large.encoding.name].bytes_per_sample < 0.8 * best.bytes_per_sample
    wide = torch.cat([correlated(512, 300), correlated(512, 300)])
    table = len(json.dumps(get_encoding("klt0.2").calibrate(wide[::2]).describe()))
    assert table > 65_536
    names = ["klt0.2", "tailp8@16"]
    shared = choose_encoding(wide, max_kl=1, temperatures=[1, 4], candidates=names, rows=1000).table
    free = choose_encoding(wide, max_kl=1, temperatures=[1, 4], candidates=names).table
    assert shared[0].bytes_per_sample - free[0].bytes_per_sample == pytest.approx(table / 1000)
    assert shared[1].bytes_per_sample == free[1].bytes_per_sample


def _size(row: object) -> float:
    return float(row.bytes_per_sample)  # type: ignore[attr-defined]


def test_directions_without_variance_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 5, generator=generator) @ torch.randn(5, 40, generator=generator)
    chosen = get_encoding("klt0.2").calibrate(logits)
    assert len(basis_of(chosen)) == 5
    assert not chosen.encode(logits).codes[:, 5:-1].any()
    assert kl(logits, decoded(chosen, logits), 1).mean() < 1e-3


def of_features(rows: int, classes: int, *, seed: int, features: int = 24) -> torch.Tensor:
    """Return logits of a linear head."""
    head = torch.randn(features, classes, generator=torch.Generator().manual_seed(0))
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)) @ head / 2


def test_many_classes_of_few_features() -> None:
    """More than 2,048 classes: rows fewer than the classes give the directions, and codes for no others."""
    logits = of_features(64, 2_500, seed=2)
    chosen = get_encoding("klt0.5").calibrate(of_features(200, 2_500, seed=1))
    basis = basis_of(chosen)
    # One more than there are features: row means are rounded to the grid.
    assert chosen.width(2_500) == len(basis) + 1 == 26
    assert basis @ basis.T / 2048**2 == pytest.approx(np.eye(25), abs=2e-2)
    encoded = chosen.encode(logits)
    assert encoded.codes.shape == (64, 26)
    codes = torch.from_numpy(encoded.codes)
    assert not chosen.invalid(codes, 2_500).any()
    assert chosen.invalid(codes.to(torch.int32).index_fill(1, torch.tensor([25]), 2).to(torch.uint16), 2_500).all()
    assert restore_encoding(json.loads(json.dumps(chosen.describe()))) == chosen
    other = get_encoding("tailp7@8")
    for temperature in (1, 2, 4):
        assert kl(logits, decoded(chosen, logits), temperature).mean() < 1e-3
    assert stored_bytes(encoded, chosen.compression) < 0.1 * stored_bytes(other.encode(logits), other.compression)
    found = choose_encoding(
        of_features(400, 2_500, seed=3), max_kl=1e-2, temperatures=[1, 4], candidates=["klt0.6", "tailp8@8"]
    )
    assert found.encoding.name == "klt0.6"
    assert pilot_rows(["klt0.6"], classes=21_841, least=2_048) == 4_096


def test_a_store_of_many_classes(tmp_path: Path) -> None:
    fitted = get_encoding("klt0.5").calibrate(of_features(100, 2_100, seed=1))
    plan = replace(stores.small_plan(classes=2_100, encoding="klt0.5"), calibrated=fitted)
    stores.small_store(tmp_path / "a.zarr", plan)
    opened = open_store(tmp_path / "a.zarr")
    assert opened.plane(0).shape == (opened.num_samples, 2_100)
    assert verify_deep(tmp_path / "a.zarr") == []


def test_a_pilot_of_too_few_rows_leaves_nothing_out() -> None:
    logits = correlated(200, 100)
    for rows in (2, 50, 199):
        chosen = get_encoding("klt0.2").calibrate(correlated(rows, 100, seed=1))
        assert len(basis_of(chosen)) == 100
        assert kl(logits, decoded(chosen, logits), 1).mean() < 2e-3


def test_numbers_of_classes_that_it_does_not_serve() -> None:
    for wrong in (
        get_encoding("klt0.4").width,
        lambda classes: get_encoding("klt0.4").calibrate(torch.zeros(2, classes)),
    ):
        with pytest.raises(ParamsError, match=r"klt serves 2 to 22,000 classes, found 22,001\. Use tailp"):
            wrong(22_001)
    with pytest.raises(ParamsError, match=r"more than 2,048 classes needs a pilot of logits, found 21,841"):
        get_encoding("klt0.4").width(21_841)
    with pytest.raises(ParamsError, match="is for 80 classes, found 10"):
        get_encoding("klt0.4").calibrate(correlated()).width(10)
    for name in ("klt0", "klt0.001", "klt5", "klt:0.12345", "klt"):
        with pytest.raises(ParamsError):
            get_encoding(name)


def test_damaged_tables_are_refused() -> None:
    described = get_encoding("klt0.4").calibrate(correlated()).describe()
    table = described["table"]
    assert isinstance(table, list)
    long = base64.b64encode(np.full(80, 2049, "<i2").tobytes()).decode()
    for wrong in (["?"], [3], [table[0], "AAAA"], [table[0]] * 81, [long], "x", [""], {}, [str(table[0]) + "\n"]):
        with pytest.raises(CorruptStoreError):
            restore_encoding({**described, "table": wrong})


def test_rows_that_are_never_written_are_found() -> None:
    chosen = get_encoding("klt4").calibrate(correlated())
    codes = torch.from_numpy(chosen.encode(correlated(8)).codes)
    vectors = len(basis_of(chosen))
    assert vectors < 80
    for place, value in ((80, 0), (80, 2), (vectors, 1), (79, 1), (0, 65_535)):
        wrong = codes.to(torch.int32)
        wrong[3, place] = value
        bad = chosen.invalid(wrong.to(torch.uint16), 80)
        assert bad.tolist() == [row == 3 for row in range(8)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fitted = get_encoding("klt0.4").calibrate(correlated(classes=CLASSES))
    stores.small_store(
        tmp_path / "a.zarr", replace(stores.small_plan(classes=CLASSES, encoding="klt0.4"), calibrated=fitted)
    )
    return tmp_path / "a.zarr"


def test_a_chunk_holds_one_coefficient_after_the_other(store: Path) -> None:
    opened = open_store(store)
    codes = zarr.open_group(store, mode="r")["train/codes"]
    assert isinstance(codes, zarr.Array)
    for view in range(opened.num_views + 1):
        plane = opened.codes(view)
        assert np.array_equal(np.asarray(codes[view]), plane.codes.numpy())
        some = np.array([9, 0, 4, 4])
        assert np.array_equal(opened.logits(some, view), opened.plane(view)[some])
    inner = json.loads((store / "train/codes/zarr.json").read_text())["codecs"][0]["configuration"]["codecs"]
    assert [codec["name"] for codec in inner] == ["transpose", "bytes", "blosc", "crc32c"]
    assert inner[0]["configuration"] == {"order": [0, 2, 1]}


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], None])
def test_another_order_is_refused(store: Path, order: list[int] | None) -> None:
    path = store / "train/codes/zarr.json"
    document = json.loads(path.read_text())
    codecs = document["codecs"][0]["configuration"]["codecs"]
    if order is None:
        del codecs[0]
    else:
        codecs[0]["configuration"]["order"] = order
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError):
        open_store(store)


def test_damage_in_a_chunk_is_found(store: Path) -> None:
    assert verify_files(store) == verify_deep(store) == []
    shard = next((store / "train/codes/c/1").rglob("0/0"))
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    assert verify_files(store)
    with pytest.raises(CorruptStoreError):
        open_store(store).plane(1)


def test_extreme_rows_are_bounded() -> None:
    """Rows whose coefficients exceed the largest code are clipped, and stay finite."""
    logits = torch.zeros(2, CLASSES)
    logits[0, 0], logits[1, 1] = 3000.0, -3000.0
    values = decoded(get_encoding("klt0.01"), logits)
    assert values.isfinite().all()
    assert values.argmax(dim=1)[0] == 0
    # The mean of 0 eleven times and -1024, the lowest, is -85.33; the largest code is 32,766 steps of 10 / 1024.
    assert float(values[1, 1]) == pytest.approx(-32_766 * 10 / 1024 - 85.33, abs=0.1)
