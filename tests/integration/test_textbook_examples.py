"""The textbook cases of `examples/`: the commands of each pipeline run here, at the smallest scale."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shlex
import shutil
import struct
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from kdpipe import dataset, open_store
from kdpipe.dataset.ids import sample_id
from kdpipe.presets import find
from kdpipe.stages import cli
from kdpipe.stages.flags import parser_of, resolve
from tests.conftest import ROOT, Outcome

pytest.importorskip("dvc", reason="DVC is not installed: pip install 'kdpipe[dvc]'")

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # of a package of DVC's

Kdpipe = Callable[..., Outcome]
Reproduce = Callable[..., list[str]]

PLANS = {
    ("cifar10_resnet50_mobilenetv2", "params.yaml"): ["train-teacher@ResNet50"],
    ("cifar10_resnet50_mobilenetv2", "params-small.yaml"): [],
    ("mnist", "params.yaml"): ["train-teacher"],
    ("inception_mobilenet", "params.yaml"): ["train-teacher"],
    ("inception_mobilenet", "params-small.yaml"): ["train-teacher"],
    ("imagenet_resnet34_resnet18", "params.yaml"): [],
    ("text", "params.yaml"): ["train-teacher"],
    ("text", "params-small.yaml"): ["train-teacher"],
    ("speech", "params.yaml"): ["train-teacher"],
    ("speech", "params-small.yaml"): ["train-teacher"],
}
"""Every plan, and the stages of it that train a teacher."""

MODULES = ("networks", "reviews", "recordings")
"""Modules of the examples, which have the same names in several of them."""

QUICK = {"rounds": 2, "batch_sizes": "1", "engines": "eager", "cold_starts": False}
"""A benchmark that takes little time."""


def _copy(name: str, tmp_path: Path, params: str = "params.yaml", **changes: Any) -> Path:
    """Copy an example, and change its plan: sections are updated, other values replaced."""
    folder = shutil.copytree(ROOT / "examples" / name, tmp_path / name)
    plan = yaml.safe_load((folder / params).read_text())
    for key, value in changes.items():
        plan[key] = {**plan[key], **value} if isinstance(value, dict) and key != "ways" else value
    (folder / "params.yaml").write_text(yaml.safe_dump(plan))
    return folder


def _stages(folder: Path) -> dict[str, Any]:
    """Return the stages of the pipeline by name, each after those that it depends on."""
    from dvc.repo import Repo

    with Repo.init(str(folder), no_scm=True) as repo:
        left = {stage.name: stage for stage in repo.index.stages}
        graph = repo.index.graph
        ordered: dict[str, Any] = {}
        while left:
            ready = [name for name, stage in left.items() if not {*graph.successors(stage)} & {*left.values()}]
            ordered |= {name: left.pop(name) for name in ready}
    return ordered


@pytest.fixture
def reproduce(kdpipe: Kdpipe, monkeypatch: pytest.MonkeyPatch) -> Reproduce:
    """Run the commands of a pipeline, up to the last but ``skip``; each must leave the outputs that it declares."""

    def run(folder: Path, *, skip: int = 0) -> list[str]:
        stages = dict(list(_stages(folder).items())[: -skip or None])
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [*sys.path])
        for module in MODULES:
            monkeypatch.delitem(sys.modules, module, raising=False)
        for name, stage in stages.items():
            program, *arguments = shlex.split(stage.cmd)
            assert program == "kdpipe"
            outcome = kdpipe(*arguments)
            assert outcome.code == 0, (name, outcome.err)
            for out in stage.outs:
                assert Path(out.fs_path).exists(), (name, out)
        for module in MODULES:
            sys.modules.pop(module, None)
        return list(stages)

    return run


@pytest.mark.parametrize(("name", "params"), PLANS)
def test_every_command_of_a_plan_is_accepted(
    name: str, params: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _copy(name, tmp_path, params)
    stages = _stages(folder)
    monkeypatch.chdir(folder)
    assert [each for each in stages if each.startswith("train-teacher")] == PLANS[name, params]
    assert list(stages)[-1] == "benchmark"
    for stage in stages.values():
        _, command, *arguments = shlex.split(stage.cmd)
        parser = parser_of(cli.settings_of(command), command=command, example="")
        flags = vars(parser.parse_args(arguments))
        file = flags.pop("params")
        resolve(cli.settings_of(command), section=command.replace("-", "_"), file=Path(file), flags=flags)


def test_every_plan_is_tested() -> None:
    cases = {path.parent.name for path in (ROOT / "examples").glob("*/params*.yaml")}
    assert {name for name, _ in PLANS} == cases - {"one_way", "multi_level", "two_way"}


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def _idx(path: Path, array: np.ndarray) -> None:
    """Write an array of bytes as MNIST's files are: two zeros, 8 for unsigned bytes, the dimensions, the data."""
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_mnist(tmp_path: Path, reproduce: Reproduce) -> None:
    """On digits in the layout of MNIST's published files."""
    small = {"epochs": 1, "batch_size": 20}
    folder = _copy(
        "mnist",
        tmp_path,
        train_teacher=small,
        cache_teacher={"min_top1": None},
        train_student={**small, "seeds": "0,1"},
        benchmark=QUICK,
    )
    raw = folder / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, name, count in (("train", "train", 60), ("test", "t10k", 20)):
        digits = dataset.load("digits", split, count)
        images = [Image.fromarray(digits.image(index).numpy()[0]).resize((28, 28)) for index in range(count)]
        _idx(raw / f"{name}-images-idx3-ubyte", np.stack([np.asarray(image) for image in images]))
        _idx(raw / f"{name}-labels-idx1-ubyte", digits.labels.astype(np.uint8))
    ways = ("soft", "mixed", "hard")
    stages = reproduce(folder)
    assert stages[:2] == ["train-teacher", "cache-teacher"]
    assert set(stages[2:-1]) == {f"train-student@{way}" for way in ways}
    assert set(_read(folder / "reports" / "metrics.json")["students"]) == set(ways)
    records = {way: _read(folder / "runs" / way / "seed-1" / "run.json") for way in ways}
    assert {way: record["distill"] for way, record in records.items()} == {
        "soft": "cache",
        "mixed": "cache",
        "hard": "none",
    }
    for way, (soft, hard) in {"soft": (1, 0), "mixed": (0.5, 0.5), "hard": (None, 1)}.items():
        (row,) = _history(folder / "runs" / way / "seed-1")
        expected = hard * float(row["ce"]) + (soft * float(row["kd"]) if soft is not None else 0)
        assert float(row["loss"]) == pytest.approx(expected, rel=1e-5)
    assert (records["soft"]["model"], records["soft"]["num_parameters"]) == ("networks:small", 9266)
    assert open_store(folder / "data" / "teacher.zarr").manifest.fingerprint.teacher.parameters == 871_402


