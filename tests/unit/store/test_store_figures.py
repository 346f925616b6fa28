"""Stores whose digests fit and whose figures nobody measured: one line from every command that reads a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdpipe.encoding.fidelity import Fidelity
from kdpipe.errors import CorruptStoreError, StoreError
from kdpipe.stages import cli
from kdpipe.store.inspect import summary
from kdpipe.store.reader import open_store
from kdpipe.testing.stores import small_plan, small_store
from tests.unit.store.test_store_damage import signed

Edit = Callable[[dict[str, Any]], object]


def preset(**entries: object) -> Edit:
    return lambda manifest: manifest["fingerprint"]["teacher"]["preset"].update(entries)


def in_teacher(**entries: object) -> Edit:
    return lambda manifest: manifest["fingerprint"]["teacher"].update(entries)


def in_fidelity(**entries: object) -> Edit:
    return lambda manifest: manifest["fidelity"]["train"].update(entries)


def in_manifest(**entries: object) -> Edit:
    return lambda manifest: manifest.update(entries)


def choice(**entries: object) -> Edit:
    table = [{"name": "fp16", "bytes_per_sample": 9.5, "kl": [0.1], "within": True}]
    whole = {"max_kl": 0.5, "temperatures": [4.0], "table": table}
    return lambda manifest: manifest.update(choice=whole | entries)


NONE = Fidelity.none().to_json()
HUGE = 10**4000

FORGED: dict[str, Edit] = {
    "fidelity of 0 rows": lambda manifest: manifest["fidelity"].update(train=NONE),
    "sums of 10^4000": in_fidelity(sums=[str(HUGE)] * 3),
    "sums of 10^9999": in_fidelity(sums=["9" * 9999] * 3),
    "sums that are NaN": in_fidelity(sums=["nan"] * 3),
    "more rows than there are": in_fidelity(rows=41, histograms=["0:41"] * 3),
    "huge numbers of rows": in_fidelity(rows=10**200, histograms=[f"0:{10**200}"] * 3),
    "no figures": lambda manifest: manifest["fidelity"].update(train={}),
    "figures of another split": lambda manifest: manifest["fidelity"].update(val=manifest["fidelity"]["train"]),
    "other temperatures": in_fidelity(temperatures=[1.0, 2.0, 3.0]),
    "no temperature": in_fidelity(temperatures=[], sums=[], histograms=[]),
    "temperatures not measured": choice(temperatures=[8.0]),
    "a budget below 0": choice(max_kl=-1.0),
    "a candidate of NaN bytes": choice(table=[{"name": "x", "bytes_per_sample": 1e300, "kl": [0.1], "within": True}]),
    "a candidate measured twice": choice(
        table=[{"name": "x", "bytes_per_sample": 1.0, "kl": [0.1, 0.2], "within": True}]
    ),
    "a choice that is a text": in_manifest(choice="fp16"),
    "an empty preset": in_teacher(preset={}),
    "a preset that is a text": in_teacher(preset="abc"),
    "a size that is a text": preset(size="abc"),
    "a size below 0": preset(size=-5),
    "960 GB of pixels": preset(size=200_000, resize=200_000),
    "a size that is a fraction": preset(size=32.5),
    "a mean that is a number": preset(mean=-5),
    "two means": preset(mean=[0.5, 0.5]),
    "a mean that is a text": preset(mean=["x", 0.5, 0.5]),
    "a deviation of 0": preset(std=[0.0, 0.5, 0.5]),
    "an unknown interpolation": preset(interpolation="lanczos\x1b[2J"),
    "unknown entries": preset(code="x.y:make"),
    "members that are no presets": preset(members=[{"size": 3}]),
    "10^4000 parameters": in_teacher(parameters=HUGE),
    "a teacher's digest that is none": in_teacher(digest="../../etc/passwd"),
    "a teacher of a long name": in_teacher(name="x" * 100_000),
    "10^4000 seconds": lambda manifest: manifest["about"].update(seconds=HUGE),
    "about that is a list": in_manifest(about=[1]),
    "about of many values": lambda manifest: manifest["about"].update(x=[0] * 200_000),
    "a dataset that is a list": in_manifest(dataset=["x"]),
    "a dataset of a long name": in_manifest(dataset="x" * 100_000),
    "a class of a long name": lambda manifest: manifest["classes"].__setitem__(0, "x" * 100_000),
    "a class that is a number": lambda manifest: manifest["classes"].__setitem__(0, 7),
    "no classes": in_manifest(classes=[]),
    "a million classes": lambda manifest: manifest["classes"].extend(["x"] * 2**20),
    "a file outside": lambda manifest: manifest["files"].update({"../x": {"size": 0, "digest": "0" * 32}}),
    "a file from the root": lambda manifest: manifest["files"].update({"/dev/zero": {"size": 0, "digest": "0" * 32}}),
    "a file of 10^4000 bytes": lambda manifest: manifest["files"]["train/zarr.json"].update(size=HUGE),
    "a probe of 10^400": in_manifest(teacher_probe=[HUGE]),
    "a long probe": in_manifest(teacher_probe=[0.5] * 100_000),
    "a batch of 10^4000": lambda manifest: manifest["fingerprint"].update(batch_size=HUGE),
    "features of 10^9 values": in_manifest(features=10**9),
    "a signal of 2^40 values": in_manifest(signals={"features:x": [2**40]}),
    "2^60 samples": lambda manifest: manifest["splits"]["train"].update(samples=2**60),
    "10^9 probes": lambda manifest: manifest["splits"]["train"].update(probes=10**9),
    "images of no probe": in_manifest(rendering={"decoder": "x", "trial": {}, "sources": {"train": ["0" * 16] * 9}}),
    "a hash that is none": in_manifest(rendering={"decoder": "x", "trial": {"resize": "x"}, "sources": {}}),
    "an encoding of nothing": in_manifest(encoding={}),
    "an encoding of 10^4000": in_manifest(encoding={"name": "fp16", "dtype": HUGE}),
}

IMAGINED = "an encoding of nothing"  # what needs the encoding refuses it


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must end in one short line, and return it."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert ended.value.code == 1
    lines = [line for line in captured.err.strip().splitlines() if line.startswith("kdpipe: ")]
    assert len(lines) == 1, captured.err
    assert len(lines[0]) < 1500, lines[0]
    return lines[0]


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_figure_is_one_line(sealed: Path, forged: str, capsys: pytest.CaptureFixture[str]) -> None:
    signed(sealed, FORGED[forged])
    if forged != IMAGINED:
        for arguments in (("inspect", sealed), ("inspect", sealed, "--json"), ("verify", sealed)):
            assert "small.zarr" in fails(capsys, *arguments)
    for plan in (small_plan(views=2), small_plan()):
        with pytest.raises(StoreError):
            small_store(sealed, plan)
    assert not list(sealed.parent.glob(".*"))
    small_store(sealed, small_plan(batch_size=8), overwrite=True)
    assert summary(sealed)["state"] == "sealed"


@pytest.mark.parametrize(
    "forged", ["an empty preset", "960 GB of pixels", "sums of 10^4000", "10^4000 seconds", IMAGINED]
)
def test_a_forged_figure_ends_other_commands_in_one_line(
    sealed: Path, forged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    signed(sealed, FORGED[forged])
    runs = sealed.parent / "runs"
    data = ("--data", "digits", "--limit-train", 20, "--store", sealed)
    assert "small.zarr" in fails(capsys, "train-student", *data, "--student", "resnet8", "--out", runs)
    cached = ("--data", "digits", "--limit-train", 20, "--teacher", "resnet8", "--out", sealed)
    assert "small.zarr" in fails(capsys, "cache-teacher", *cached).splitlines()[-1]
    assert not runs.exists()
    with pytest.raises(CorruptStoreError):
        open_store(sealed, split="test")  # as benchmark does


def test_what_kdpipe_writes_is_within_the_bounds(tmp_path: Path) -> None:
    """What no manifest can hold is refused in one line, with nothing left behind."""
    plan = small_plan()
    with pytest.raises(StoreError, match="cannot be recorded in a store"):
        small_store(tmp_path / "a.zarr", replace(plan, classes=("x" * 10_000, *plan.classes[1:])))
    assert list(tmp_path.iterdir()) == []


def test_an_honest_manifest_is_believed(sealed: Path) -> None:
    """Each forgery differs from this one, which is read."""
    signed(sealed, choice())
    assert summary(sealed)["budget"]["exceeded"] is False
    signed(sealed, lambda manifest: preset(members=[manifest["fingerprint"]["teacher"]["preset"].copy()] * 2)(manifest))
    assert summary(sealed)["state"] == "sealed"
