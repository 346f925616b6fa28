"""What caching saved, in figures that can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kdpipe.distil.targets import savings
from kdpipe.store.reader import LogitStore


@dataclass
class Stored:
    """The parts of a store that are asked."""

    seconds: Any
    precision: str = "fp32"

    @property
    def manifest(self) -> Any:
        splits = {"train": SimpleNamespace(samples=1000, planes=5), "test": SimpleNamespace(samples=500, planes=1)}
        fingerprint = SimpleNamespace(precision=self.precision)
        return SimpleNamespace(about={"seconds": self.seconds}, splits=splits, fingerprint=fingerprint)


def test_passes_take_as_long_as_the_cache_took_for_as_many_rows() -> None:
    """5,500 rows in 55 s are 100 a second: 20 epochs of 1,000 images would take 200 s."""
    found = savings(cast(LogitStore, Stored(55.0)), samples=1000, epochs=20)
    assert found is not None
    assert (found.passes, found.seconds, found.store_seconds, found.pays_from) == (20, 200.0, 55.0, 1)
    assert str(found).startswith("Saved 20 passes of the teacher over 1,000 images, about 200 s")


@pytest.mark.parametrize(("epochs", "students"), [(1, 6), (2, 3), (5, 2), (6, 1)])
def test_students_until_the_store_has_paid_for_itself(epochs: int, students: int) -> None:
    found = savings(cast(LogitStore, Stored(55.0)), samples=1000, epochs=epochs)
    assert found is not None
    assert found.pays_from == students


def test_all_students_count() -> None:
    found = savings(cast(LogitStore, Stored(55.0)), samples=1000, epochs=20, students=3)
    assert found is not None
    assert (found.passes, found.seconds, found.pays_from) == (60, 200.0, 1)
    counted = "Saved 60 passes of the teacher over 1,000 images (20 for each of 3 students), about 600 s"
    assert str(found).startswith(counted)


@pytest.mark.parametrize("stored", [Stored(None), Stored(0), Stored(55.0, precision="imported")])
def test_where_it_is_not_known_nothing_is_said(stored: Stored) -> None:
    assert savings(cast(LogitStore, stored), samples=1000, epochs=20) is None
