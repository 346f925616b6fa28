"""Published recipes: their figures and settings, their validity, and what the reader of their files refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe import models
from kdpipe.distil.losses import parse
from kdpipe.errors import ParamsError
from kdpipe.presets import Preset, find, presets, read
from kdpipe.stages.flags import resolve
from kdpipe.stages.presets import as_yaml
from kdpipe.stages.settings.storing import CacheTeacher
from kdpipe.stages.settings.training import TrainStudent
from tests.conftest import ROOT

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

STANDARDIZED_DKD = """
resnet32x4 resnet8x4, vgg13 vgg8, wrn_40_2 wrn_40_1, wrn_40_2 wrn_16_2, resnet56 resnet20, resnet110 resnet32, resnet110 resnet20
77.01, 74.81, 74.89, 76.39, 72.32, 74.29, 71.85
2 9 8, 2 15 2, 2 12 2, 2 12 2, 3 18 2, 2 15 2, 2 15 2

resnet32x4 ShuffleV2, vgg13 MobileNetV2, ResNet50 MobileNetV2
77.37, 69.98, 70.45
2 9 8, 3 9 2, 2 15 2
"""  # noqa: E501
"""The row DKD+Ours, and temperature, weight and BETA in the names of its logs, or mdistiller's BETA 8."""

IMAGENET = """
kd-512-resnet34-resnet18, dkd-512-resnet34-resnet18, kd-512-resnet50-MobileNetV1, dkd-512-resnet50-MobileNetV1
73.31 69.76 71.03, 73.31 69.76 71.70, 76.16 68.87 70.50, 76.16 68.87 72.05

wsld-256-resnet34-resnet18, wsld-256-resnet50-MobileNetV1, kd-768-resnet34-resnet18
73.31 69.76 72.04, 76.16 68.87 71.52, 73.31 69.76 71.37

dot-512-resnet34-resnet18, dot-512-resnet50-MobileNetV1
73.31 69.76 71.72, 76.16 68.87 73.09
"""
"""Teacher, student alone and distilled: mdistiller's README, then that of WSLD, and torchdistill's log.

What is reached alone is torchvision's for ResNet-18, and of WSLD's README for MobileNet.
"""

NEWER = """
crd wrn_40_2 wrn_16_2, crd resnet56 resnet20, crd resnet32x4 resnet8x4, crd vgg13 vgg8
75.48, 71.16, 75.51, 73.94

dot resnet32x4 resnet8x4, dot vgg13 vgg8, dot resnet32x4 ShuffleV2, ctkd resnet56 resnet20, itrd wrn_40_2 wrn_16_2
75.12, 73.77, 75.55, 71.19, 76.12

mlkd resnet56 resnet20, mlkd resnet32x4 resnet8x4, mlkd-standardized resnet32x4 resnet8x4
72.19, 77.08, 78.28

wttm-crd vgg13 vgg8, wkd resnet32x4 resnet8x4
74.71, 76.53
"""
"""The rows CRD, KD+DOT, +CTKD, ITRD, MLKD, MLKD+Ours and WTTM+CRD of the READMEs of RepDistiller, mdistiller, CTKD,
ITRD, logit-standardization-KD and TTM, and WKD-L of its paper."""


def columns(tables: str) -> list[list[str]]:
    """Return the columns of transcribed tables, one list of cells for each."""
    found: list[list[str]] = []
    for table in tables.strip().split("\n\n"):
        rows = [row.split(", ") for row in table.splitlines()]
        found += [list(column) for column in zip(*rows, strict=True)]
    return found


def by_pair(kind: str) -> dict[str, Preset]:
    """Return the presets called KIND-TEACHER-STUDENT by ``TEACHER STUDENT``."""
    pairs = {preset.name: (preset.cache_teacher["teacher"], preset.train_student["student"]) for preset in presets()}
    return {" ".join(map(str, pair)): find(name) for name, pair in pairs.items() if name == "-".join((kind, *pair))}


def settings_of(preset: Preset, tmp_path: Path) -> tuple[CacheTeacher, TrainStudent]:
    """Return the settings of both stages as the command line reads them from the printed preset."""
    file = tmp_path / "params.yaml"
    file.write_text(as_yaml(preset))
    given = {"data": preset.data, "out": tmp_path / "logits.zarr"}
    teacher = resolve(CacheTeacher, section="cache_teacher", file=file, flags=given)
    given = {"data": preset.data, "store": (tmp_path / "logits.zarr",), "out": tmp_path / "run"}
    return teacher, resolve(TrainStudent, section="train_student", file=file, flags=given)


def test_figures_of_repdistiller() -> None:
    found, published = by_pair("cifar100-kd"), columns(REPDISTILLER)
    assert len(found) == len(published) == 13
    for pair, alone, kd in published:
        figures = found[pair].figures
        assert f"{figures.teacher:.2f} {figures.baseline:.2f}" == alone
        assert f"{figures.distilled:.2f}" == kd