def test_cifar10(tmp_path: Path, reproduce: Reproduce) -> None:
    small = {"limit_train": 40, "limit_test": 20}
    folder = _copy(
        "cifar10_resnet50_mobilenetv2",
        tmp_path,
        data="digits",
        teachers=["resnet8"],
        teacher_file="runs/teacher-resnet8/model.safetensors",
        train_teacher={**small, "epochs": 1},
        cache_teacher={**small, "teacher": "run:runs/teacher-resnet8", "views": 2, "min_top1": None},
        train_student={**small, "student": "resnet8", "epochs": 6, "seeds": "0", "batch_size": 30, "validation": 0.25},
        benchmark={**QUICK, "limit_test": 20, "teacher": "run:runs/teacher-resnet8"},
    )
    reproduce(folder)
    assert set(_read(folder / "reports" / "metrics.json")["students"]) == {"cosine", "plateau", "none"}
    cosine, plateau, none = (_history(folder / "runs" / way / "seed-0") for way in ("cosine", "plateau", "none"))
    assert [float(row["kd_weight"]) for row in cosine] == pytest.approx([0.5] * 5 + [0.25 * (1 - 3**0.5 / 2)])
    for row in cosine:
        assert float(row["kd_weight"]) + float(row["ce_weight"]) == pytest.approx(1)
    assert float(plateau[0]["kd_weight"]) == 0.5
    assert "kd" not in none[0]


