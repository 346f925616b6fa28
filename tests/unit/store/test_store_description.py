"""What a store says besides its logits: what encoding lost, how it was chosen, features, and what people wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from kdpipe.errors import CorruptStoreError, DivergedError, ModelError, StaleStoreError, StoreError
from kdpipe.store.inspect import summary
from kdpipe.store.ledger import Ledger
from kdpipe.store.plan import Plan
from kdpipe.store.reader import open_store
from kdpipe.store.sections import Candidate, Choice
from kdpipe.store.settings import Provenance
from kdpipe.store.verify import verify_files
from kdpipe.store.writer import build
from kdpipe.testing import stores
from kdpipe.testing.stores import contents, fill, shard_logits, small_plan, small_store


def kl_by_hand(reference: np.ndarray[Any, Any], decoded: np.ndarray[Any, Any], temperature: float) -> Any:
    def log_softmax(logits: np.ndarray[Any, Any]) -> Any:
        shifted = logits.astype(np.float64) / temperature
        shifted -= shifted.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(decoded)
    return (np.exp(p) * (p - q)).sum(axis=1)


def choice(max_kl: float, *temperatures: float) -> Choice:
    row = Candidate(name="fp16r1", bytes_per_sample=10.0, kl=(1e-3,) * len(temperatures), within=True)
    return Choice(max_kl=max_kl, temperatures=temperatures, table=(row,))


def coarse(**changes: Any) -> Plan:
    return replace(small_plan(encoding="fp16r1"), **changes)


def test_fidelity_of_every_row(tmp_path: Path) -> None:
    small_store(tmp_path / "a.zarr", coarse(choice=choice(0.5, 3.0)))
    for split, samples, planes in (("train", stores.TRAIN, 2), ("test", stores.TEST, 1)):
        opened = open_store(tmp_path / "a.zarr", split=split)
        values = {1: [], 2: [], 3: [], 4: []}
        agreeing = 0
        for view in range(planes):
            reference, decoded = stores.random_logits(split, view, samples=samples), opened.plane(view)
            agreeing += int((reference.argmax(1) == decoded.argmax(1)).sum())
            for temperature, found in values.items():
                found.extend(kl_by_hand(reference, decoded, temperature))
        figures = summary(tmp_path / "a.zarr")["splits"][split]["fidelity"]
        assert figures["rows"] == samples * planes
        assert figures["top1_agreement"] == agreeing / (samples * planes)
        for temperature, found in values.items():
            assert figures[f"kl_t{temperature}_mean"] == pytest.approx(np.mean(found), rel=1e-9)
            last = np.sort(found)[int(np.ceil(0.99 * len(found))) - 1]
            assert last <= figures[f"kl_t{temperature}_p99"] <= 1.048 * last


def test_a_resumed_and_an_extended_build_measure_the_same(tmp_path: Path) -> None:
    whole = small_store(tmp_path / "whole.zarr", small_plan(views=2)).fidelity
    stores.start_store(tmp_path / "resumed.zarr", small_plan(views=2), shards=4)
    assert small_store(tmp_path / "resumed.zarr", small_plan(views=2)).fidelity == whole
    small_store(tmp_path / "extended.zarr", small_plan(views=1))
    with build(tmp_path / "extended.zarr", small_plan(views=2)) as builder:
        fill(builder, at_most=2)
    assert small_store(tmp_path / "extended.zarr", small_plan(views=2)).fidelity == whole


def test_a_sealed_shard_computed_again_counts_once(tmp_path: Path) -> None:
    whole = small_store(tmp_path / "whole.zarr", small_plan(views=2)).fidelity
    store = tmp_path / "damaged.zarr"
    small_store(store, small_plan(views=1))
    with build(store, small_plan(views=2)):
        pass
    (store / "train/codes/c/0/1/0").write_bytes(b"damaged")
    assert small_store(store, small_plan(views=2)).fidelity == whole


def test_damaged_figures_in_the_ledger_cost_their_shard(tmp_path: Path) -> None:
    whole = small_store(tmp_path / "whole.zarr").fidelity
    store = tmp_path / "resumed.zarr"
    stores.start_store(store, shards=3)
    path = Ledger(store).path
    path.write_text(path.read_text().replace('"rows": 8', '"rows": 9', 1))
    with build(store, small_plan()) as builder:
        assert fill(builder) == stores.SHARDS - 2
        assert builder.seal({}).fidelity == whole


@pytest.mark.parametrize(("max_kl", "exceeded"), [(1e-9, True), (10.0, False)])
def test_budget(tmp_path: Path, max_kl: float, exceeded: bool) -> None:
    small_store(tmp_path / "a.zarr", coarse(choice=choice(max_kl, 1.0, 4.0)))
    found = summary(tmp_path / "a.zarr")
    assert found["budget"]["exceeded"] is exceeded
    figures = found["splits"]["train"]["fidelity"]
    assert found["budget"]["temperatures"] == [1.0, 2.0, 4.0], "those measured over the whole span"
    assert found["budget"]["kl"] == [figures[f"kl_t{t}_mean"] for t in (1, 2, 4)]
    assert [row["name"] for row in found["budget"]["chosen_from"]] == ["fp16r1"]


def test_the_choice_is_kept_from_the_start(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    first, second = choice(0.5, 1.0), choice(0.25, 1.0)
    stores.start_store(store, coarse(choice=first), shards=2)
    assert json.loads(Ledger(store).path.read_text().splitlines()[0]) == {"choice": first.model_dump(mode="json")}
    assert summary(store)["budget"]["max_kl"] == 0.5
    assert summary(store)["budget"]["exceeded"] is None
    assert small_store(store, coarse(choice=second)).choice == first


def test_figures_choice_and_provenance_are_not_part_of_the_digest(tmp_path: Path) -> None:
    plain = small_store(tmp_path / "a.zarr", coarse())
    told = small_store(
        tmp_path / "b.zarr", coarse(choice=choice(0.5, 3.0), provenance=Provenance(title="Flowers", license="CC0-1.0"))
    )
    assert told.digest == plain.digest
    assert told.checksum != plain.checksum
    assert plain.planes == told.planes


def test_provenance_is_shown_and_can_be_told_later(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    small_store(store, replace(small_plan(), provenance=Provenance(title="Flowers", contact="a@b.example")))
    assert summary(store)["provenance"] == {"title": "Flowers", "contact": "a@b.example"}
    before = contents(store)
    small_store(store, replace(small_plan(), provenance=Provenance(title="Flowers, second edition", notes="für alle")))
    assert summary(store)["provenance"] == {
        "title": "Flowers, second edition",
        "contact": "a@b.example",
        "notes": "für alle",
    }
    after = contents(store)
    assert {name for name in before if before[name] != after[name]} == {"zarr.json"}
    small_store(store)
    assert contents(store) == after
    small_store(store, small_plan(views=2))
    assert summary(store)["provenance"]["notes"] == "für alle"


class TestFeatures:
    """Penultimate features beside the logits."""

    DIM = 7

    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        return self.make(tmp_path / "a.zarr")

    def features(self, split: str, view: int, samples: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(100 * view + len(split))
        return torch.randn(samples, self.DIM, generator=generator)

    def make(self, store: Path, *, at_most: int | None = None) -> Path:
        with build(store, replace(small_plan(), signals={"features:penultimate": (self.DIM,)})) as builder:
            waiting = [shard for shard in stores.all_shards(builder) if not builder.is_done(shard)]
            for shard in waiting[:at_most]:
                samples = builder.manifest.splits[shard.split].samples
                plane = self.features(shard.split, shard.view, samples)
                builder.submit(
                    shard, shard_logits(builder, shard), {"features:penultimate": plane[shard.start : shard.stop]}
                )
            builder.drain()
            if at_most is None:
                builder.seal({"made": "for a test"})
        return store

    def test_are_kept_in_float16(self, store: Path) -> None:
        array = zarr.open_group(store, mode="r")["train/features"]
        assert array.shape == (2, stores.TRAIN, self.DIM)
        assert array.metadata.dimension_names == ("view", "sample", "feature")
        for view in range(2):
            expected = self.features("train", view, stores.TRAIN).half().numpy()
            np.testing.assert_array_equal(array[view], expected)
            rows = [7, 0, 19, 7]
            np.testing.assert_array_equal(open_store(store).features(rows, view), expected[rows])
        assert summary(store)["features"] == self.DIM

    def test_damaged_or_absent_are_errors(self, store: Path, tmp_path: Path) -> None:
        path = store / "train/features/c/1/2/0"
        content = bytearray(path.read_bytes())
        content[3] ^= 1
        path.write_bytes(content)
        opened = open_store(store)
        with pytest.raises(CorruptStoreError, match="features of view 1 of 'train', rows 16 to 17"):
            opened.features([0, 17], view=1)
        opened.features([0, 15], view=1)
        assert verify_files(store) == ["train/features/c/1/2/0 does not match its digest"]
        small_store(tmp_path / "plain.zarr")
        with pytest.raises(StoreError, match="--signals features:penultimate"):
            open_store(tmp_path / "plain.zarr").features([0])

    def test_resume_to_the_same_bytes(self, store: Path, tmp_path: Path) -> None:
        self.make(tmp_path / "b.zarr", at_most=3)
        assert contents(self.make(tmp_path / "b.zarr")) == contents(store)

    def test_are_part_of_what_was_asked_for(self, store: Path) -> None:
        with (
            pytest.raises(StaleStoreError, match="features:penultimate: the store has 7, asked for none"),
            build(store, small_plan()),
        ):
            pass

    def test_that_are_missing_or_too_large_are_refused(self, tmp_path: Path) -> None:
        with build(
            tmp_path / "b.zarr", replace(small_plan(), signals={"features:penultimate": (self.DIM,)})
        ) as builder:
            shard = stores.all_shards(builder)[0]
            logits = shard_logits(builder, shard)
            with pytest.raises(ModelError, match="features:penultimate of shape None"):
                builder.submit(shard, logits)
            huge = torch.zeros(len(logits), self.DIM)
            huge[2, 3] = 7e4
            builder.submit(shard, logits, {"features:penultimate": huge})
            with pytest.raises(DivergedError, match=f"features.*row {shard.start + 2}"):
                builder.drain()
            assert not builder.is_done(shard)


def test_provenance_is_a_group_of_settings_with_help() -> None:
    assert list(Provenance.model_fields) == ["title", "license", "allowed_use", "contact", "citation", "notes"]
    for name, field in Provenance.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description
    assert Provenance.of({"title": "Flowers"}).title == "Flowers"


def test_looking_at_a_store_does_not_import_torch() -> None:
    program = "import sys, kdpipe.store.inspect, kdpipe.store.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
