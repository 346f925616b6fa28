"""`--student` several times and `--fleet` from the command line: every student is the run that was asked for alone."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from kdpipe import dataset
from tests.conftest import LIMITS, TIGHT, Built, Outcome, refused, run_command
from tests.networks import DROPPING, SEEN, SMALL
from tests.processes import Server, Started

Kdpipe = Callable[..., Outcome]
Flags = dict[str, Any]

EPOCHS = 2
SHARED = ("--device", "cpu", "--epochs", EPOCHS, "--batch-size", 32, "--input-size", 16, "--trust-code")
TIMES = ("seconds", "images_per_second")

FLEET: list[Flags] = [
    {"student": SMALL},
    {
        "student": DROPPING,
        "seed": 3,
        "loss": "dkd",
        "temperature": 2.0,
        "kd_weight": "cosine:0.9,0.5",
        "ce_weight": 0.5,
    },
    {"name": "wide", "student": SMALL, "input_size": 24, "optimizer": "adamw", "ema": 0.9, "label_smoothing": 0.1},
    {"name": "plain", "student": SMALL, "seed": 5, "lr": 0.02, "lr_schedule": "step", "lr_steps": [1]}
    | {"loss": "kd:standardize=true", "nesterov": False, "clip_grad_norm": 1.0, "warmup_epochs": 0.5},
]
"""Another architecture, loss, temperature, seed, input size, optimizer, average and schedule each."""


def _name(student: Flags) -> str:
    return str(student.get("name", student["student"].rpartition(":")[2]))


def _flags(student: Flags) -> list[object]:
    """Return a student's settings as they are given to a run alone."""
    flags: list[object] = []
    for key, value in student.items():
        flag = key.replace("_", "-")
        if key == "name":
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, list) else value]
    return flags


