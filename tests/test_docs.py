"""The documents: commands that exist, code that runs, links that lead somewhere, tables that are the results."""

from __future__ import annotations

import argparse
import json
import os
import pydoc
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

from docs import generate, tables
from kdpipe.distil.curves import Curve
from kdpipe.stages import cli
from kdpipe.stages.flags import parser_of, resolve
from kdpipe.stages.fleet import students_of
from kdpipe.stages.listing import KINDS, LISTED, NEED_TORCH, kept
from kdpipe.stages.settings.training import TrainStudent
from kdpipe.views import Recipe
from tests.conftest import ROOT, Built, Outcome

GUIDES = ROOT / "docs" / "guides"
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*tables.documents(), *(ROOT / "examples").glob("*/README.md"))
    if "generated" not in path.parts
}


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)```$", text, flags=re.DOTALL | re.MULTILINE)


def _commands(text: str) -> list[list[str]]:
    return [
        shlex.split(line, comments=True) for line in re.findall(r"^ {4}(?:\$ )?(kdpipe .*)$", text, flags=re.MULTILINE)
    ]


def _shown() -> Iterator[tuple[str, list[str]]]:
    for name, text in DOCUMENTS.items():
        yield from ((name, words) for words in _commands(text) if words[1].islower())


@cache
def _options(command: str) -> set[str]:
    """Return the flags of a command."""
    if command in cli.EXAMPLES:
        return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", _parser(command).format_help()))
    parameters = typer.main.get_group(cli.app).commands[command].params
    return {"--help", *(option for each in parameters for option in each.opts)}


@cache
def _parser(command: str) -> argparse.ArgumentParser:
    return parser_of(cli.settings_of(command), command=command, example=cli.EXAMPLES[command])


def test_every_flag_in_the_documents_exists() -> None:
    shown = list(_shown())
    assert len(shown) > 40
    for name, words in shown:
        written = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert written <= _options(words[1]), (name, words)


def test_every_complete_command_in_the_documents_and_the_help_is_accepted() -> None:
    shown = [*_shown(), *(("help", shlex.split(example)) for example in cli.EXAMPLES.values())]
    complete = [words for _, words in shown if words[1] in cli.EXAMPLES and not {"...", "--params"} & set(words)]
    assert len(complete) > 30
    for words in complete:
        given = vars(_parser(words[1]).parse_args(words[2:]))
        resolve(cli.settings_of(words[1]), section=words[1].replace("-", "_"), file=None, flags=given)


def test_the_recipes_and_curves_in_the_guides_are_such() -> None:
    shown = [words[words.index("--recipe") + 1] for _, words in _shown() if "--recipe" in words]
    assert len(shown) >= 3
    advice = (GUIDES / "views.md").read_text().partition("## Which recipe for what")[2].partition("\n## ")[0]
    advised = re.findall(r"`((?:crop|rrc)[^`]*)`", advice)
    assert len(advised) >= 5
    assert all(Recipe.parse(recipe) for recipe in shown + advised)
    curves = re.findall(r"^\| `([a-z]+:[^`]+)`", (GUIDES / "optimization.md").read_text(), flags=re.MULTILINE)
    assert len(curves) == 6
    assert [str(Curve.parse(curve)) for curve in curves] == curves


def test_the_python_of_the_readme_and_of_the_reference_runs(built: Built, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "logits.zarr").symlink_to(built.store)
    written = _blocks(DOCUMENTS["README.md"], "python") + _blocks(DOCUMENTS["docs/reference/api.md"], "python")
    assert len(written) == 2
    subprocess.run([sys.executable, "-c", "\n".join(written)], check=True, cwd=tmp_path)


@pytest.mark.parametrize("name", [name for name, text in DOCUMENTS.items() if "<!-- table: " in text])
def test_tables_are_what_was_measured(name: str) -> None:
    assert tables.fill(DOCUMENTS[name]) == DOCUMENTS[name], "run python docs/tables.py"


def test_every_table_is_in_a_document() -> None:
    shown = re.findall(r"<!-- table: ([\w-]+) -->", "".join(DOCUMENTS.values()))
    assert set(shown) == set(tables.TABLES)


def test_published_gains_are_those_of_their_authors() -> None:
    printed = tables.TABLES["published-losses"]()
    # The gains that NKD gives itself, and the differences of what DIST gives.
    for gain in ("71.96 (+2.06)", "72.58 (+3.37)", "71.75 (+2.69)", "76.31 (+3.81)", "72.07 (+2.31)", "73.24 (+3.11)"):
        assert printed.count(gain) == 1


def test_the_tutorial_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdpipe: Callable[..., Outcome]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    steps = re.findall(r"^\$ (kdpipe .*)\n((?:(?!\$ |```).*\n)*)", DOCUMENTS["docs/tutorial.md"], flags=re.MULTILINE)
    assert len(steps) >= 7
    for command, shown in steps:
        words = shlex.split(command)[1:]
        short = ("--limit-train", 200, "--limit-test", 60) if words[0] in cli.EXAMPLES else ()
        outcome = kdpipe(*words, *short, *(("--epochs", 1) if "--epochs" in words else ()))
        assert outcome.code == 0, outcome.err
        printed = {_masked(line) for line in (outcome.out + outcome.err).splitlines()}
        lines = [_masked(line) for line in shown.splitlines() if line.strip() != "..."]
        assert [line for line in lines if line not in printed] == []


def _masked(line: str) -> str:
    """Return a line without what differs between two runs: numbers, digests, and the lines of tables."""
    without_numbers = re.sub(r"\b[\da-f]{32}\b|-?\d[\d,.:]*(e-\d+)?|n/a|\byes\b", "", line)
    return " ".join(re.sub(r"[─━┳┃┡╇┩│├┼┤└┴┘┏┓*]", " ", without_numbers).split())


def test_the_fleet_in_the_guide_is_a_fleet(tmp_path: Path) -> None:
    (written,) = _blocks((GUIDES / "students-together.md").read_text(), "yaml")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(written)
    found = students_of(TrainStudent.of({"data": "digits", "fleet": fleet, "out": tmp_path / "runs"}))
    assert [each.run.out.name for each in found][:3] == ["resnet8", "resnet8-dkd", "resnet8-seed-1"]
    assert len(found) == 5


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", re.sub(r"```.*?```", "", DOCUMENTS[name], flags=re.DOTALL)):
        path, _, anchor = target.partition("#")
        found = (ROOT / name).parent / path if path else ROOT / name
        if found.parent.name == "generated":
            assert found.stem in generate.PAGES, target
            continue
        assert found.exists(), target
        assert not anchor or anchor in _anchors(found.read_text(encoding="utf-8")), target


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_reference_has_every_command_setting_and_list() -> None:
    commands, written, lists = (generate.PAGES[name]() for name in ("commands", "settings", "lists"))
    for command in typer.main.get_group(cli.app).commands:
        assert f"\n## kdpipe {command}\n" in commands
    for command in cli.EXAMPLES:
        section = written.split(f"\n## {command.replace('-', '_')}\n")[1].split("\n## ")[0]
        assert all(f"| `{key}` | " in section for key in cli.settings_of(command).flat())
    assert all(f"\n## {kind.capitalize()}\n" in lists for kind in KINDS)
    for line in (written + lists).splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in {4, 5, 6, 7, 8}, line


def test_what_list_prints_is_what_is_registered() -> None:
    assert LISTED.read_text(encoding="utf-8") == kept(), "run python docs/tables.py"
    assert set(json.loads(kept())) == set(NEED_TORCH) <= set(KINDS)


def test_the_names_of_the_api_page_exist() -> None:
    names = re.findall(r"^::: (\S+)$", DOCUMENTS["docs/reference/api.md"], flags=re.MULTILINE)
    assert len(names) > 20
    assert [name for name in names if pydoc.locate(name) is None] == []


def test_the_files_named_in_contributing_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)`", DOCUMENTS["CONTRIBUTING.md"])
    assert len(named) > 15
    folders = (ROOT, ROOT / "pipeline" / "kdpipe", ROOT / "pipeline" / "kdpipe" / "distil" / "losses")
    assert [name for name in named if not any((folder / name).is_file() for folder in folders)] == []


def test_the_loss_in_contributing_works_as_shown(tmp_path: Path) -> None:
    (diff,) = _blocks(DOCUMENTS["CONTRIBUTING.md"], "diff")
    added = {
        path: "\n".join(line[1:] for line in hunk.splitlines() if line.startswith("+"))
        for path, hunk in re.findall(r"^\+\+\+ b/(\S+)\n(.*?)(?=^--- |\Z)", diff, flags=re.DOTALL | re.MULTILINE)
    }
    loss, test = added
    assert loss == "pipeline/kdpipe/distil/losses/logits.py"
    script = tmp_path / "apply.py"
    script.write_text(f"""
import tests.unit.distil.test_losses as tests
from kdpipe.distil.losses import LOSSES, logits, parse

exec({added[loss]!r}, vars(logits))
exec({added[test]!r}, vars(tests))
tests.test_reverse_kd_is_its_closed_form()
parse("reverse-kd:temperature=2+dist")
print(LOSSES["reverse-kd"].usage)
""")
    assert (ROOT / test).is_file()
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=ROOT, env=_with_sources())
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "reverse-kd:temperature=4\n"


def _with_sources() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'pipeline'}{os.pathsep}{ROOT}"}


def test_a_stage_has_one_name_in_four_places() -> None:
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name in cli.EXAMPLES:
        if name not in ("import-logits", "compress", "plan", "tune"):  # the pipeline has none of these
            assert name in stages
            assert name.replace("-", "_") in sections
        assert (ROOT / "stages" / f"{name.replace('-', '_')}.py").is_file()
    for stage in stages.values():
        for path in stage["deps"]:
            if path.startswith(("pipeline", "stages")):
                assert (ROOT / path).exists(), path
