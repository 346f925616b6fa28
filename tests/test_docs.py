"""What the documents promise: commands that exist, code that runs, paths that are there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from stages.params import TrainStudent

from kdpipe import dataset, models
from kdpipe.encoding.registry import get_encoding
from kdpipe.views import OPERATIONS, Geometry, Recipe, Renderer
from stages.cli import STAGES, app
from stages.fleet import members
from tests.conftest import ROOT, Built

README = (ROOT / "README.md").read_text()
FORMAT = (ROOT / "docs" / "reference" / "format.md").read_text()
VIEWS = (ROOT / "docs" / "guides" / "views.md").read_text()
CHAINS = (ROOT / "docs" / "guides" / "chains.md").read_text()
LOSSES = (ROOT / "docs" / "guides" / "losses.md").read_text()
SIGNALS = (ROOT / "docs" / "guides" / "signals.md").read_text()
ROBUST = (ROOT / "docs" / "guides" / "robust.md").read_text()


def _python(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def _commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in re.findall(r"^    (kdpipe .*)$", text, flags=re.MULTILINE)]


def _mean_and_deviation(shares: dict[str, float], sign: str = "") -> str:
    return f"{100 * shares['mean']:{sign}.1f} ± {100 * shares['std']:.1f}"


def _options(command: str) -> set[str]:
    help_text = subprocess.run(
        [sys.executable, "-m", "kdpipe", command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    return set(re.findall(r"--[a-z][a-z0-9-]*", help_text))


def test_every_command_is_in_the_readme_s_table() -> None:
    for command in app.registered_commands:
        assert f"| `kdpipe {command.name or command.callback.__name__}` |" in README


def test_every_flag_in_the_readme_and_in_examples_exists() -> None:
    shown = _commands(README + CHAINS + SIGNALS + ROBUST) + [shlex.split(example) for _, example in STAGES.values()]
    assert len(shown) > 6
    options = {command: _options(command) for command in {words[1] for words in shown}}
    for words in shown:
        assert {word for word in words if word.startswith("--")} <= options[words[1]], words


def test_the_table_of_operations_is_that_of_the_registry() -> None:
    rows = [f"| `{each.usage}` | {each.help} | {each.source} |" for each in OPERATIONS]
    assert re.findall(r"^\| `.*$", VIEWS.split("## Definitions")[0], flags=re.MULTILINE) == rows


def test_the_recipes_in_the_documents_are_recipes() -> None:
    shown = [words[words.index("--recipe") + 1] for words in _commands(VIEWS + README) if "--recipe" in words]
    assert len(shown) >= 3
    assert len({str(Recipe.parse(recipe)) for recipe in shown if "0.25" in recipe}) == 1


def test_the_readme_s_python_runs(built: Built, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "logits.zarr").symlink_to(built.store)
    for code in _python(README):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_what_the_losses_reach_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "losses.json").read_text())["losses"]
    for arm, figures in measured.items():
        cells = [
            "" if name == "top1_minus_none" and arm == "none" else _mean_and_deviation(each)
            for name, each in figures.items()
            if name in {"top1", "top1_minus_none", "agreement"}
        ]
        assert f"| `{arm}` | {' | '.join(cells)} |" in LOSSES


def test_what_signals_take_and_reach_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "signals.json").read_text())
    text = SIGNALS.split("## What they take and what they reach")[1]
    assert f"{measured['rows']:,} rows" in text
    sizes = re.findall(r"^\| `(\w+(?::\w+)?)`.* \| ([\d,]+) \| ([\d,]+) \|$", text, flags=re.MULTILINE)
    expected = {
        name: (f"{kept['numbers']:,}", f"{kept['bytes_per_row']:,.0f}") for name, kept in measured["signals"].items()
    }
    assert expected.pop("features:penultimate") == expected["features:layer3"]
    assert {name: tuple(row) for name, *row in sizes} == expected
    rows = re.findall(r"^\| (`.*?) \| ([\d.]+ ± .*?) \| (.*?) \| (.*?) \|$", text, flags=re.MULTILINE)
    assert len(rows) == len(measured["losses"])
    for (_, *row), (arm, figures) in zip(rows, measured["losses"].items(), strict=True):
        more = ["" if arm == "none" else _mean_and_deviation(figures["top1_minus_none"])]
        more.append(_mean_and_deviation(figures["top1_minus_kd"]) if arm.startswith("kd+") else "")
        assert [cell.strip() for cell in row] == [_mean_and_deviation(figures["top1"]), *more], arm


def test_what_chains_reach_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "chains.json").read_text())["arms"]
    rows = re.findall(r"^\| `([\w-]+)`: .*? \| (.*?) \| (.*?) \| (.*?) \|$", CHAINS, flags=re.MULTILINE)
    assert [arm for arm, *_ in rows] == list(measured)
    for arm, taught, reached, more in rows:
        figures = measured[arm]
        teachers = np.mean(figures["teachers_test_top1"], axis=0)
        assert taught.strip() == " and ".join(f"{100 * top1:.1f}" for top1 in teachers), arm
        assert reached == _mean_and_deviation(figures["top1"])
        assert more.strip() == ("" if arm == "one-way" else _mean_and_deviation(figures["top1_minus_one_way"], "+"))


def test_what_robust_students_reach_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "robust.json").read_text())["arms"]
    rows = re.findall(r"^\| `([a-z ]+)`: .*? \| (.*?) \| (.*?) \|$", ROBUST, flags=re.MULTILINE)
    expected = {
        arm: tuple(_mean_and_deviation(figures[name]) for name in ("top1", "adversarial_top1"))
        for arm, figures in measured.items()
    }
    assert {arm: tuple(cells) for arm, *cells in rows} == expected


def test_what_the_auxiliary_task_adds_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "auxiliary.json").read_text())["arms"]
    text = (ROOT / "docs" / "TRAINING.md").read_text()
    for arm in ("none", "kd"):
        task = measured[f"{arm}+rotation"]
        cells = [
            _mean_and_deviation(each) for each in (measured[arm]["top1"], task["top1"], task["top1_minus_without"])
        ]
        assert re.search(rf"^\| `{arm}`: .* \| {re.escape(' | '.join(cells))} \|$", text, flags=re.MULTILINE)


def test_what_fleets_save_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "fleet.json").read_text())
    text = (ROOT / "docs" / "TRAINING.md").read_text()
    assert measured["command"] in text
    for case in measured["cases"].values():
        per_batch = [case[f"milliseconds_of_{part}_per_batch"]["median"] for part in ("data", "step")]
        low, high = case["speed_up"]["interval_95"]
        speed_up = f"{case['speed_up']['median']:.3f} [{low:.3f}, {high:.3f}]"
        cells = [*(f"{time:.2f}" for time in per_batch), f"{case['ideal_speed_up']['median']:.3f}", speed_up]
        assert f"| {' | '.join(cells)} | {case['share_of_ideal']['median']:.1%} |".replace("%", " %") in text


def test_what_the_authors_of_losses_report_is_the_benchmarks_table() -> None:
    script = ROOT / "benchmarks" / "published_losses.py"
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert printed in LOSSES
    # The gains that NKD gives itself, and the differences of what DIST gives.
    for gain in ("71.96 (+2.06)", "72.58 (+3.37)", "71.75 (+2.69)", "76.31 (+3.81)", "72.07 (+2.31)", "73.24 (+3.11)"):
        assert printed.count(gain) == 1


def test_the_fleet_in_the_documents_is_a_fleet(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "TRAINING.md").read_text()
    (written,) = re.findall(r"```yaml\n(.*?)```", text.split("## Several students at once")[1], flags=re.DOTALL)
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(written)
    found = members(TrainStudent(data="digits", fleet=fleet, out=tmp_path / "runs"))
    assert [each.out.name for each in found][:3] == ["resnet8", "resnet8-dkd", "resnet8-seed-1"]
    assert len(found) == 5


def test_paths_named_in_the_documents_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
            assert (ROOT / target).exists(), target


def test_a_stage_has_one_name_in_four_places() -> None:
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name in STAGES:
        if name != "import-logits":  # the pipeline has a teacher to run
            assert name in stages
            assert name.replace("-", "_") in sections
        assert (ROOT / "stages" / f"{name.replace('-', '_')}.py").is_file()
    for stage in stages.values():
        for path in stage["deps"]:
            if path.startswith(("pipeline", "stages")):
                assert (ROOT / path).exists(), path


def test_the_documented_script_decodes_what_the_teacher_said(built: Built, tmp_path: Path) -> None:
    script = tmp_path / "decode.py"
    script.write_text("import sys\nsys.modules['kdpipe'] = None\n" + _python(FORMAT)[0])
    subprocess.run([sys.executable, script, built.store, tmp_path / "logits.npz"], check=True)
    decoded = np.load(tmp_path / "logits.npz")

    train = dataset.load("digits", "train", 200)
    teacher = models.load("resnet8", num_classes=10, weights=built.weights, fallback_statistics=train.statistics)
    renderer = Renderer(train, "crop-flip", seed=0, geometry=Geometry.of(teacher.preset))
    assert np.array_equal(decoded["train_sample_id"], train.sample_ids)
    for view in range(3):
        with torch.inference_mode():
            said = teacher.module(teacher.preset.normalize(renderer(range(200), view))).numpy()
        shifted = said - said.max(axis=1, keepdims=True)
        half_step = np.spacing(np.abs(shifted).astype(np.float16)).astype(np.float32) / 2
        assert (np.abs(decoded["train_logits"][view] - said) <= half_step + 1e-4).all()


@pytest.mark.parametrize("name", ["fp32", "fp16r3", "sqrtp8@4", "sqrtp5@2", "tailp4@2", "tailp8@0.5", "topk4"])
def test_the_documented_function_decodes_every_encoding(name: str) -> None:
    scope: dict[str, Callable[..., np.ndarray]] = {}
    exec(_python(FORMAT)[1], scope)
    logits = 5 * torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    chosen = get_encoding(name).calibrate(logits)
    encoded = chosen.encode(logits)
    described = json.loads(json.dumps(chosen.describe()))
    decoded = scope["shifted_logits"](described, encoded.codes, 12) + encoded.row_max[:, None]
    ours = chosen.decode(torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max), 12)
    assert np.array_equal(decoded, ours.numpy())