def test_figures_of_mdistiller() -> None:
    found, published = by_pair("cifar100-dkd"), columns(MDISTILLER)
    assert len(found) == len(published) == 11
    for pair, dkd in published:
        assert f"{found[pair].figures.distilled:.2f}" == dkd


def test_figures_of_logit_standardization() -> None:
    found, published = by_pair("cifar100-kd-standardized"), columns(STANDARDIZATION)
    assert len(found) == len(published) == 8
    for pair, standardized, temperature in published:
        assert f"{found[pair].figures.distilled:.2f}" == standardized
        assert found[pair].train_student["loss"] == f"kd:standardize=true,temperature={temperature}"
        assert (found[pair].train_student["kd_weight"], found[pair].train_student["ce_weight"]) == (9, 0.1)


def test_figures_and_weights_of_standardized_dkd() -> None:
    """The authors' code multiplies ALPHA, which is 1, and BETA by the weight."""
    found, published = by_pair("cifar100-dkd-standardized"), columns(STANDARDIZED_DKD)
    assert len(found) == len(published) == 10
    for pair, standardized, log in published:
        temperature, weight, beta = map(int, log.split())
        expected = f"dkd:standardize=true,alpha={weight},beta={weight * beta},temperature={temperature}"
        settings = found[pair].train_student
        assert f"{found[pair].figures.distilled:.2f}" == standardized
        assert (settings["loss"], settings["kd_weight"], settings["ce_weight"]) == (
            *(expected, "constant:1,warmup=20", 1),
        )


def test_figures_of_newer_methods_and_of_the_students_alone() -> None:
    published, alone = columns(NEWER), {pair: figures for pair, figures, _ in columns(REPDISTILLER)}
    kinds = {kind for kind, *_ in (each.split() for each, _ in published)}
    assert len(published) == sum(len(by_pair(f"cifar100-{kind}")) for kind in kinds) == 14
    for each, distilled in published:
        kind, pair = each.split(" ", 1)
        figures = by_pair(f"cifar100-{kind}")[pair].figures
        assert f"{figures.teacher:.2f} {figures.baseline:.2f}" == alone[pair]
        assert f"{figures.distilled:.2f}" == distilled


def test_settings_of_newer_methods_are_those_of_their_code(tmp_path: Path) -> None:
    _, mlkd = settings_of(find("cifar100-mlkd-resnet32x4-resnet8x4"), tmp_path)
    steps, learning = mlkd.optimization, mlkd.learning
    assert (steps.epochs, steps.lr, steps.lr_steps, mlkd.view.views_per_sample) == (480, 0.025, (150, 180, 210), 2)
    assert (str(learning.loss), str(learning.kd_weight), str(learning.ce_weight)) == (
        "mlkd:temperature=4",
        "0.9",
        "0.2",
    )
    for name, gap in (("cifar100-dot-resnet32x4-resnet8x4", 0.075), ("imagenet-dot-512-resnet34-resnet18", 0.09)):
        _, dot = settings_of(find(name), tmp_path)
        assert (dot.optimization.dot, dot.optimization.nesterov) == (gap, False)
    _, ctkd = settings_of(find("cifar100-ctkd-resnet56-resnet20"), tmp_path)
    assert str(ctkd.learning.temperature) == "learned:1,21,over=10"
    for preset in presets():
        teacher, student = settings_of(preset, tmp_path)
        kept = set(map(str, teacher.teacher.signals))
        reads = bool(student.learning.loss.layers) or "features" in student.learning.loss.related_by
        assert kept == ({"features:penultimate"} if reads else set())


def test_figures_for_imagenet() -> None:
    found = {preset.name: preset.figures for preset in presets() if preset.name.startswith("imagenet-")}
    published = columns(IMAGENET)
    assert len(found) == len(published) == 9
    for name, top1 in published:
        figures = found[f"imagenet-{name}"]
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
    for preset in presets():
        if preset.name in measured:
            figures = (preset.figures.teacher, preset.figures.baseline, preset.figures.distilled)
            assert list(figures) == pytest.approx([100 * value for value in measured.pop(preset.name)], abs=0.005)
    assert not measured


def test_names_are_unique() -> None:
    assert len({preset.name for preset in presets()}) == len(presets()) == 69


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_a_preset_is_valid(preset: Preset, tmp_path: Path) -> None:
    teacher, student = settings_of(preset, tmp_path)
    assert str(student.learning.loss) == str(parse(str(preset.train_student["loss"])))
    for name in (student.architecture, *teacher.teacher.teacher):
        assert name in models.names() or name.startswith("torchvision:")
        models.create(name, 10)
    assert str(teacher.encoding.encoding) == "fp16"  # which serves every loss
    assert teacher.dataset.limit_train == student.dataset.limit_train
    assert preset.source.paper
    assert preset.source.page.startswith("https://") or (ROOT / preset.source.page).is_file()


