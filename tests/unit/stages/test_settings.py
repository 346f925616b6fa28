"""Flags over the params file over defaults, and every fault in one report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from kdpipe.errors import ParamsError
from kdpipe.settings import Parsed, Settings
from kdpipe.stages.cli import EXAMPLES, settings_of
from kdpipe.stages.flags import flag, in_words, parser_of, resolve
from kdpipe.stages.settings.benchmark import Benchmark
from kdpipe.stages.settings.storing import CacheTeacher
from kdpipe.stages.settings.training import TrainStudent, TrainTeacher
from tests.conftest import ROOT

OUTPUTS = "expected logits or probabilities"


def _file(folder: Path, **sections: object) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = _file(tmp_path, train_student={"temperature": 2, "epochs": 5, "student": "resnet8", "out": "x"})
    params = resolve(TrainStudent, section="train_student", file=file, flags={"data": "digits", "epochs": "7"})
    assert str(params.learning.temperature) == "2"
    assert (params.optimization.epochs, params.optimization.batch_size) == (7, 128)


def test_unknown_keys_and_wrong_values_are_reported_together(tmp_path: Path) -> None:
    file = _file(tmp_path, train_student={"temprature": 2, "epochs": 0, "student": "resnet8", "kd_weight": "much"})
    with pytest.raises(ParamsError) as caught:
        resolve(TrainStudent, section="train_student", file=file, flags={"data": "digits", "lr": "fast"})
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "train_student.temprature is unknown; did you mean 'temperature'?",
        "train_student.epochs: expected a whole number above 0, found 0",
        "train_student.kd_weight",
        "--lr",
        "--out is missing",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("epochs", "0", "--epochs: expected a whole number above 0, found '0'."),
        ("adversarial", "autoattack", "--adversarial: unknown attack 'autoattack'. Known: pgd."),
    ],
)
def test_a_message_has_the_value_once(key: str, value: str, message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        _student(**{key: value})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("stage", "key", "value", "line"),
    [
        (TrainStudent, "dot", "2", "expected a number above 0 and below 0.1, found '2'."),
        (TrainStudent, "dot", 2, "expected a number above 0 and below 0.1, found 2."),
        (TrainStudent, "epochs", "0.5", "expected a whole number above 0, found '0.5'."),
        (TrainStudent, "lr", "fast", "expected a number above 0, found 'fast'."),
        (TrainStudent, "label_smoothing", "1", "expected a number of 0 or more and below 1, found '1'."),
        (TrainStudent, "views_per_sample", "3", "expected a whole number of 1 to 2, found '3'."),
        (TrainStudent, "seeds", "0,-1", "expected a whole number of 0 or more and below 4294967296, found '-1'."),
        (TrainStudent, "input_size", "0", "expected a whole number above 0, found '0'."),
        (TrainStudent, "memory_limit", "inf", "expected a finite number above 0, found 'inf'."),
        (TrainStudent, "lr_steps", ["3,x"], "expected a number above 0, found 'x'."),
        (TrainStudent, "overwrite", "perhaps", "expected true or false, found 'perhaps'."),
        (TrainStudent, "compile", [1], "expected true or false, found [1]."),
        (TrainStudent, "init_weights", True, "expected text, found true."),
        (TrainStudent, "out", 5, "expected a path, found 5."),
        (TrainStudent, "lr", None, "expected a number above 0, found none."),
        (TrainStudent, "optimizer", "sdg", "expected sgd or adamw, found 'sdg'; did you mean 'sgd'?"),
        (TrainStudent, "amp", "\x1b[2J", "expected fp32, bf16, fp16 or auto, found '\\x1b[2J'."),
        (TrainStudent, "statistics", "x" * 999, f"expected data, found '{'x' * 99}...."),
        (CacheTeacher, "outputs", "probs", f"{OUTPUTS}, found 'probs'; did you mean 'probabilities'?"),
        (CacheTeacher, "teacher", [], "expected at least one value, found none."),
        (CacheTeacher, "at_temperature", "0", "expected a number above 0, found '0'."),
        (Benchmark, "min_top1", "90", "expected a number of 0 to 1, found '90'."),
        (Benchmark, "max_macs", "manyM", "expected a number above 0, found 'manyM'."),
        (Benchmark, "batch_sizes", "1,", "expected a whole number above 0, found none."),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_what_is_expected_and_found(
    stage: type[Settings], key: str, value: object, line: str
) -> None:
    given = {"data": "digits", "out": "a.zarr", "run": "a", "student": "resnet8", "teacher": "resnet8"}
    flags = {name: each for name, each in given.items() if name in stage.flat()}
    with pytest.raises(ParamsError) as caught:
        resolve(stage, section="x", file=None, flags={**flags, key: value})
    assert str(caught.value) == f"{flag(key)}: {line}"


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_type_of_a_setting_has_words(command: str) -> None:
    """A value that no type takes is refused without the words of a library, whatever the setting."""

    class Other:
        def __repr__(self) -> str:
            return "this"

    stage = settings_of(command)
    for key, setting in stage.flat().items():
        if any(isinstance(each, Parsed) for each in _annotations(setting.field)):
            continue
        with pytest.raises(ValidationError) as caught:
            stage.of({key: Other()})
        (line,) = [line for line in in_words(caught.value, stage) if line.startswith(f"{flag(key)}: ")]
        assert re.fullmatch(rf"{flag(key)}: expected [^:]+, (found|got) '?this'?", line), line


def _annotations(field: FieldInfo) -> list[object]:
    return [*field.metadata, *(each for kind in get_args(field.annotation) for each in get_args(kind))]


@pytest.mark.parametrize("written", ["learned", "learned:1,5", "linear:8,2", "4", "4.0"])
def test_a_temperature_without_effect_is_refused_as_it_was_written(written: str) -> None:
    for loss, reason in (
        ("hard", "the loss hard has no parameter 'temperature'. Leave --temperature out."),
        ("kd:temperature=2", "kd:temperature=2 gives another. Leave one of them out."),
    ):
        with pytest.raises(ParamsError) as caught:
            _student(store="a.zarr", loss=loss, temperature=written)
        assert str(caught.value) == f"--temperature {written} has no effect: {reason}"
    assert _student(loss="hard", temperature=written).targets.mode == "none"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("train_teacher: {}\n", "has no section 'train_student'"),
        ("- a\n- b\n", "has no section"),
        ("train_student: [1\n", "is not valid YAML"),
        ("train_student: text\n", "has no section 'train_student' of keys and values"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(ParamsError, match=part):
        resolve(TrainStudent, section="train_student", file=path, flags={})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="does not exist"):
        resolve(TrainStudent, section="train_student", file=tmp_path / "none.yaml", flags={})


def _student(**flags: object) -> TrainStudent:
    required = {"data": "digits", "student": "resnet8", "out": "runs/a"}
    return resolve(TrainStudent, section="train_student", file=None, flags=required | flags)


def test_distill_follows_from_what_is_given() -> None:
    assert _student().targets.mode == "none"
    assert _student(store="a.zarr").targets.mode == "cache"
    assert _student(teacher="resnet20").targets.mode == "live"
    assert _student(store="a.zarr", teacher="resnet20").targets.mode == "cache"
    assert _student(store="a.zarr", distill="none").targets.mode == "none"
    with pytest.raises(ParamsError, match="distill cache needs store"):
        _student(distill="cache")
    with pytest.raises(ParamsError, match="distill live needs teacher"):
        _student(distill="live")


def _cache(**flags: object) -> CacheTeacher:
    required = {"data": "digits", "teacher": "resnet8", "out": "a.zarr"}
    return resolve(CacheTeacher, section="cache_teacher", file=None, flags=required | flags)


def test_the_recipe_decides_the_number_of_views() -> None:
    assert _cache().view.augmented == 4
    assert _cache(views="0").view.augmented == 0
    assert _cache(recipe="none").view.augmented == 0
    with pytest.raises(ParamsError, match="recipe none has the plain view only"):
        _cache(recipe="none", views="2")
    with pytest.raises(ParamsError, match=r"must end in \.zarr"):
        _cache(out="logits")


def test_one_teacher_or_several_that_are_averaged(tmp_path: Path) -> None:
    file = _file(tmp_path, cache_teacher={"teacher": "resnet8", "weights": "a.pt", "out": "a.zarr"})
    alone = resolve(CacheTeacher, section="cache_teacher", file=file, flags={"data": "digits"})
    assert (alone.teacher.teacher, alone.teacher.weights, alone.teacher.average) == (("resnet8",), ("a.pt",), False)
    both = _cache(teacher=["resnet8", "resnet14"], average=True, weights=["a.pt", "b.pt"])
    assert (both.teacher.teacher, both.teacher.weights) == (("resnet8", "resnet14"), ("a.pt", "b.pt"))
    assert _cache(teacher=["resnet8", "resnet14"], average=True).teacher.weights == ()
    with pytest.raises(ParamsError, match=r"2 teachers \(resnet8, resnet14\) for one store: give --average"):
        _cache(teacher=["resnet8", "resnet14"])
    with pytest.raises(ParamsError, match="1 weights for 2 teachers"):
        _cache(teacher=["resnet8", "resnet14"], average=True, weights=["a.pt"])
    with pytest.raises(ParamsError, match="2 weights for 1 teachers"):
        _cache(weights=["a.pt", "b.pt"])


def test_stores_are_weighed_equally_or_as_told(tmp_path: Path) -> None:
    assert _student().targets.shares == ()
    assert _student(store="a.zarr").targets.shares == (1.0,)
    assert _student(store=["a.zarr", "b.zarr"]).targets.shares == (0.5, 0.5)
    assert _student(store=["a.zarr", "b.zarr"], store_weight=["3", "1"]).targets.shares == (0.75, 0.25)
    for weights, part in (
        (["1"], "1 store-weights for 2 stores"),
        (["1", "0"], "a number above 0, found '0'"),
        (["1", "x"], "'x'"),
    ):
        with pytest.raises(ParamsError, match=part):
            _student(store=["a.zarr", "b.zarr"], store_weight=weights)
    file = _file(tmp_path, benchmark={"store": "a.zarr", "store_weight": 2, "run": "b", "out": "c"})
    assert resolve(Benchmark, section="benchmark", file=file, flags={"data": "digits", "run": ["b"]}).stores.shares == (
        1.0,
    )


def test_channels_are_three_numbers() -> None:
    assert _cache(mean="0.1,0.2,0.3").teacher.mean == (0.1, 0.2, 0.3)
    for given in ("0.1", "0.1,0.2", "0,0,0,0"):
        with pytest.raises(ParamsError, match=f"--mean: expected three numbers .*, got '{given}'"):
            _cache(mean=given)


@pytest.mark.parametrize(
    ("model", "section", "flags"),
    [
        (TrainTeacher, "train_teacher", {"out": "a"}),
        (CacheTeacher, "cache_teacher", {"out": "a.zarr", "teacher": "resnet8"}),
        (TrainStudent, "train_student", {"out": "a", "student": "resnet8"}),
        (Benchmark, "benchmark", {"out": "a", "run": ["b"]}),
    ],
)
def test_the_repository_s_own_params_are_valid(model: type, section: str, flags: dict[str, object]) -> None:
    resolve(model, section=section, file=ROOT / "params.yaml", flags={"data": "digits", **flags})


def test_adamw_has_defaults_of_its_own(tmp_path: Path) -> None:
    def found(**flags: object) -> tuple[str, float, float]:
        chosen = _student(**flags).optimization
        return chosen.optimizer, chosen.lr, chosen.weight_decay

    assert found() == ("sgd", 0.1, 5e-4)
    assert found(optimizer="adamw") == ("adamw", 1e-3, 0.05)
    assert found(optimizer="adamw", lr="0.01") == ("adamw", 0.01, 0.05)
    file = _file(tmp_path, train_student={"optimizer": "adamw", "weight_decay": 0})
    given = {"data": "digits", "student": "resnet8", "out": "x"}
    assert resolve(TrainStudent, section="train_student", file=file, flags=given).optimization.weight_decay == 0


def test_learning_rate_steps_are_given_with_their_schedule(tmp_path: Path) -> None:
    for written, steps in ((["150,180,210"], (150, 180, 210)), (["150", "180"], (150, 180))):
        assert _student(lr_schedule="step", lr_steps=written).optimization.lr_steps == steps
    file = _file(tmp_path, train_student={"lr_schedule": "step", "lr_steps": [2.5, 4]})
    given = {"data": "digits", "student": "resnet8", "out": "x"}
    assert resolve(TrainStudent, section="train_student", file=file, flags=given).optimization.lr_steps == (2.5, 4)
    for flags in ({"lr_schedule": "step"}, {"lr_steps": ["3"]}):
        with pytest.raises(ParamsError, match="go together"):
            _student(**flags)
    for flags in ({"ema": "1"}, {"label_smoothing": "1"}, {"clip_grad_norm": "0"}, {"lr_steps": ["a"]}):
        with pytest.raises(ParamsError, match="--"):
            _student(**flags)


def test_weights_and_temperature_are_numbers_or_curves(tmp_path: Path) -> None:
    def written(params: TrainStudent) -> list[str]:
        return [
            str(each) for each in (params.learning.kd_weight, params.learning.temperature, params.learning.ce_weight)
        ]

    found = _student(kd_weight="cosine:0.5,0,every=5", temperature="constant:2", ce_weight=" .1 ")
    assert written(found) == ["cosine:0.5,0,every=5", "2", "0.1"]
    file = _file(tmp_path, train_student={"kd_weight": "linear:1,0,over=3", "temperature": 2})
    given = {"data": "digits", "student": "resnet8", "out": "x"}
    found = resolve(TrainStudent, section="train_student", file=file, flags=given)
    assert written(found) == ["linear:1,0,over=3", "2", "None"]
    for key, text, part in (
        ("kd_weight", "-1", "--kd-weight: expected a number of 0 or more"),
        ("kd_weight", "cosin:1,0", "did you mean 'cosine'?"),
        ("temperature", "0", "temperature must stay above 0"),
        ("temperature", "linear:4,0,over=2", "temperature must stay above 0"),
    ):
        with pytest.raises(ParamsError, match=part.replace("?", r"\?")):
            _student(**{key: text})


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_setting_is_a_documented_flag(command: str) -> None:
    stage = settings_of(command)
    assert issubclass(stage, Settings)
    parser = parser_of(stage, command=command, example=EXAMPLES[command])
    flags = {option for action in parser._actions for option in action.option_strings}
    expected = {"--" + key.replace("_", "-") for key in stage.flat()}
    assert expected <= flags
    assert {each for each in flags - expected if not each.startswith("--no-")} == {"-h", "--help", "--params"}
    undocumented = [action.dest for action in parser._actions if not (action.help or "").endswith((".", "exit"))]
    assert not undocumented


def test_a_mapping_is_refused_by_the_name_of_its_setting(tmp_path: Path) -> None:
    given = {
        "student": "resnet8",
        "data": "digits",
        "out": "x",
        "loss": {"kd": {"weight": 1}},
        "recipe": {"crop": None},
    }
    file = _file(tmp_path, train_student=given)
    with pytest.raises(ParamsError) as caught:
        resolve(TrainStudent, section="train_student", file=file, flags={})
    for part in ("train_student.loss: write LOSS as text", "train_student.recipe: write RECIPE as text"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ship_engine": "onnx"}, "ship-engine onnx is not timed: expected one of engines, eager"),
        ({"goal": "adversarial_top1"}, "goal adversarial_top1 needs adversarial, such as pgd:8/255,20"),
        ({"goal": "speed"}, "--goal"),
        ({"max_macs": "many"}, "--max-macs"),
        ({"max_ms": "0"}, "--max-ms"),
        ({"min_top1": "90"}, "--min-top1"),
    ],
)
def test_rules_that_decide_nothing_are_refused(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        resolve(Benchmark, section="x", file=None, flags={"data": "digits", "run": ["a"], "out": "b", **flags})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bound_may_be_written_with_a_unit() -> None:
    given = {
        "data": "digits",
        "run": ["a"],
        "out": "b",
        "max_macs": "20M",
        "engines": "eager,onnx",
        "ship_engine": "onnx",
    }
    decision = resolve(Benchmark, section="x", file=None, flags=given).decision
    assert (decision.max_macs, decision.ship_engine, decision.goal) == (20e6, "onnx", "top1")
