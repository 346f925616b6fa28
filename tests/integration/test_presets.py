"""Published recipes: their figures, their validity, and one of them from `kdpipe presets` to a trained student."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from stages.params import CacheTeacher, TrainStudent
from stages.resolution import resolve

from kdpipe import models
from kdpipe.distil.losses import make
from kdpipe.views import Recipe
from stages.preset_table import PRESETS, Preset
from tests.conftest import LIMITS, ROOT, Built, Outcome, refused

Kdpipe = Callable[..., Outcome]

REPDISTILLER = """
wrn_40_2 wrn_16_2, wrn_40_2 wrn_40_1, resnet56 resnet20, resnet110 resnet20, resnet110 resnet32, resnet32x4 resnet8x4, vgg13 vgg8
75.61 73.26, 75.61 71.98, 72.34 69.06, 74.31 69.06, 74.31 71.14, 79.42 72.50, 74.64 70.36
74.92, 73.54, 70.66, 70.67, 73.08, 73.33, 72.98

vgg13 MobileNetV2, ResNet50 MobileNetV2, ResNet50 vgg8, resnet32x4 ShuffleV1, resnet32x4 ShuffleV2, wrn_40_2 ShuffleV1
74.64 64.60, 79.34 64.60, 79.34 70.36, 79.42 70.50, 79.42 71.82, 75.61 70.50
67.37, 67.35, 73.81, 74.07, 74.45, 74.83
"""  # noqa: E501
"""The rows Teacher, Student and KD of the two tables in RepDistiller's README, in their order."""

MDISTILLER = """
resnet56 resnet20, resnet110 resnet32, resnet32x4 resnet8x4, wrn_40_2 wrn_16_2, wrn_40_2 wrn_40_1, vgg13 vgg8
71.97, 74.11, 76.32, 76.23, 74.81, 74.68

resnet32x4 ShuffleV1, wrn_40_2 ShuffleV1, vgg13 MobileNetV2, ResNet50 MobileNetV2, resnet32x4 ShuffleV2
76.45, 76.70, 69.71, 70.35, 77.07
"""
"""The row DKD of the two tables in mdistiller's README, in their order."""

STANDARDIZATION = """
resnet32x4 resnet8x4, vgg13 vgg8, wrn_40_2 wrn_40_1, wrn_40_2 wrn_16_2, resnet56 resnet20, resnet110 resnet32
76.62, 74.36, 74.37, 76.11, 71.43, 74.17
2, 3, 2, 2, 2, 2

resnet32x4 ShuffleV2, vgg13 MobileNetV2
75.56, 68.61
2, 3
"""
"""The row KD+Ours of the tables in logit-standardization-KD's README, and the temperatures in the names of its logs."""


IMAGENET = """
kd-512-resnet34-resnet18, dkd-512-resnet34-resnet18, kd-512-resnet50-MobileNetV1, dkd-512-resnet50-MobileNetV1
73.31 69.76 71.03, 73.31 69.76 71.70, 76.16 68.87 70.50, 76.16 68.87 72.05

wsld-256-resnet34-resnet18, wsld-256-resnet50-MobileNetV1, kd-768-resnet34-resnet18
73.31 69.76 72.04, 76.16 68.87 71.52, 73.31 69.76 71.37
"""
"""Teacher, student alone and distilled: mdistiller's README, then that of WSLD, and torchdistill's log.

What is reached alone is torchvision's for ResNet-18, and of WSLD's README for MobileNet.
"""


def columns(tables: str) -> list[list[str]]:
    """Return the columns of transcribed tables, one list of cells for each."""
    found: list[list[str]] = []
    for table in tables.strip().split("\n\n"):
        rows = [row.split(", ") for row in table.splitlines()]
        found += [list(column) for column in zip(*rows, strict=True)]
    return found


def by_pair(kind: str) -> dict[str, Preset]:
    chosen = [
        preset
        for preset in PRESETS
        if preset.name in {f"{kind}{preset.caching['teacher']}-{preset.settings['student']}"}
    ]
    return {f"{preset.caching['teacher']} {preset.settings['student']}": preset for preset in chosen}


def test_figures_of_repdistiller() -> None:
    presets = by_pair("cifar100-kd-")
    published = columns(REPDISTILLER)
    assert len(presets) == len(published) == 13
    for pair, alone, kd in published:
        figures = presets[pair].figures
        assert f"{figures.teacher:.2f} {figures.baseline:.2f}" == alone
        assert f"{figures.distilled:.2f}" == kd


def test_figures_of_mdistiller() -> None:
    presets = by_pair("cifar100-dkd-")
    published = columns(MDISTILLER)
    assert len(presets) == len(published) == 11
    for pair, dkd in published:
        assert f"{presets[pair].figures.distilled:.2f}" == dkd