def _fleet(folder: Path, students: Any) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(students))
    return path


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return [{key: text for key, text in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def _metrics(run: Path) -> dict[str, Any]:
    return {key: value for key, value in _json(run / "metrics.json").items() if key not in TIMES}


def _record(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = _json(run / "run.json")
    for key in ("out", "resume", "checkpoint_every"):
        del record["parameters"][key]
    return record


def _alike(run: Path, alone: Path) -> None:
    assert {path.name for path in run.iterdir()} == {path.name for path in alone.iterdir()}
    for name in ("model.safetensors", "best.safetensors"):
        if (alone / name).exists():
            assert (run / name).read_bytes() == (alone / name).read_bytes(), (run, name)
    for read in (_history, _metrics, _record):
        assert read(run) == read(alone), run
    assert len(_history(run)) == EPOCHS


@pytest.fixture
def train(kdpipe: Kdpipe) -> Kdpipe:
    return lambda *flags: kdpipe("train-student", *SHARED, *flags)


@pytest.fixture(scope="module")
def singles(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each student of ``FLEET`` trained alone from the store, with validation."""
    out = tmp_path_factory.mktemp("alone")
    for student in FLEET:
        flags = (*LIMITS, *SHARED, "--store", built.store, "--validation", 0.2, *_flags(student))
        assert run_command(None, "train-student", *flags, "--out", out / _name(student)).code == 0
    return out


@pytest.mark.parametrize("reverse", [False, True])
def test_each_student_is_the_run_that_was_asked_for_alone(
    built: Built, singles: Path, tmp_path: Path, train: Kdpipe, reverse: bool
) -> None:
    students = FLEET[::-1] if reverse else FLEET
    flags = (*LIMITS, "--store", built.store, "--validation", 0.2, "--fleet", _fleet(tmp_path, students))
    ran = train(*flags, "--out", tmp_path / "runs")
    assert ran.code == 0, ran.err
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"small", "dropping", "wide", "plain"}
    for student in FLEET:
        _alike(tmp_path / "runs" / _name(student), singles / _name(student))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 training digits, one in three in a folder of its class and the others in none; 20 test digits."""
    root = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 72), ("test", 20)):
        digits = dataset.load("digits", split, count)
        for index, label in enumerate(digits.labels):
            known = split == "test" or index % 3 == 0
            place = root / split / f"class{label}" if known else root / "unlabeled"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.image(index).numpy().transpose(1, 2, 0)).save(place / f"{index:03}.png")
    return root


def _assert_all_alike(folder: Path, train: Kdpipe, students: list[Flags], *shared: object) -> None:
    """Train a fleet, then each of its students alone."""
    ran = train(*shared, "--fleet", _fleet(folder, students), "--out", folder / "runs")
    assert ran.code == 0, ran.err
    for student in students:
        assert train(*shared, *_flags(student), "--out", folder / "alone").code == 0
        _alike(folder / "runs" / _name(student), folder / "alone")
        shutil.rmtree(folder / "alone")


UNTAUGHT: list[Flags] = [
    {"student": SMALL},
    {"student": DROPPING, "seed": 3, "ema": 0.9},
    {"name": "wide", "student": SMALL, "input_size": 24},
]


def test_mixed_images_without_a_teacher(tmp_path: Path, train: Kdpipe) -> None:
    _assert_all_alike(tmp_path, train, UNTAUGHT, *LIMITS, "--recipe", "crop-flip+mixup:0.4+cutmix:1")


ONE_APART: dict[str, Flags] = {
    "architecture": {"student": DROPPING},
    "loss": {"loss": "dkd"},
    "temperature": {"temperature": 1.5},
    "seed": {"seed": 1},
}


@pytest.mark.parametrize("setting", ONE_APART)
def test_students_that_are_one_setting_apart(built: Built, tmp_path: Path, train: Kdpipe, setting: str) -> None:
    first = {"name": "first", "student": SMALL}
    students = [first, {**first, "name": "second", **ONE_APART[setting]}]
    _assert_all_alike(tmp_path, train, students, *LIMITS, "--store", built.store)
    histories = [_history(tmp_path / "runs" / name) for name in ("first", "second")]
    assert histories[0] != histories[1]


@pytest.mark.parametrize("sizes", [(None, None, None), (None, 16, 48), (16, 48, None), (16, 48, 16)])
def test_a_live_teacher_runs_once_for_all(tmp_path: Path, train: Kdpipe, sizes: tuple[int | None, ...]) -> None:
    """The teacher's images are of 32 x 32 pixels, which is also what students have without their own size."""
    own: list[Flags] = [{"student": SMALL}, {"student": DROPPING, "seed": 3}, {"student": SMALL, "loss": "dkd"}]
    students = [
        {**student, "name": f"student-{number}"} | ({} if size is None else {"input_size": size})
        for number, (student, size) in enumerate(zip(own, sizes, strict=True))
    ]
    SEEN.clear()
    live = (*LIMITS, "--teacher", "tests.networks:counting", "--statistics", "data", "--validation", 0.2)
    live = (*live, "--input-size", 32)
    _assert_all_alike(tmp_path, train, students, *live)
    batches = [(32, 3, 32, 32)] * 5
    assert [shape for shape in SEEN if shape[0] == 32] == EPOCHS * batches * (1 + len(students))


def test_balanced_classes(built: Built, tmp_path: Path, train: Kdpipe) -> None:
    _assert_all_alike(tmp_path, train, FLEET[:3], *LIMITS, "--store", built.store, "--balance", "--data-seed", 4)


def test_a_store_that_does_not_fit_in_memory(chunked: Path, tmp_path: Path, train: Kdpipe) -> None:
    limit = TIGHT / 1024**3
    _assert_all_alike(tmp_path, train, FLEET[:3], *LIMITS, "--store", chunked, "--memory-limit", limit)


def test_images_of_which_some_have_no_label(folder: Path, tmp_path: Path, train: Kdpipe) -> None:
    data = ("--data", f"folder:{folder}", "--device", "cpu")
    teacher, store = tmp_path / "teacher", tmp_path / "logits.zarr"
    assert run_command(None, "train-teacher", *data, "--epochs", 1, "--model", "resnet8", "--out", teacher).code == 0
    cached = ("cache-teacher", *data, "--teacher", "resnet8", "--weights", teacher / "model.safetensors")
    assert run_command(None, *cached, "--views", 2, "--out", store).code == 0
    _assert_all_alike(tmp_path, train, FLEET[:3], *data, "--store", store)


def test_a_repeated_flag_makes_a_fleet_of_equal_settings(built: Built, tmp_path: Path, train: Kdpipe) -> None:
    shared = (*LIMITS, "--store", built.store, "--loss", "dist", "--optimizer", "adamw")
    assert train(*shared, "--student", SMALL, "--student", DROPPING, "--out", tmp_path / "runs").code == 0
    for name, student in (("small", SMALL), ("dropping", DROPPING)):
        assert train(*shared, "--student", student, "--out", tmp_path / f"alone-{name}").code == 0
        _alike(tmp_path / "runs" / name, tmp_path / f"alone-{name}")


def test_another_optimizer_has_defaults_of_its_own(tmp_path: Path, train: Kdpipe) -> None:
    students = [{"student": SMALL, "optimizer": "sgd"}, {"name": "slow", "student": SMALL, "lr": 1e-4}]
    flags = (*LIMITS, "--optimizer", "adamw", "--fleet", _fleet(tmp_path, students), "--out", tmp_path / "runs")
    assert train(*flags).code == 0
    found = {run.name: _json(run / "run.json")["parameters"] for run in (tmp_path / "runs").iterdir()}
    assert (found["small"]["lr"], found["small"]["weight_decay"]) == (0.1, 5e-4)
    assert (found["slow"]["lr"], found["slow"]["weight_decay"]) == (1e-4, 0.05)


def _failed(outcome: Outcome, *names: str) -> None:
    refused(outcome, f"{len(names)} of ", f"({', '.join(names)}); failure.json")


FAILING: dict[str, tuple[Flags, str]] = {
    "wild": ({"student": SMALL, "lr": 1e18}, "not finite"),
    "starving": ({}, "ran out of memory at a batch size of 32; 8 fit"),
    "blind": ({}, "ran out of memory in the validation of epoch 1. There is no checkpoint yet"),
    "untestable": ({}, "ran out of memory in the test after the last epoch. {run}/checkpoint.pt holds"),
}


@pytest.mark.parametrize("failing", FAILING)
def test_a_student_that_fails_is_left_out(
    built: Built, singles: Path, tmp_path: Path, train: Kdpipe, failing: str
) -> None:
    settings, reason = FAILING[failing]
    settings = settings or {"student": f"tests.networks:{failing}"}
    shared = (*LIMITS, "--store", built.store, "--validation", 0.2)
    students = [FLEET[0], {"name": "failing", **settings}, *FLEET[1:]]
    ran = train(*shared, "--fleet", _fleet(tmp_path, students), "--out", tmp_path / "runs")
    _failed(ran, "failing")
    assert "Saved 8 passes of the teacher over 160 images (2 for each of 4 students)" in ran.err
    run = tmp_path / "runs" / "failing"
    message = _json(run / "failure.json")["message"]
    assert reason.format(run=run) in message
    assert f"{run} is left out: {message}" in ran.err
    assert not (run / "metrics.json").exists()
    for student in FLEET:
        _alike(tmp_path / "runs" / _name(student), singles / _name(student))

    alone = train(*shared, *_flags(settings), "--out", tmp_path / "alone")
    refused(alone, reason.format(run=tmp_path / "alone"))
    assert "Saved" not in alone.err
    assert not (tmp_path / "alone" / "failure.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's size from /proc")
def test_a_validation_fits_where_a_whole_batch_would_not(tmp_path: Path, commands: Server) -> None:
    """256 images of 160 x 160 pixels at a time need more than 1,000 MiB; they are passed in parts of 20."""
    students = [{"name": "large", "student": "resnet8", "input_size": 160}, {"student": "resnet8"}]
    ran = commands.start(
        *("train-student", "--data", "digits", "--limit-train", 300, "--limit-test", 60, "--validation", 0.9),
        *("--fleet", _fleet(tmp_path, students), "--device", "cpu", "--epochs", 1, "--batch-size", 8),
        *("--out", tmp_path / "runs"),
        memory=1000 * 2**20,
    )
    outcome = Outcome(ran.wait(), *ran.communicate())
    assert outcome.code == 0, outcome.err
    for name in ("large", "resnet8"):
        assert _json(tmp_path / "runs" / name / "metrics.json")["best_on_validation"]["epoch"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's size from /proc")
def test_memory_really_runs_out_in_one_step(tmp_path: Path, commands: Server) -> None:
    """A step of 128 images of 160 x 160 pixels needs more than 2,000 MiB, and one of 8 x 8 pixels does not."""
    students = [{"name": "large", "student": "resnet8", "input_size": 160}, {"student": "resnet8"}]
    ran = commands.start(
        *("train-student", "--data", "digits", "--limit-train", 128, "--limit-test", 20, "--batch-size", 128),
        *("--fleet", _fleet(tmp_path, students), "--device", "cpu", "--epochs", 1, "--out", tmp_path / "runs"),
        memory=2000 * 2**20,
    )
    _failed(Outcome(ran.wait(), *ran.communicate()), "large")
    reason = _json(tmp_path / "runs" / "large" / "failure.json")["message"]
    assert reason.startswith("cpu ran out of memory at a batch size of 128")
    assert (tmp_path / "runs" / "resnet8" / "metrics.json").exists()


def test_a_student_that_diverged_stays_out(built: Built, singles: Path, tmp_path: Path, train: Kdpipe) -> None:
    shared = (*LIMITS, "--store", built.store, "--validation", 0.2)
    students = [FLEET[0], {"name": "wild", "student": SMALL, "lr": 1e18}, *FLEET[1:]]
    flags = (*shared, "--fleet", _fleet(tmp_path, students), "--out", tmp_path / "runs")
    _failed(train(*flags), "wild")
    wild = tmp_path / "runs" / "wild"

    before = {path: path.read_bytes() for path in (tmp_path / "runs" / "plain").iterdir()}
    _failed(train(*flags, "--resume"), "wild")
    assert {path: path.read_bytes() for path in before if path.name != "run.json"} == {
        path: content for path, content in before.items() if path.name != "run.json"
    }
    refused(train(*shared, "--student", SMALL, "--lr", 1e18, "--out", wild, "--resume"), "not finite")

    tamed = [student for student in students if student.get("name") != "wild"]
    assert train(*shared, "--fleet", _fleet(tmp_path, tamed), "--out", tmp_path / "runs", "--resume").code == 0


def test_where_all_diverge_nothing_is_left(tmp_path: Path, train: Kdpipe) -> None:
    students = [{"name": name, "student": SMALL, "lr": 1e18} for name in ("one", "other")]
    flags = (*LIMITS, "--fleet", _fleet(tmp_path, students), "--out", tmp_path / "runs")
    _failed(train(*flags), "one", "other")
    _failed(train(*flags, "--resume"), "one", "other")
    assert train(*LIMITS, "--student", SMALL, "--student", DROPPING, "--out", tmp_path / "runs").code == 0


REFUSED: dict[str, tuple[Any, tuple[object, ...], str]] = {
    "no list": ({"student": "resnet8"}, (), "must be a list of students"),
    "an empty list": ([], (), "must be a list of students"),
    "no mappings": (["resnet8"], (), "must be a list of students"),
    "an unknown key": (
        [{"student": "resnet8", "temprature": 2}],
        (),
        "student 1 of {fleet} has 'temprature', but there is no such setting; did you mean 'temperature'?",
    ),
    "a shared key": (
        [FLEET[0], {"student": "resnet14", "epochs": 3}],
        (),
        "student 2 of {fleet} has 'epochs', but all students share it: give it on the command line",
    ),
    "no student": ([{"loss": "dkd"}], (), "student 1 of {fleet} lacks 'student'"),
    "students in one": ([{"student": ["resnet8", "resnet14"]}], (), "student 1 of {fleet} has the student"),
    "a number for a name": ([{"student": "resnet8", "name": 8}], (), "student 1 of {fleet} has the name 8"),
    "one name twice": ([FLEET[0], FLEET[0]], (), "two students are called 'small': give each its own name in --fleet"),
    "a path for a name": ([{"student": "resnet8", "name": "a/b"}], (), "'a/b' cannot be the name of a student"),
    "the folder above": ([{"student": "resnet8", "name": ".."}], (), "'..' cannot be the name of a student"),
    "no name": ([{"student": "resnet8", "name": ""}], (), "'' cannot be the name of a student"),
    "a bad value": ([{"student": "resnet8", "lr": -1}], (), "student 'resnet8': --lr: "),
    "an unknown model": ([FLEET[0], {"student": "resnet9"}], (), "unknown model 'resnet9'"),
    "an unknown loss": ([FLEET[0], {"name": "b", "student": "resnet8", "loss": "dk"}], (), "unknown loss 'dk'"),
    "two ways": ([FLEET[0]], ("--student", "resnet8"), "give --student, or --fleet"),
    "seeds": ([FLEET[0]], ("--seeds", "0,1"), "list the students of each seed in --fleet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_fleet_is_refused(built: Built, tmp_path: Path, train: Kdpipe, case: str) -> None:
    written, flags, message = REFUSED[case]
    fleet = _fleet(tmp_path, written)
    ran = train(*LIMITS, "--store", built.store, "--fleet", fleet, "--out", tmp_path / "runs", *flags)
    refused(ran, message.format(fleet=fleet))
    assert [path.name for path in tmp_path.iterdir()] == ["fleet.yaml"]


def test_what_cannot_be_read_or_is_asked_twice_is_refused(built: Built, tmp_path: Path, train: Kdpipe) -> None:
    out, missing = tmp_path / "runs", tmp_path / "none.yaml"
    refused(train(*LIMITS, "--fleet", missing, "--out", out), f"{missing} does not exist")
    (tmp_path / "torn.yaml").write_text("- {student: resnet8")
    refused(train(*LIMITS, "--fleet", tmp_path / "torn.yaml", "--out", out), "torn.yaml is not valid YAML")
    refused(train(*LIMITS, "--out", out), "give --student, or --fleet")
    twice = ("--student", "resnet8", "--student", "resnet8")
    refused(train(*LIMITS, *twice, "--out", out), "two students are called 'resnet8'")
    several = ("--student", "resnet8", "--student", "resnet14")
    refused(train(*LIMITS, *several, "--seeds", "0,1", "--out", out), "seeds")
    assert not out.exists()
    out.write_text("")
    refused(train(*LIMITS, *several, "--out", out), f"{out}", "is a file")
    out.unlink()
    (out / "resnet14").mkdir(parents=True)
    (out / "resnet14" / "thesis.tex").write_text("")
    refused(train(*LIMITS, *several, "--out", out), "resnet14 is not a run: it holds thesis.tex")
    assert [path.name for path in out.iterdir()] == ["resnet14"]


def _start(commands: Server, built: Built, folder: Path, *flags: object) -> Started:
    return commands.start(
        *("train-student", *LIMITS, *SHARED, "--store", built.store, "--validation", 0.2, "--checkpoint-every", 0),
        *("--fleet", _fleet(folder, FLEET), "--out", folder / "runs", *flags),
    )


def _written(run: Path) -> int:
    try:
        return (run / "checkpoint.pt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def test_killed_at_random_moments(built: Built, singles: Path, tmp_path: Path, commands: Server) -> None:
    """Also between the checkpoints of two students, which is where most of the time goes here."""
    draw = random.Random(time.time_ns())
    runs, resume, kills = tmp_path / "runs", (), 0
    while kills < 4:
        process = _start(commands, built, tmp_path, *resume)
        watched = runs / _name(draw.choice(FLEET))
        for _ in range(draw.randint(1, 2)):
            seen, deadline = _written(watched), time.monotonic() + 60
            while _written(watched) == seen and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.01))
        process.kill()
        if process.wait() == 0:  # it came to its end before
            break
        kills, resume = kills + 1, ("--resume",)
    else:
        process = _start(commands, built, tmp_path, "--resume")
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "Going on from" in errors
    assert kills > 1
    for student in FLEET:
        _alike(runs / _name(student), singles / _name(student))


def test_asked_to_stop(built: Built, singles: Path, tmp_path: Path, commands: Server, train: Kdpipe) -> None:
    """The students go on each alone, and from the same checkpoints together."""
    process = _start(commands, built, tmp_path)
    while not _written(tmp_path / "runs" / "plain") and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143
    assert errors.splitlines()[-1].startswith("kdpipe: stopped")
    runs = tmp_path / "runs"
    stopped = shutil.copytree(runs, tmp_path / "stopped")
    shared = (*LIMITS, "--store", built.store, "--validation", 0.2, "--resume")
    for student in FLEET:
        assert train(*shared, *_flags(student), "--out", runs / _name(student)).code == 0
        _alike(runs / _name(student), singles / _name(student))
    shutil.rmtree(runs)
    stopped.rename(runs)
    assert train(*shared, "--fleet", _fleet(tmp_path, FLEET), "--out", runs).code == 0
    for student in FLEET:
        _alike(runs / _name(student), singles / _name(student))
