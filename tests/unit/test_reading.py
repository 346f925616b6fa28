"""Files of strangers: read if they are regular, small and shallow, and refused in one line otherwise."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from kdpipe.errors import ParamsError, RunError
from kdpipe.reading import parse_json, read_bytes, read_json, read_yaml


class Described(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    rows: int = Field(ge=0, le=100)


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


YAML_BOMBS = {
    "aliases that multiply": _bomb(9),
    "aliases in keys": "a: &a {x: 1}\n" + "".join(f"b{n}: {{<<: *a}}\n" for n in range(60_000)),
    "an alias of itself": "a: &a [*a]",
    "nested lists": "[" * 5000 + "]" * 5000,
    "nested mappings": "{a: " * 5000 + "1" + "}" * 5000,
    "nested by dashes": "- " * 5000 + "1",
    "nested keys": "? " * 5000 + "1",
    "a long number": "a: " + "9" * 500_000,
    "a long sexagesimal number": "a: 1" + ":9" * 50_000,
    "no date": "a: 2020-99-99",
    "binary": "\x00\x01",
    "code": "a: !!python/object/apply:os.system [exit]",
    "too large": "#" * (1024**2 + 1),
}


@pytest.mark.parametrize("content", YAML_BOMBS.values(), ids=YAML_BOMBS.keys())
def test_yaml_that_grows_is_refused_quickly(tmp_path: Path, content: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    began = time.process_time()
    with pytest.raises(ParamsError, match=r"params\.yaml") as refusal:
        read_yaml(path, error=ParamsError)
    assert len(str(refusal.value)) < 600
    assert "\n" not in str(refusal.value)
    assert time.process_time() - began < 20


def test_plain_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("base: &base {epochs: 3}\ntrain: *base\nmore: {<<: *base, seed: 1}\n")
    assert read_yaml(path) == {"base": {"epochs": 3}, "train": {"epochs": 3}, "more": {"epochs": 3, "seed": 1}}


_PLAIN: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8", exclude_categories=["C"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=20,
)


@given(_PLAIN)
def test_any_plain_value_is_read_as_pyyaml_does(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.yaml"
    path.write_text(yaml.safe_dump(value))
    assert read_yaml(path) == value


JSON_BOMBS = {
    "nested": "[" * 5000 + "]" * 5000,
    "nested objects": '{"a":' * 5000,
    "a long number": "9" * 500_000,
    "NaN": '{"rows": NaN}',
    "an infinite number": '{"rows": 1e999}',
    "a key twice": '{"rows": 1, "rows": 2}',
    "a list": "[1]",
    "out of bounds": '{"rows": 101}',
    "text": '{"rows": "1"}',
    "a key of someone else": '{"rows": 1, "\\u001b": 2}',
    "not closed": '{"rows": "' + '"' * 100_001,
    "empty": "",
    "no text": "\udcff",
}


@pytest.mark.parametrize("content", JSON_BOMBS.values(), ids=JSON_BOMBS.keys())
def test_json_that_is_not_as_described_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    began = time.process_time()
    with pytest.raises(RunError, match=r"run\.json") as refusal:
        read_json(path, Described, error=RunError)
    assert len(str(refusal.value)) < 600
    assert str(refusal.value).isprintable()
    assert time.process_time() - began < 5


def test_brackets_in_strings_are_not_nesting() -> None:
    assert parse_json(b'["' + b"[" * 1000 + rb"\"\\" + b'"]', of=Path("x")) == ["[" * 1000 + '"\\']


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("{}")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("link", "fifo", "folder", "zero"):
        with pytest.raises(RunError, match=rf"{name} cannot be read: "):
            read_bytes(tmp_path / name, error=RunError)
    with pytest.raises(RunError, match="missing does not exist"):
        read_bytes(tmp_path / "missing", error=RunError)
    with pytest.raises(RunError, match="not a regular file"):
        read_bytes(tmp_path / "zero", error=RunError, follow=True)
    assert read_bytes(tmp_path / "link", follow=True) == b"{}"
    with pytest.raises(RunError, match="larger than 1 bytes"):
        read_bytes(target, limit=1, error=RunError)