def test_figures_of_logit_standardization() -> None:
    presets = by_pair("cifar100-kd-standardized-")
    published = columns(STANDARDIZATION)
    assert len(presets) == len(published) == 8
    for pair, standardized, temperature in published:
        assert f"{presets[pair].figures.distilled:.2f}" == standardized
        assert presets[pair].settings["temperature"] == int(temperature)
        assert (presets[pair].settings["loss"], presets[pair].settings["standardize"]) == ("kd", True)


def test_figures_for_imagenet() -> None:
    presets = {preset.name: preset.figures for preset in PRESETS if preset.name.startswith("imagenet-")}
    published = columns(IMAGENET)
    assert len(presets) == len(published) == 7
    for name, top1 in published:
        figures = presets[f"imagenet-{name}"]
        assert f"{figures.teacher:.2f} {figures.baseline:.2f} {figures.distilled:.2f}" == top1


def test_figures_of_our_own_are_those_of_the_benchmarks() -> None:
    results = ROOT / "benchmarks" / "results"
    single = json.loads((results / "cifar10.json").read_text())["accuracy"]
    seeds = json.loads((results / "consistency.json").read_text())
    measured = {
        "cifar10-short": (single["store"]["teacher_test_top1"], single["none"]["top1"], single["cache"]["top1"]),
        "cifar10-short-5000": (
            *(seeds["teacher_test_top1"], seeds["arms"]["none"]["top1"]["mean"]),
            seeds["arms"]["cache-16"]["top1"]["mean"],
        ),
    }
    for preset in PRESETS:
        if preset.name in measured:
            figures = (preset.figures.teacher, preset.figures.baseline, preset.figures.distilled)
            assert list(figures) == pytest.approx([100 * value for value in measured.pop(preset.name)], abs=0.005)
    assert not measured


def test_names_are_unique() -> None:
    assert len({preset.name for preset in PRESETS}) == len(PRESETS)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_is_valid(preset: Preset, tmp_path: Path, kdpipe: Kdpipe) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(kdpipe("presets", preset.name).out)
    given = {"data": preset.data, "store": (tmp_path / "logits.zarr",), "out": tmp_path / "run"}
    student = resolve(TrainStudent, section="train_student", file=file, flags=given)
    given = {"data": preset.data, "out": tmp_path / "logits.zarr"}
    teacher = resolve(CacheTeacher, section="cache_teacher", file=file, flags=given)

    make(student.loss, temperature=student.temperatures[0], **student.loss_settings)
    Recipe.parse(teacher.recipe)
    for name in (student.architecture, *teacher.teacher):
        known = name in models.names() or name.startswith("torchvision:")
        assert known
        models.create(name, 10)
    assert teacher.encoding == "fp16"  # which serves every loss
    assert teacher.limit_train == student.limit_train
    assert preset.source.paper
    assert preset.source.page.startswith("https://") or (ROOT / preset.source.page).is_file()


def test_the_settings_are_those_of_the_two_repositories(tmp_path: Path, kdpipe: Kdpipe) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(kdpipe("presets", "cifar100-dkd-vgg13-MobileNetV2").out)
    given = {"data": "cifar100:PATH", "store": (tmp_path,), "out": tmp_path}
    params = resolve(TrainStudent, section="train_student", file=file, flags=given)
    assert (params.epochs, params.batch_size, params.lr, params.weight_decay) == (240, 64, 0.01, 5e-4)
    assert (params.lr_schedule, params.lr_steps, params.lr_gamma) == ("step", (150, 180, 210), 0.1)
    assert (params.warmup_epochs, params.optimizer, params.nesterov) == (0, "sgd", False)
    assert (params.loss, params.temperature, params.alpha, params.beta) == ("dkd", 4, 1, 6)
    assert (params.kd_weight, params.ce_weight) == ("constant:1,warmup=20", 1)


@pytest.mark.parametrize(
    ("name", "loss", "numbers"),
    [
        # https://github.com/megvii-research/mdistiller, configs/imagenet/r50_mv1
        ("kd-512-resnet50", "kd", (1, None, 0.5, 0.5, 512, 0.2, False)),
        ("dkd-512-resnet50", "dkd", (1, 2, 1, 1, 512, 0.2, False)),
        # https://github.com/bellymonster/Weighted-Soft-Label-Distillation
        ("wsld-256-resnet50", "wsld", (2, None, 2.5, 1, 256, 0.1, True)),
    ],
)
def test_the_settings_for_mobilenet_are_the_published_ones(
    name: str, loss: str, numbers: tuple[float | None, ...], tmp_path: Path, kdpipe: Kdpipe
) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(kdpipe("presets", f"imagenet-{name}-MobileNetV1").out)
    given = {"data": "folder:PATH", "store": (tmp_path,), "out": tmp_path}
    params = resolve(TrainStudent, section="train_student", file=file, flags=given)
    found = (params.temperature, params.beta, params.kd_weight, params.ce_weight)
    assert (*found, params.batch_size, params.lr, params.nesterov) == numbers
    assert (params.loss, params.architecture, params.epochs, params.weight_decay) == (loss, "MobileNetV1", 100, 1e-4)
    assert (params.lr_schedule, params.lr_steps, params.lr_gamma) == ("step", (30, 60, 90), 0.1)


