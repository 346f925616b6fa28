"""The card and the metadata of a published version: what they say, and that foreign text stays text."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from kdpipe.sharing.card import card
from kdpipe.sharing.catalog import Row, row_of
from kdpipe.sharing.croissant import croissant
from kdpipe.sharing.settings import Withholding
from kdpipe.sharing.withholding import derive
from kdpipe.store import manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.sections import Teacher
from kdpipe.store.settings import Provenance
from kdpipe.testing.stores import PRESET, small_plan, small_store

EVIL = (
    "x\n---\nlicense: mit\n# h1 <img src=x onerror=alert(1)> [a](http://b.example) ![i](http://c.example/i.png) "
    "`code` | cell | **b** <script>alert(2)</script>\n    code\n- item\n1. item\n> quote\n\n```\nfence\n"
    "www.example.org https://d.example me@e.example &lt; \\ {{ 7*7 }} \u202e\x1b[31m"
)
SAID = Provenance(title="Flowers", license="CC-BY-4.0", contact="a@b.example", citation="Doe 2026", notes="for all")


def made(path: Path, provenance: Provenance = SAID, **ingredients: Any) -> tuple[Manifest, Row]:
    plan = replace(small_plan(**ingredients), provenance=provenance)
    found = small_store(path / "a.zarr", plan)
    return found, row_of(found, name="flowers", version="v2", created="2026-01-01T00:00:00+00:00")


def parts(text: str) -> tuple[dict[str, Any], str]:
    """Return the head and the body of a card, as a dataset hub splits them."""
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_card_tells_what_a_reader_has_to_know(tmp_path: Path) -> None:
    found, row = made(tmp_path)
    head, body = parts(card(found, row))
    assert head == {
        "pretty_name": "Flowers",
        "license": "cc-by-4.0",
        "task_categories": ["image-classification"],
        "tags": ["knowledge-distillation", "logits", "kdpipe", "zarr"],
        "size_categories": ["n<1K"],
    }
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    for part in ("<h1>Flowers</h1>", "teacher", "a@b.example", "CC-BY-4.0", "Doe 2026", "for all", "26 images"):
        assert part in page
    for part in (found.digest, found.fingerprint.teacher.digest, "class 0, class 1", "fp16", "crop-flip", "any temper"):
        assert str(part) in page
    assert "kdpipe pull URL/flowers@v2 --data DATA --out flowers.zarr" in page
    assert "kdpipe train-student --data DATA --store flowers.zarr" in page
    assert "Withheld" not in page


def test_a_card_tells_the_class_map(tmp_path: Path) -> None:
    plan = small_plan()
    outputs = (*((10 + index,) for index in range(1, len(plan.classes))), (3, 7))
    teacher = plan.fingerprint.teacher.model_copy(update={"class_maps": (outputs,)})
    plan = replace(plan, provenance=SAID, fingerprint=plan.fingerprint.model_copy(update={"teacher": teacher}))
    found = small_store(tmp_path / "a.zarr", plan)
    body = card(found, row_of(found, name="flowers", version="v2", created="2026-01-01T00:00:00+00:00"))
    assert "outputs of the teacher, by index: class 0 from 11, class 1 from 12" in body
    assert f"{plan.classes[-1]} from 3+7" in body
    assert manifest.read(tmp_path / "a.zarr") == found


@pytest.mark.parametrize(
    ("license_", "head"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("MIT OR Apache-2.0", {"license": "other", "license_name": "mit-or-apache-2.0"}),
        ("LicenseRef-Acme", {"license": "other", "license_name": "licenseref-acme"}),
    ],
)
def test_the_license_in_the_words_of_dataset_hubs(tmp_path: Path, license_: str, head: dict[str, str]) -> None:
    found, row = made(tmp_path, SAID.model_copy(update={"license": license_}))
    assert parts(card(found, row))[0].items() >= head.items()


def test_what_was_withheld_is_told_with_its_consequences(tmp_path: Path) -> None:
    made(tmp_path, classes=12)
    asked = Withholding(encoding="topk:3", hide_names=True, no_labels=True, views=0)
    found = derive(tmp_path / "a.zarr", tmp_path / "work", asked, secret=b"s" * 32).manifest
    body = card(found, row_of(found, name="flowers", version="v2", created="2026-01-01"))
    assert "Without the secret, rows cannot be matched with images" in body
    assert "Hard labels" in body
    assert "temperatures up to 1" in body
    assert "kdpipe pull" not in body
    assert found.derived_from is not None
    assert f"mean KL against that store {found.derived_from.kl['1']:.1e} at T=1" in body


def test_no_training_is_offered_without_a_training_split(tmp_path: Path) -> None:
    made(tmp_path)
    found = derive(tmp_path / "a.zarr", tmp_path / "work", Withholding(splits=("test",))).manifest
    body = card(found, row_of(found, name="flowers", version="v2", created="2026-01-01"))
    assert "kdpipe pull URL/flowers@v2" in body
    assert "train-student" not in body


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def elements(body: str) -> _Elements:
    """Render Markdown as a hub does that allows HTML, and return the elements of the page."""
    page = _Elements()
    page.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body))
    return page


def test_foreign_text_adds_no_markup_and_no_entries(tmp_path: Path) -> None:
    evil = Provenance(title=EVIL, license=EVIL, contact=EVIL, citation=EVIL, notes=EVIL, allowed_use=EVIL)
    teacher = Teacher(name=EVIL, digest="ab" * 16, preset=PRESET.describe(), parameters=1)
    (tmp_path / "evil").mkdir()
    calm = SAID.model_copy(update={"allowed_use": "research"})
    plain, row = made(tmp_path, calm)
    hostile, evil_row = made(tmp_path / "evil", evil, teacher=teacher)
    hostile = hostile.model_copy(update={"classes": (EVIL,) * 5, "dataset": EVIL})
    head, body = parts(card(hostile, evil_row))
    assert head.keys() == {*parts(card(plain, row))[0], "license_name"}
    assert head["license"] == "other"
    page, expected = elements(body), elements(parts(card(plain, row))[1])
    ignored = {"br", "p"}  # lines and paragraphs of a quotation
    assert [tag for tag in page.found if tag not in ignored] == [tag for tag in expected.found if tag not in ignored]
    for part in ("<script>alert(2)</script>", "[a](http://b.example)", "{{ 7*7 }}", "www.example.org", "\\x1b[31m"):
        assert part in page.text
    assert "\x1b" not in body
    assert "\u202e" not in body
    for word in ("http://", "www.", "@e.example"):
        assert word not in body, "hubs make links of addresses"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("provenance", [SAID, Provenance(title=EVIL, license=EVIL, contact=EVIL, citation=EVIL)])
def test_the_metadata_is_valid_croissant(
    tmp_path: Path, provenance: Provenance, caplog: pytest.LogCaptureFixture
) -> None:
    import mlcroissant

    found, row = made(tmp_path, provenance)
    found = found.model_copy(update={"about": {"created": "2026-01-01T00:00:00+00:00"}})
    path = tmp_path / "croissant.json"
    path.write_text(croissant(found, row))
    with caplog.at_level(logging.WARNING):
        metadata = mlcroissant.Dataset(jsonld=str(path)).metadata
    assert caplog.messages == []
    assert not metadata.ctx.issues.errors
    assert metadata.name == "flowers"
    assert metadata.version == "2.0.0"
    described = json.loads(path.read_text())
    root = described["distribution"][0]
    assert root["sha256"] == hashlib.sha256(manifest.document(found)).hexdigest()
    assert {each["includes"] for each in described["distribution"][1:]} == {"train*/**", "test*/**"}