def test_inception_and_mobilenet_see_the_same_views_at_their_sizes(tmp_path: Path, reproduce: Reproduce) -> None:
    """With Inception's first version, and a smaller MobileNet, whose weights are quick to draw and to write."""
    small = {"epochs": 1, "batch_size": 2}
    folder = _copy(
        "inception_mobilenet",
        tmp_path,
        "params-small.yaml",
        train_teacher={**small, "model": "torchvision:googlenet"},
        cache_teacher={"views": 1},
        train_student={**small, "student": "torchvision:mobilenet_v3_small"},
    )
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("ants", "bees"):
            place = folder / "photos" / split / label
            place.mkdir(parents=True)
            height, width = random.integers(310, 340, 2)
            Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(place / "0.jpg")
    reproduce(folder, skip=1)  # without the benchmark, which passes batches of 224 pixels many times
    assert open_store(folder / "data" / "teacher.zarr").manifest.fingerprint.teacher.preset["size"] == 299
    for way in ("cache", "none"):
        record = _read(folder / "runs" / f"student-{way}" / "seed-0" / "run.json")
        assert (record["model"], record["preset"]["size"]) == ("torchvision:mobilenet_v3_small", 224)


def test_text(tmp_path: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch) -> None:
    """On film reviews where there are some, else on sentences of a few words."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'kdpipe[examples]'")
    if "KDPIPE_SENTENCES" not in os.environ:
        _sentences(tmp_path / "sentences")
        monkeypatch.setenv("KDPIPE_SENTENCES", str(tmp_path / "sentences"))
    small = {"epochs": 1, "batch_size": 16, "limit_train": 32, "limit_test": 16, "seeds": "0"}
    folder = _copy(
        "text",
        tmp_path,
        "params-small.yaml",
        tune={"epochs": 1},
        train_teacher=small,
        cache_teacher={"views": 1, "limit_train": 32, "limit_test": 16},
        train_student=small,
        benchmark={**QUICK, "limit_test": 16},
    )
    reproduce(folder)
    assert set(_read(folder / "reports" / "metrics.json")["students"]) == {"logits", "layers", "second", "alone"}
    assert {"hidden", "heads"} <= set(_history(folder / "runs" / "layers" / "seed-0")[0])
    tuned = _read(folder / "runs" / "tuned" / "seed-0" / "run.json")
    assert (tuned["model"], tuned["distill"]) == ("networks:teacher", "cache")


def _sentences(folder: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, words in (("positive", "a fine warm film , with wit"), ("negative", "one dull long film , no wit")):
        lines = (" ".join(random.choice(words.split(), size)) for size in random.integers(1, 40, 120))
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def test_speech(tmp_path: Path, reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch) -> None:
    """On spoken digits where there are some, else on tones."""
    if "KDPIPE_SPEECH" not in os.environ:
        _tones(tmp_path / "spoken" / "recordings")
        monkeypatch.setenv("KDPIPE_SPEECH", str(tmp_path / "spoken"))
    small = {"epochs": 1, "batch_size": 16, "limit_train": 40, "limit_test": 20}
    folder = _copy(
        "speech",
        tmp_path,
        "params-small.yaml",
        train_teacher=small,
        cache_teacher={"views": 1, "limit_train": 40, "limit_test": 20},
        train_student=small,
        benchmark={**QUICK, "limit_test": 20},
    )
    reproduce(folder)
    assert set(_read(folder / "reports" / "metrics.json")["students"]) == {"assistant", "student", "direct", "alone"}
    unheard = {
        sample_id(f"{digit}_{speaker}_{number}")
        for digit in range(10)
        for speaker in ("theo", "yweweler")
        for number in range(50)
    }
    train, test = (
        {each.tobytes() for each in open_store(folder / "data" / "assistant.zarr", split=split).sample_ids}
        for split in ("train", "test")
    )
    assert test <= unheard
    assert not train & unheard


def _module(name: str, file: str) -> Any:
    found = importlib.util.spec_from_file_location(file, ROOT / "examples" / name / f"{file}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_vocabulary_is_of_training_sentences_and_equal_ones_are_in_one_split() -> None:
    reviews = _module("text", "reviews")
    sentences = [f"seen film{number} ." for number in range(100)]
    lines = {"negative": sentences, "positive": [f"{line}\u00e9" for line in sentences] + sentences[:50]}
    train, test = (reviews.Reviews(lines, split) for split in ("train", "test"))
    words = {word for key in train.keys for word in reviews.words(_line(lines, key))}
    assert train.vocabulary == test.vocabulary
    assert {"seen", "."} <= {*train.vocabulary} <= words
    assert not {_line(lines, key) for key in train.keys} & {_line(lines, key) for key in test.keys}
    assert len(train) + len(test) == 250
    item, label = test[0]
    assert label == 0
    assert item["input_ids"].tolist()[:2] == [reviews.CLS, reviews.MASK + 1 + list(train.vocabulary).index("seen")]
    assert item["attention_mask"].sum() == 1 + len(reviews.words(_line(lines, test.keys[0])))


def _line(lines: dict[str, list[str]], key: str) -> str:
    name, _, number = key.partition("/")
    return lines[name][int(number)]


def test_the_band_of_a_tone_and_the_loudness_of_noise() -> None:
    recordings = _module("speech", "recordings")
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 8000)
    found = recordings.spectrogram(tone)
    assert found.shape == (recordings.FRAMES, recordings.BANDS)
    mel = [2595 * np.log10(1 + hertz / 700) for hertz in (1000, 4000)]
    assert (found.argmax(1) - (mel[0] / mel[1] * (recordings.BANDS + 1) - 1)).abs().max() < 1
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(0)) / 4
    assert torch.allclose(recordings.spectrogram(noise / 10), recordings.spectrogram(noise), atol=0.05)
    assert (recordings.mel_filters().sum(1) > 0).all()


def _tones(folder: Path) -> None:
    folder.mkdir(parents=True)
    for digit in range(10):
        for speaker, pitch in (("ann", 1.0), ("theo", 1.1)):
            for number in range(4):
                seconds = np.arange(2400 + 200 * number) / 8000
                samples = np.sin(2 * np.pi * 200 * pitch * (digit + 1) * seconds)
                with wave.open(str(folder / f"{digit}_{speaker}_{number}.wav"), "wb") as file:
                    file.setparams((1, 2, 8000, 0, "NONE", ""))
                    file.writeframes((samples * 2**14).astype("<i2").tobytes())


def test_the_plan_for_imagenet_is_the_published_preset() -> None:
    plan = yaml.safe_load((ROOT / "examples" / "imagenet_resnet34_resnet18" / "params.yaml").read_text())
    preset = find("imagenet-kd-512-resnet34-resnet18")
    for section in ("cache_teacher", "train_student"):
        published = getattr(preset, section)
        assert {key: plan[section][key] for key in published} == dict(published)
    figures = (preset.figures.teacher, preset.figures.baseline, preset.figures.distilled)
    text = (ROOT / "examples" / "imagenet_resnet34_resnet18" / "README.md").read_text()
    assert "| {:.2f} | {:.2f} | {:.2f} |".format(*figures) in text
