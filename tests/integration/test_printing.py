"""Foreign text on the terminal: names and notes of files are escaped in whatever a command prints."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kdpipe.stages import console
from kdpipe.store.settings import Provenance
from kdpipe.testing.stores import small_plan, small_store
from tests.conftest import Outcome

EVIL = "\x1b]0;owned\x07\u202egpj.exe\nkdpipe: all is well\x9b2J"

Command = Callable[..., Outcome]


def harmless(text: str) -> None:
    assert not {"\x1b", "\x07", "\u202e", "\x9b", "\r"} & {*text}
    assert "kdpipe: all is well" not in text.splitlines()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "logits.zarr"
    provenance = Provenance(title=EVIL, notes=EVIL, license=EVIL, contact=EVIL)
    small_store(path, replace(small_plan(), provenance=provenance, dataset=EVIL))
    return path


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_inspect(kdpipe: Command, store: Path, flags: tuple[str, ...]) -> None:
    found = kdpipe("inspect", store, *flags)
    assert found.code == 0
    harmless(found.out + found.err)
    assert "\\u202egpj.exe" in found.out


def test_verify_names_strangers(kdpipe: Command, store: Path) -> None:
    (store / "train" / EVIL).write_text("")
    found = kdpipe("verify", store)
    assert found.code == 1
    harmless(found.out + found.err)
    assert "\\u202egpj.exe" in found.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", EVIL),
        ("list", EVIL),
        (EVIL,),
        ("models", EVIL),
        ("presets", EVIL),
        ("train-student", "--params", EVIL),
        ("train-student", "--data", EVIL, "--store", "none.zarr", "--out", "runs/x"),
        ("train-student", "--loss", EVIL),
        ("benchmark", "--run", EVIL, "--data", "digits", "--out", "report"),
        ("cache-teacher", "--teacher", EVIL, "--data", "digits", "--out", "x.zarr"),
        ("train-teacher", f"--{EVIL}"),
    ],
    ids=lambda arguments: " ".join(arguments).partition(EVIL)[0] or "command",
)
def test_refusals(kdpipe: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    found = kdpipe(*arguments)
    assert found.code == 1
    harmless(found.out + found.err)
    assert len(found.err.splitlines()) == 1


def test_messages_and_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=200)
    monkeypatch.setattr(console, "console", terminal)
    console.say(f"{EVIL} [bold]:smile:")
    with console.progress(f"{EVIL} [bold]", total=1) as done:
        done(1)
    assert isinstance(terminal.file, io.StringIO)
    printed = terminal.file.getvalue()
    assert not {"\u202e", "\x07", "\x9b"} & {*printed}
    assert "\x1b]0;" not in printed
    assert "[bold]:smile:" in printed
