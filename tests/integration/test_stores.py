"""Stores as users make them: encodings, budgets, provenance, logits from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdpipe import dataset, open_store
from kdpipe.pairing.join import join
from tests.conftest import LIMITS, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]

STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--epochs", 1, "--device", "cpu")


def _cache(built: Built, out: Path, *extra: object) -> tuple[object, ...]:
    return (
        *("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu"),
        *("--views", 1, "--out", out, *extra),
    )


@pytest.mark.parametrize("name", ["fp16r5", "sqrtp8@4", "topk3"])
def test_encodings_serve_the_losses_that_they_are_made_for(
    built: Built, kdpipe: Kdpipe, tmp_path: Path, name: str
) -> None:
    store = tmp_path / "l.zarr"
    assert kdpipe(*_cache(built, store, "--encoding", name)).code == 0
    assert "nothing to do" in kdpipe(*_cache(built, store, "--encoding", name)).err
    assert kdpipe("verify", store, "--data", "digits").code == 0
    opened, reference = open_store(store), open_store(built.store)
    assert opened.manifest.fingerprint.encoding == name
    if name != "topk3":
        assert np.abs(opened.plane(1) - reference.plane(1)).max() < 0.6
    limit = opened.encoding.max_temperature
    student = (*STUDENT, "--store", store, "--out", tmp_path / "run")
    assert kdpipe(*student, "--temperature", limit or 20).code == 0
    if limit is not None:
        refused(kdpipe(*student, "--temperature", 2 * limit), name, f"up to {limit:g}", "sqrtp8@")


def test_a_budget_chooses_the_encoding(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    sizes = {}
    for budget in (1e-2, 1e-6):
        store = tmp_path / f"{budget}.zarr"
        outcome = kdpipe(*_cache(built, store, "--max-kl", budget, "--at-temperature", 1, "--at-temperature", 4))
        assert outcome.code == 0
        assert outcome.err.count("<- chosen") == 1
        opened, reference = open_store(store), open_store(built.store)
        for temperature in (1.0, 4.0):
            assert _mean_kl(reference.plane(1), opened.plane(1), temperature) <= budget
        sizes[budget] = json.loads(kdpipe("inspect", store, "--json").out)["bytes_per_sample"]
        again = kdpipe(*_cache(built, store, "--max-kl", budget)).err
        assert "nothing to do" in again
        assert "pilot" not in again
        found = json.loads(kdpipe("inspect", store, "--json").out)
        assert found["budget"]["exceeded"] is False
        assert found["encoding"] in [row["name"] for row in found["budget"]["chosen_from"]]
    assert sizes[1e-2] < sizes[1e-6]
    refused(kdpipe(*_cache(built, tmp_path / "a.zarr", "--max-kl", 1e-30)), "no encoding keeps the KL below")


def test_inspect_says_what_encoding_lost(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    store = tmp_path / "l.zarr"
    assert kdpipe(*_cache(built, store, "--encoding", "fp16r2")).code == 0
    opened, reference = open_store(store, split="test"), open_store(built.store, split="test")
    found = json.loads(kdpipe("inspect", store, "--json").out)["splits"]["test"]["fidelity"]
    assert found["rows"] == 60
    for temperature in (1, 2, 4):
        expected = _mean_kl(reference.plane(0), opened.plane(0), temperature)
        assert found[f"kl_t{temperature}_mean"] == pytest.approx(expected, rel=0.05)
    assert "60 test rows: mean KL" in kdpipe("inspect", store).out


def test_people_are_told_what_they_may_do_with_a_store(built: Built, kdpipe: Kdpipe, tmp_path: Path) -> None:
    store = tmp_path / "l.zarr"
    views, told = (
        ("--views", 2),
        ("--title", "Digits", "--license", "CC-BY-4.0", "--allowed-use", "research", "--contact", "a@b.example"),
    )
    assert kdpipe(*_cache(built, store, *views, *told)).code == 0
    digest = open_store(store).digest
    assert digest == open_store(built.store).digest
    assert kdpipe(*_cache(built, store, *views, "--notes", "two views")).code == 0
    shown = kdpipe("inspect", store).out
    for text in (*told[1::2], "two views"):
        assert text in shown
    assert open_store(store).digest == digest
    assert kdpipe("verify", store).code == 0


def _mean_kl(reference: np.ndarray, other: np.ndarray, temperature: float) -> float:
    logs = []
    for logits in (reference, other):
        tempered = logits.astype(np.float64) / temperature
        tempered -= tempered.max(axis=1, keepdims=True)
        logs.append(tempered - np.log(np.exp(tempered).sum(axis=1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())


class TestImport:
    """``kdpipe import-logits``: logits from elsewhere become an ordinary store."""

    @pytest.fixture
    def files(self, built: Built, tmp_path: Path) -> dict[str, Path]:
        """Save what the built store holds as somebody else would hand it over."""
        train, test = open_store(built.store), open_store(built.store, split="test")
        rows = {each.split: join(each, dataset.load("digits", each.split, each.num_samples)) for each in (train, test)}
        arrays = {
            "train": train.plane(0)[rows["train"]],
            "views": np.stack([train.plane(view)[rows["train"]] for view in range(3)]),
            "test": test.plane(0)[rows["test"]].astype(np.float64),
        }
        for name, values in arrays.items():
            np.save(tmp_path / f"{name}.npy", values)
        return {name: tmp_path / f"{name}.npy" for name in arrays}

    COMMAND = ("import-logits", *LIMITS, "--teacher-name", "their ViT", "--encoding", "fp32")

    def test_plain_view(self, built: Built, kdpipe: Kdpipe, files: dict[str, Path], tmp_path: Path) -> None:
        store = tmp_path / "l.zarr"
        command = (*self.COMMAND, "--logits", files["train"], "--test-logits", files["test"], "--out", store)
        assert kdpipe(*command, "--title", "Theirs").code == 0
        for split in ("train", "test"):
            opened, reference = open_store(store, split=split), open_store(built.store, split=split)
            np.testing.assert_allclose(opened.plane(0), reference.plane(0), atol=1e-5)
            assert (opened.sample_ids == reference.sample_ids).all()
        assert opened.manifest.fingerprint.teacher.name == "their ViT"
        assert kdpipe("verify", store, "--data", "digits").code == 0
        assert "nothing to do" in kdpipe(*command).err
        run = tmp_path / "run"
        assert kdpipe(*STUDENT, "--store", store, "--out", run).code == 0
        assert json.loads((run / "run.json").read_text())["recipe"]["name"] == "none"
        compared = kdpipe("benchmark", *LIMITS[:2], "--limit-test", 60, "--run", run, "--out", tmp_path / "r")
        assert "their ViT" in compared.out

    def test_views_of_a_recipe(self, built: Built, kdpipe: Kdpipe, files: dict[str, Path], tmp_path: Path) -> None:
        store = tmp_path / "l.zarr"
        views = ("--recipe", "crop-flip", "--views", 2)
        assert kdpipe(*self.COMMAND, "--logits", files["views"], *views, "--out", store).code == 0
        opened, reference = open_store(store), open_store(built.store)
        for view in range(3):
            np.testing.assert_allclose(opened.plane(view), reference.plane(view), atol=1e-5)
        assert (opened.probe_hashes == reference.probe_hashes).all()
        assert kdpipe("verify", store, "--data", "digits").code == 0
        run = tmp_path / "run"
        assert kdpipe(*STUDENT, "--store", store, "--out", run).code == 0
        compared = kdpipe("benchmark", *LIMITS[:2], "--limit-test", 60, "--run", run, "--out", tmp_path / "r")
        assert compared.code == 0
        assert "no test split" in compared.err

    def test_a_budget(self, kdpipe: Kdpipe, files: dict[str, Path], tmp_path: Path) -> None:
        budget = (*self.COMMAND[:-2], "--max-kl", 1e-3, "--out", tmp_path / "l.zarr")
        assert kdpipe(*budget, "--logits", files["train"]).err.count("<- chosen") == 1
        assert json.loads(kdpipe("inspect", tmp_path / "l.zarr", "--json").out)["budget"]["exceeded"] is False

    def test_what_cannot_be_right_is_refused(self, kdpipe: Kdpipe, files: dict[str, Path], tmp_path: Path) -> None:
        def refuse(values: object, *parts: str, flags: tuple[object, ...] = ()) -> None:
            np.save(tmp_path / "bad.npy", values)
            out = tmp_path / "bad.zarr"
            refused(kdpipe(*self.COMMAND, "--logits", tmp_path / "bad.npy", "--out", out, *flags), *parts)
            assert not (out / "train" / "codes" / "c").exists()

        train = np.load(files["train"])
        refuse(train[:-1], "(199, 10)", "expected (200, 10)")
        refuse(train[:, :9], "(200, 9)", "expected (200, 10)")
        refuse(np.load(files["views"]), "(3, 200, 10)")
        refuse(train, "expected (3, 200, 10)", flags=("--recipe", "crop-flip", "--views", 2))
        refuse(train, "recipe none has the plain view only", flags=("--views", 2))
        refuse(train.astype(int), "int64")
        refuse(np.array([{"a": 1}], dtype=object), "bad.npy", "numpy.save")
        probabilities = np.exp(train - train.max(1, keepdims=True))
        refuse(probabilities / probabilities.sum(1, keepdims=True), "probabilities")
        broken = train.copy()
        broken[7, 3] = np.nan
        refuse(broken, "sample 7", "NaN")
        refuse(train[:, ::-1].copy(), "below --min-top1", flags=("--min-top1", 0.5))
        (tmp_path / "text.npy").write_text("no array")
        refused(kdpipe(*self.COMMAND, "--logits", tmp_path / "text.npy", "--out", tmp_path / "b.zarr"), "text.npy")
        refused(kdpipe(*self.COMMAND, "--logits", tmp_path / "none.npy", "--out", tmp_path / "b.zarr"), "none.npy")


def test_a_store_keeps_the_memory_format_that_it_was_begun_in(
    built: Built, tmp_path: Path, kdpipe: Callable[..., Outcome]
) -> None:
    def cache(name: str, views: int, *flags: object) -> Outcome:
        command = ("cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu")
        return kdpipe(*command, "--views", views, "--out", tmp_path / name, *flags)

    def opened(path: Path) -> tuple[str | None, str]:
        store = open_store(path)
        return store.manifest.fingerprint.memory_format, store.digest

    assert opened(built.store)[0] == "channels_last"
    assert cache("whole.zarr", 2, "--no-channels-last").code == 0
    assert cache("grown.zarr", 1, "--no-channels-last").code == 0
    assert cache("grown.zarr", 2).code == 0
    assert opened(tmp_path / "grown.zarr") == opened(tmp_path / "whole.zarr")
    assert opened(tmp_path / "grown.zarr")[0] is None
    assert "memory_format" not in (tmp_path / "grown.zarr" / "zarr.json").read_text()
    refused(cache("grown.zarr", 2, "--channels-last"), "memory_format: the store has nothing, asked for channels_last")