def test_a_mobilenet_preset_trains_on_small_images(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    file, run = tmp_path / "params.yaml", tmp_path / "run"
    file.write_text(kdpipe("presets", "imagenet-dkd-512-resnet50-MobileNetV1").out)
    flags = ("--params", file, "--store", built.store, "--input-size", 32, "--epochs", 1, "--device", "cpu")
    assert kdpipe("train-student", *LIMITS, *flags, "--out", run).code == 0
    record = json.loads((run / "run.json").read_text())
    assert (record["model"], record["preset"]["size"]) == ("MobileNetV1", 32)


def test_a_printed_preset_trains(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(kdpipe("presets", "digits-short").out)
    store, run = tmp_path / "logits.zarr", tmp_path / "run"
    teacher = ("--teacher", "resnet8", "--weights", built.weights, "--views", 1, "--device", "cpu")
    assert kdpipe("cache-teacher", *LIMITS, "--params", file, *teacher, "--out", store).code == 0
    flags = ("--params", file, "--store", store, "--epochs", 1, "--device", "cpu", "--out", run)
    assert kdpipe("train-student", *LIMITS, *flags).code == 0
    with (run / "history.csv").open() as history:
        (row,) = csv.DictReader(history)
    assert float(row["loss"]) == pytest.approx(0.9 * float(row["kd"]) + 0.1 * float(row["ce"]), rel=1e-5)


def test_a_published_preset_s_settings_reach_the_run(built: Built, tmp_path: Path, kdpipe: Kdpipe) -> None:
    file, run = tmp_path / "params.yaml", tmp_path / "run"
    file.write_text(kdpipe("presets", "cifar100-dkd-wrn_40_2-wrn_16_2").out)
    flags = ("--params", file, "--store", built.store, "--student", "resnet8", "--epochs", 1, "--device", "cpu")
    assert kdpipe("train-student", *LIMITS, *flags, "--out", run).code == 0
    with (run / "history.csv").open() as history:
        (row,) = csv.DictReader(history)
    assert float(row["kd_weight"]) == pytest.approx(1 / 20)
    assert float(row["loss"]) == pytest.approx(float(row["kd"]) / 20 + float(row["ce"]), rel=1e-5)


def test_the_list_is_plain_where_it_is_piped(kdpipe: Kdpipe) -> None:
    listed = kdpipe("presets")
    assert listed.code == 0
    lines = listed.out.splitlines()
    assert len(lines) == 1 + len(PRESETS)
    assert listed.out.isascii()
    (line,) = [line for line in lines if line.startswith("cifar100-kd-wrn_40_2-wrn_16_2 ")]
    assert re.split(r"\s{2,}", line)[1:] == [
        *("wrn_40_2 -> wrn_16_2", "75.61", "73.26", "74.92", "Tian 2020, RepDistiller"),
    ]


def test_a_terminal_gets_a_table(kdpipe: Kdpipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    lines = kdpipe("presets").out.splitlines()
    assert all(any(preset.name in line for line in lines) for preset in PRESETS)
    assert any("\u2502" in line for line in lines)


def test_programs_get_json(kdpipe: Kdpipe) -> None:
    everything = json.loads(kdpipe("presets", "--json").out)
    assert [preset["name"] for preset in everything] == [preset.name for preset in PRESETS]
    (one,) = json.loads(kdpipe("presets", "digits-short", "--json").out)
    assert one["figures"] == {"teacher": None, "baseline": None, "distilled": None}
    assert one["settings"] == yaml.safe_load(kdpipe("presets", "digits-short").out)["train_student"]


def test_a_slip_in_the_name(kdpipe: Kdpipe) -> None:
    refused(kdpipe("presets", "cifar100-kd-resnet56-resnet02"), "did you mean 'cifar100-kd-resnet56-resnet20'")


def test_listing_imports_no_torch() -> None:
    script = (
        "import sys; from stages.cli import main\n"
        "try: main(['presets', *sys.argv[1:]])\n"
        "except SystemExit as done: assert not done.code\n"
        "assert not {'torch', 'zarr', 'torchvision'} & set(sys.modules)"
    )
    for arguments in ([], ["digits-short"], ["--json"]):
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, cwd=ROOT)
