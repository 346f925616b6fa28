"""Folders of ``hf:`` whose descriptions name files elsewhere: nothing is fetched, and nothing outside is read."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.dataset import load
from kdpipe.errors import DatasetError
from tests.unit.dataset.conftest import picture


class _Counting(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    def do_GET(self) -> None:
        self.do_HEAD()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that were asked of it."""
    handler = type("Handler", (_Counting,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", handler.asked
        running.shutdown()


def described(folder: Path, place: str, *, card: str = "README.md") -> Path:
    """Write a folder with a table in ``data`` and a description that names ``place``."""
    (folder / "data").mkdir(parents=True)
    out = io.BytesIO()
    picture(1).save(out, "PNG")
    pq.write_table(pa.table({"image": [out.getvalue()], "label": [0]}), folder / "data" / "train.parquet")
    text = f'configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ["{place}"]\n'
    (folder / card).write_text(f"---\n{text}---\nSee https://example.org.\n" if card == "README.md" else text)
    return folder


def test_what_a_description_names_in_its_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert len(load(f"hf:{described(tmp_path / 'h', 'data/*.parquet')}", "train")) == 1


@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_nothing_is_fetched_for_a_folder(tmp_path: Path, server: tuple[str, list[str]], card: str) -> None:
    address, asked = server
    folder = described(tmp_path / "h", f"{address}/train.parquet", card=card)
    with pytest.raises(DatasetError, match=r"names the data 'http://.*', which is not below"):
        load(f"hf:{folder}", "train")
    assert asked == []


@pytest.mark.parametrize("place", ["../other/*.parquet", "/etc/train.parquet", "zip://x.parquet::data/a.zip"])
def test_nothing_outside_of_a_folder_is_read(tmp_path: Path, place: str) -> None:
    with pytest.raises(DatasetError, match="which is not below"):
        load(f"hf:{described(tmp_path / 'h', place)}", "train")
