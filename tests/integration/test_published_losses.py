"""Losses that need more than the logits of a batch: what they read from a store, that they train, and refusals."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdpipe import dataset, open_store
from kdpipe.distil.relations import class_relations
from kdpipe.errors import UnsupportedLossError
from kdpipe.pairing.join import join_checked
from tests.conftest import LIMITS, Built, Outcome, refused, run_command

Kdpipe = Callable[..., Outcome]


@pytest.fixture(scope="module")
def store(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's store with penultimate features."""
    out = tmp_path_factory.mktemp("features") / "s.zarr"
    made = run_command(
        *(None, "cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights, "--device", "cpu"),
        *("--signals", "features:penultimate", "--views", 2, "--out", out),
    )
    assert made.code == 0
    return out


def _train(store: Path, out: Path, *flags: object) -> tuple[object, ...]:
    return (
        *("train-student", *LIMITS, "--store", store, "--student", "resnet8", "--input-size", 16, "--out", out),
        *("--device", "cpu", "--epochs", 1, "--batch-size", 32, *flags),
    )


def _history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("features", [False, True])
def test_classes_are_related_by_the_cosine_of_what_the_store_has_of_them(store: Path, features: bool) -> None:
    digits, opened = dataset.load("digits", "train", 200), open_store(store)
    rows, labels = join_checked(opened, digits), digits.labels.copy()
    labels[::7] = -1
    found = class_relations(opened, rows, labels, features=features)
    vectors = opened.features(rows).astype(np.float64) if features else opened.logits(rows).astype(np.float64)
    if not features:
        vectors -= vectors.mean(axis=1, keepdims=True)
    for i in range(10):
        for j in range(10):
            one, other = (vectors[labels == label].mean(axis=0) for label in (i, j))
            cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            assert found[i, j].item() == pytest.approx(cosine, abs=1e-6)


def test_a_class_without_labels_is_related_to_none(store: Path) -> None:
    digits, opened = dataset.load("digits", "train", 200), open_store(store)
    labels = np.where(digits.labels == 3, -1, digits.labels)
    found = class_relations(opened, join_checked(opened, digits), labels)
    assert found[3].tolist() == found[:, 3].tolist() == np.eye(10)[3].tolist()


def test_class_relations_that_cannot_be_computed_are_one_line(
    built: Built, store: Path, kdpipe: Kdpipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    lacking = kdpipe(*_train(built.store, run, "--loss", "wkd:features=true"))
    refused(
        lacking, "features:penultimate, which", "does not keep", "kdpipe cache-teacher --signals features:penultimate"
    )
    refused(kdpipe(*_train(store, run, "--store", built.store, "--loss", "kd+wkd")), "found 2 stores. Give one --store")
    live = ("--teacher", "resnet8", "--weights", built.weights, "--distill", "live")
    refused(kdpipe(*_train(store, run, *live, "--loss", "wkd")), "found a live teacher")
    assert not run.exists()
    digits = dataset.load("digits", "train", 200)
    with pytest.raises(UnsupportedLossError, match="does not keep"):
        class_relations(open_store(built.store), np.arange(200), digits.labels, features=True)
