"""The page of a catalog in a real Chromium: how it looks, for whom it can be used, and what it loads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdpipe.sharing.catalog import Catalog, Row, RowClasses, RowTeacher
from kdpipe.sharing.page import page
from tests.browser.test_page import AXE, CHROMIUM, EVIL, MODES, Browser, opened, sync_api

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


def row(name: str, version: str, **fields: object) -> Row:
    known = {
        "checksum": "ab" * 16,
        "digest": "cd" * 16,
        "size": 7_400_000,
        "files": 120,
        "license": "CC-BY-4.0",
        "teacher": RowTeacher(name="resnet110", top1=0.7412),
        "classes": RowClasses(count=100, digest="ef" * 16),
        "samples": {"train": 50_000, "test": 10_000},
        "views": 8,
        "recipe": "rrc:scale=0.08-1+flip",
        "encoding": "klt0.36",
        "kl": {"1": 1.2e-4, "4": 3e-5},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Row(name=name, version=version, **{**known, **fields})  # type: ignore[arg-type]


ROWS = (
    row("cifar100", "v2", views=8, title="CIFAR-100 from ResNet-110"),
    row("cifar100", "v10", views=16, size=14_000_000, kl=None, signer="SHA256:" + "a" * 43),
    row(
        "flowers",
        "v1",
        teacher=RowTeacher(name="our ViT-B"),
        license="LicenseRef-Acme",
        derived_from="ab" * 16,
        withheld=("encoding", "names"),
    ),
)


@pytest.fixture(scope="module")
def catalog_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "index.html"
    path.write_text(page(Catalog(versions=ROWS)), encoding="utf-8")
    return path


def stores(shown: object) -> list[str]:
    return [text.split("\n")[0] for text in shown.locator("tbody tr:visible th").all_inner_texts()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "scheme"), MODES)
def test_it_fits_the_screen_in_light_and_dark(browser: Browser, catalog_page: Path, width: int, scheme: str) -> None:
    with opened(browser, catalog_page, width=width, color_scheme=scheme) as (shown, faults):
        picture = shown.screenshot(full_page=True)
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        text = shown.locator("main").inner_text()
    assert faults == []
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L")).astype(int)
    assert (pixels[2, 2] > 200) == (scheme == "light")
    assert np.abs(pixels - pixels[2, 2]).max() > 150
    for part in (
        "cifar100@v10",
        "CIFAR-100 from ResNet-110",
        "74.12%",
        "50,000 train + 10,000 test",
        "1.2e-04",
        "14.0",
    ):
        assert part in text


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make build/node/.installed")
@pytest.mark.parametrize(("width", "scheme"), MODES)
def test_it_has_no_fault_of_accessibility(browser: Browser, catalog_page: Path, width: int, scheme: str) -> None:
    with opened(browser, catalog_page, width=width, color_scheme=scheme) as (shown, _):
        shown.evaluate(AXE.read_text(encoding="utf-8"))
        found = shown.evaluate("axe.run()")
    faults = [(each["impact"], each["id"], each["nodes"][0]["html"][:100]) for each in found["violations"]]
    assert faults == []
    assert len(found["passes"]) > 15


def test_it_is_sorted_and_filtered_by_keyboard(browser: Browser, catalog_page: Path) -> None:
    with opened(browser, catalog_page) as (shown, faults):
        assert stores(shown) == ["cifar100@v10", "cifar100@v2", "flowers@v1"]
        by_views = shown.locator("thead button", has_text="Views")
        by_views.focus()
        for order, state in (
            (["cifar100@v2", "flowers@v1", "cifar100@v10"], "ascending"),
            (["cifar100@v10", "cifar100@v2", "flowers@v1"], "descending"),
        ):
            shown.keyboard.press("Enter")
            assert stores(shown) == order
            assert shown.locator("thead th", has_text="Views").get_attribute("aria-sort") == state
        for _ in range(2):  # an unknown figure comes last in both orders
            shown.locator("thead button", has_text="KL").press("Enter")
            assert stores(shown)[-1] == "cifar100@v10"
        shown.get_by_label("Show rows with").fill("vit acme")
        assert stores(shown) == ["flowers@v1"]
        assert shown.locator("output").inner_text() == "1 of 3"
    assert faults == []


def test_it_is_whole_without_scripts(browser: Browser, catalog_page: Path) -> None:
    with opened(browser, catalog_page, java_script_enabled=False) as (shown, faults):
        assert stores(shown) == ["cifar100@v10", "cifar100@v2", "flowers@v1"]
        assert not shown.locator("input").is_visible()
        links = [each.get_attribute("href") for each in shown.locator("tbody a").all()]
        assert links == ["cifar100/v10/README.md", "cifar100/v2/README.md", "flowers/v1/README.md"]
    assert faults == []


def test_foreign_text_stays_text(browser: Browser, tmp_path: Path) -> None:
    hostile = row(
        "evil", "v1", title=EVIL, license=EVIL, recipe=EVIL, encoding=EVIL, signer=EVIL, created=EVIL[:60],
        teacher=RowTeacher(name=EVIL), samples={EVIL: 1}, withheld=(EVIL[:60],),
    )  # fmt: skip
    path = tmp_path / "index.html"
    path.write_text(page(Catalog(versions=(hostile,))), encoding="utf-8")
    with opened(browser, path) as (shown, faults):
        assert shown.locator("main").inner_text().count("onerror") >= 6
        assert shown.locator("img").count() == 0
        assert shown.locator("script").count() == 1
        assert "49" not in shown.locator("main").inner_text()
    assert faults == []


def test_an_empty_catalog_and_a_large_one(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    for count in (0, 1000):
        path.write_text(page(Catalog(versions=tuple(row("many", f"v{number}") for number in range(count)))))
        with opened(browser, path) as (shown, faults):
            assert shown.locator("tbody tr").count() == count
        assert faults == []
