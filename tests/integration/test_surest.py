"""`train-student --surest`: the samples that it draws, how they are ranked, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from kdpipe import dataset
from kdpipe.pairing.certainty import margins
from kdpipe.store.reader import open_store
from tests.conftest import LIMITS, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]

STUDENT = ("train-student", *LIMITS, "--student", "resnet8", "--input-size", 16, "--device", "cpu", "--epochs", 2)


def test_margins_are_those_of_the_mean_probabilities_over_the_augmented_views(built: Built) -> None:
    store = open_store(built.store)
    rows = np.array([7, 3, 150, 0])
    views = [softmax(store.logits(rows, view).astype(np.float64), axis=1) for view in range(1, store.num_views + 1)]
    ordered = np.sort(np.mean(views, axis=0), axis=1)
    assert margins(store, rows) == pytest.approx(ordered[:, -1] - ordered[:, -2], abs=1e-12)


def test_the_surest_samples_alone_are_drawn(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    """As by a file of weights that are 1 for the samples with the largest margins and 0 for the others."""
    done = kdpipe(*STUDENT, "--store", built.store, "--surest", 0.3, "--out", tmp_path / "run")
    assert done.code == 0
    assert "Training on the 60 of 200 samples whose class the teacher is surest of." in done.err
    digits, store = dataset.load("digits", "train", 200), open_store(built.store)
    found = margins(store, dataset.find_ids(digits.sample_ids, store.sample_ids))
    chosen = found >= np.sort(found)[-60]
    rows = "".join(f"{key},{int(each)}\n" for key, each in zip(digits.keys, chosen, strict=True))
    (tmp_path / "weights.csv").write_text("key,weight\n" + rows)
    weighed = ("--store", built.store, "--sample-weights", tmp_path / "weights.csv", "--out", tmp_path / "weighed")
    assert kdpipe(*STUDENT, *weighed).code == 0
    files = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("run", "weighed")]
    assert files[0] == files[1]
    records = [json.loads((tmp_path / run / "run.json").read_text()) for run in ("run", "weighed")]
    assert records[0]["lineage"]["sample_weights"] == records[1]["lineage"]["sample_weights"]
    assert records[0]["parameters"]["surest"] == 0.3


def test_a_student_without_soft_targets_may_be_trained_on_them(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    flags = ("--store", built.store, "--distill", "none", "--surest", 0.3)
    assert kdpipe(*STUDENT, *flags, "--out", tmp_path / "run").code == 0


def test_a_run_is_resumed_with_the_same_share_alone(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    run = (*STUDENT, "--store", built.store, "--out", tmp_path / "run")
    assert kdpipe(*run, "--surest", 0.3).code == 0
    refused(kdpipe(*run, "--surest", 0.4, "--resume"), "surest: 0.3 then, 0.4 now")
    assert kdpipe(*run, "--surest", 0.3, "--resume").code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--surest", 0.3), ("surest ranks samples by one store, found 0",)),
        (("--store", "STORE", "--store", "STORE", "--surest", 0.3), ("one store, found 2",)),
        (("--store", "STORE", "--surest", 1), ("--surest", "above 0 and below 1")),
        (("--store", "STORE", "--surest", 0.3, "--balance"), ("surest", "balance", "give one")),
    ],
)
def test_what_does_not_fit_is_refused(
    built: Built, tmp_path: Path, kdpipe: Kdpipe, flags: tuple[object, ...], words: tuple[str, ...]
) -> None:
    given = [built.store if flag == "STORE" else flag for flag in flags]
    refused(kdpipe(*STUDENT, *given, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


def test_samples_that_the_store_lacks_are_refused(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    more = ("train-student", "--data", "digits", "--limit-train", 300, "--limit-test", 40, *STUDENT[-8:])
    assert len(dataset.load("digits", "train", 300)) == 300
    flags = ("--store", built.store, "--distill", "none", "--surest", 0.3, "--out", tmp_path / "run")
    refused(kdpipe(*more, *flags), "has no logits of 100 of the 300 'train' samples", "--surest cannot rank them")