def test_the_settings_are_those_of_the_two_repositories(tmp_path: Path) -> None:
    _, student = settings_of(find("cifar100-dkd-vgg13-MobileNetV2"), tmp_path)
    steps, learning = student.optimization, student.learning
    assert (steps.epochs, steps.batch_size, steps.lr, steps.weight_decay) == (240, 64, 0.01, 5e-4)
    assert (steps.lr_schedule, steps.lr_steps, steps.lr_gamma) == ("step", (150, 180, 210), 0.1)
    assert (steps.warmup_epochs, steps.optimizer, steps.nesterov) == (0, "sgd", False)
    assert str(learning.loss) == str(parse("dkd:alpha=1,beta=6,temperature=4"))
    assert (str(learning.kd_weight), str(learning.ce_weight)) == ("constant:1,warmup=20", "1")


@pytest.mark.parametrize(
    ("name", "loss", "numbers"),
    [
        # https://github.com/megvii-research/mdistiller, configs/imagenet/r50_mv1
        ("kd-512-resnet50", "kd:temperature=1", ("0.5", "0.5", 512, 0.2, False)),
        ("dkd-512-resnet50", "dkd:alpha=1,beta=2,temperature=1", ("1", "1", 512, 0.2, False)),
        # https://github.com/bellymonster/Weighted-Soft-Label-Distillation
        ("wsld-256-resnet50", "wsld:temperature=2", ("2.5", "1", 256, 0.1, True)),
    ],
)
def test_the_settings_for_mobilenet_are_the_published_ones(
    name: str, loss: str, numbers: tuple[str | float, ...], tmp_path: Path
) -> None:
    _, student = settings_of(find(f"imagenet-{name}-MobileNetV1"), tmp_path)
    steps, learning = student.optimization, student.learning
    found = (str(learning.kd_weight), str(learning.ce_weight), steps.batch_size, steps.lr, steps.nesterov)
    assert found == numbers
    assert str(learning.loss) == str(parse(loss))
    assert (student.architecture, steps.epochs, steps.weight_decay) == ("MobileNetV1", 100, 1e-4)
    assert (steps.lr_schedule, steps.lr_steps, steps.lr_gamma) == ("step", (30, 60, 90), 0.1)


FILE = """
sources: {ours: {short: a, paper: b, page: c}}
defaults: {data: digits, source: ours, train_student: {lr: 0.1, epochs: 5}, notes: [first]}
methods: {kd: {what: all, train_student: {lr: 0.2, loss: kd}, notes: [second]}}
presets:
  - {name: plain, what: one, pair: [t, s], top1: [null, 1, 2.5]}
  - {name: own, method: kd, pair: [x:t, y:s], top1: [3, 2, 1], train_student: {lr: 0.3}, notes: [third]}
"""


def test_defaults_are_updated_with_the_method_and_the_preset() -> None:
    plain, own = read(FILE)
    assert plain.train_student == {"student": "s", "lr": 0.1, "epochs": 5}
    assert (plain.what, plain.notes, plain.figures.teacher) == ("one", ("first",), None)
    assert own.train_student == {"student": "y:s", "lr": 0.3, "epochs": 5, "loss": "kd"}
    assert (own.what, own.data, own.pair, own.notes) == ("all", "digits", "t -> s", ("first", "second", "third"))
    assert own.cache_teacher == {"teacher": "x:t"}


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ("notes: [third]", "note: [third]", "note\n  Extra inputs are not permitted"),
        ("name: own", "name: plain", "two presets are called 'plain'"),
        ("method: kd", "method: dkd", "own has the method 'dkd', expected one of kd"),
        ("source: ours", "source: theirs", "plain has the source 'theirs', expected one of ours"),
        ("[3, 2, 1]", "[3, 2]", "Field required"),
        ("[3, 2, 1]", "[3, 2, 101]", "less than or equal to 100"),
        ("[3, 2, 1]", "['3', 2, 1]", "should be a valid number"),
        ("{lr: 0.3}", "{lr: [0.3]}", "train_student.lr"),
        ("data: digits, ", "", "data"),
    ],
)
def test_a_faulty_file_is_refused(written: str, instead: str, message: str) -> None:
    assert written in FILE
    with pytest.raises(ValueError, match="(?s)" + message.replace("\n", ".*")):
        read(FILE.replace(written, instead))


def test_an_unknown_name_has_the_nearest() -> None:
    with pytest.raises(ParamsError, match="did you mean 'digits-short'"):
        find("digit-short")


def test_reading_imports_no_torch() -> None:
    code = (
        "import sys, kdpipe.presets; assert kdpipe.presets.presets()\n"
        "assert not {'torch', 'zarr', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
