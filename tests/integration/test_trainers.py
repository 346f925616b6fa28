"""A store in other people's training loops: the examples run, and docs/guides/trainers.md shows their lines."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from textwrap import indent

import pytest

from tests.conftest import ROOT, Built

EXAMPLES = ("plain_pytorch", "timm_loop", "lightning_loop")


def test_every_example_is_documented_and_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
    document = (ROOT / "docs" / "guides" / "trainers.md").read_text()
    for name in EXAMPLES:
        assert f"    python examples/{name}.py " in document


@pytest.mark.filterwarnings("default", "ignore:.isinstance.treespec, LeafSpec")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_distils(
    built: Built, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(built.store), "digits", "3"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    epochs = re.findall(r"^epoch (\d): view (\d), loss ([0-9.]+)$", printed, flags=re.MULTILINE)
    assert [(int(epoch), int(view)) for epoch, view, _ in epochs] == [(0, 1), (1, 2), (2, 1)]
    losses = [float(loss) for _, _, loss in epochs]
    assert losses[2] < losses[0]
    assert re.search(r"^test: top-1 0\.\d+, ", printed, flags=re.MULTILINE)


def test_the_document_shows_the_examples_lines() -> None:
    document = (ROOT / "docs" / "guides" / "trainers.md").read_text()
    blocks = re.findall(r"```python\n# (examples/\w+\.py)\n(.*?)```", document, flags=re.DOTALL)
    assert {path for path, _ in blocks} == {f"examples/{name}.py" for name in EXAMPLES}
    for path, block in blocks:
        script = _without_empty_lines((ROOT / path).read_text())
        shown = [indent(_without_empty_lines(block), " " * depth) for depth in (0, 4)]
        assert any(lines in script for lines in shown), f"{path} does not have the lines\n{block}"


def _without_empty_lines(text: str) -> str:
    return re.sub(r"\n{2,}", "\n", text)
