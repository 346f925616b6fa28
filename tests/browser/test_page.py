"""The report's page in a real Chromium: how it looks, for whom it can be used, and what it loads.

The screenshots are kept where ``KDPIPE_SCREENSHOTS`` names a folder.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdpipe.report import write
from tests.conftest import ROOT
from tests.reports import full, histories

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = ROOT / "build/node/node_modules/axe-core/axe.min.js"
EVIL = '"><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7*7 }}'

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")

STUDENTS = ("resnet8-kd", "resnet8-labels", "resnet14-kd", "resnet20-live", "resnet20-dkd-pruned50")
Browser = Any
Page = Any
MODES = [(width, scheme) for width in (1400, 400) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = full(*STUDENTS)
    return write(result, tmp_path_factory.mktemp("report") / "r", histories=histories(result))["report.html"]


@contextmanager
def opened(browser: Browser, path: Path, *, width: int = 1400, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """Open a page, and collect whatever it should not do: messages, errors, dialogs, requests."""
    faults: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
    page = context.new_page()
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: faults.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    yield page, faults
    context.close()


def rows(page: Page, table: str = "students") -> list[str]:
    """Return the names in a table, from top to bottom."""
    names = page.locator(f"table:has(caption#{table}) tbody tr > :first-child").all_inner_texts()
    return [name.split(" ◆")[0].split("\n")[0] for name in names]


@pytest.mark.parametrize(("width", "scheme"), MODES)
def test_it_fits_the_screen_and_is_not_blank(
    browser: Browser, report: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    with opened(browser, report, width=width, color_scheme=scheme) as (page, faults):
        folder = Path(os.environ.get("KDPIPE_SCREENSHOTS") or tmp_path)
        folder.mkdir(parents=True, exist_ok=True)
        picture = page.screenshot(path=folder / f"{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        small = page.evaluate(
            "[...document.querySelectorAll('svg.chart')].filter(e => e.checkVisibility()).map(e => e.clientWidth)"
        )
        assert len(small) > 5
        assert min(small) > 300
    assert faults == []
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    background, luminance = pixels[2, 2], pixels.mean(axis=2)
    assert (background.mean() > 200) == (scheme == "light")
    # No long stretch of the page is empty, and text is on it from top to bottom.
    written = np.flatnonzero((np.abs(luminance - background.mean()) > 60).sum(axis=1) > 3)
    assert np.diff(written).max() < 150
    for color in [(0, 114, 178), (213, 94, 0)] if scheme == "light" else [(87, 176, 238), (255, 143, 77)]:
        assert (np.abs(pixels - color).max(axis=2) < 8).sum() > 50


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: make build/node/.installed")
@pytest.mark.parametrize(("width", "scheme"), MODES)
def test_it_has_no_serious_fault_of_accessibility(browser: Browser, report: Path, width: int, scheme: str) -> None:
    with opened(browser, report, width=width, color_scheme=scheme) as (page, _):
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run()")
    faults = [
        (each["impact"], each["id"], [node["html"][:100] for node in each["nodes"]]) for each in found["violations"]
    ]
    assert [fault for fault in faults if fault[0] in ("serious", "critical")] == []
    assert len(found["passes"]) > 20


def test_tables_are_sorted_by_keyboard(browser: Browser, report: Path) -> None:
    shares = {
        name: figures["top1"]
        for name, figures in json.loads((report.parent / "metrics.json").read_text())["students"].items()
    }
    shares["resnet56"] = 0.9345
    ascending = sorted(shares, key=lambda name: shares[name])
    with opened(browser, report) as (page, faults):
        original = rows(page)
        assert original == list(shares)
        heading = page.locator("table:has(caption#students) thead th", has_text="Top‑1").first
        page.keyboard.press("Tab")
        while not page.evaluate("document.activeElement.textContent").startswith("Top"):
            page.keyboard.press("Tab")
        for order, state in ((ascending, "ascending"), (ascending[::-1], "descending"), (original, None)):
            page.keyboard.press("Enter")
            assert rows(page) == order
            assert heading.get_attribute("aria-sort") == state
        name = page.locator("table:has(caption#students) thead th", has_text="Student")
        name.get_by_role("button").press("Space")
        assert rows(page) == [*STUDENTS[:3], *sorted(STUDENTS[3:]), "resnet56"]  # 8 before 14
        assert name.get_attribute("aria-sort") == "ascending"
    assert faults == []


def test_missing_figures_come_last_however_they_are_sorted(browser: Browser, report: Path) -> None:
    with opened(browser, report) as (page, _):
        button = page.locator("table:has(caption#students) thead button", has_text="Gap")
        for _ in range(2):
            button.press("Enter")
            assert rows(page)[0] == "resnet8-kd"  # the only one with a baseline


@pytest.mark.parametrize("scripts", [True, False])
def test_the_engine_is_chosen_by_keyboard_with_or_without_scripts(
    browser: Browser, report: Path, scripts: bool
) -> None:
    with opened(browser, report, java_script_enabled=scripts) as (page, faults):
        plots = page.locator("fieldset:has(#engine-1) svg.chart")
        assert [plot.is_visible() for plot in plots.all()] == [True, False, False]
        page.locator("#engine-1").press("ArrowRight")
        assert [plot.is_visible() for plot in plots.all()] == [False, True, False]
        assert "eager fp32" in (plots.nth(1).get_attribute("aria-label") or "")
        assert page.locator("thead button").count() == (
            0 if not scripts else page.locator("table thead tr:last-child th").count()
        )
        assert "resnet20-dkd-pruned50 reaches a top-1 of 90.50 %" in page.locator("main").inner_text()
    assert faults == []


def test_wide_tables_scroll_by_keyboard_and_keep_the_names_in_view(browser: Browser, report: Path) -> None:
    with opened(browser, report, width=400) as (page, _):
        region = page.get_by_role("region", name="Students and their figures")
        name = region.locator("tbody th", has_text="resnet14-kd")
        region.focus()
        before = name.bounding_box()
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        for _ in range(100):
            if page.evaluate("document.activeElement.scrollLeft") > 100:
                break
            page.wait_for_timeout(50)
        assert page.evaluate("document.activeElement.scrollLeft") > 100
        assert name.bounding_box() == before
        assert page.evaluate("document.documentElement.scrollLeft") == 0


def test_foreign_text_stays_text(browser: Browser, tmp_path: Path) -> None:
    result = full(*STUDENTS[:2])
    students = [
        replace(
            each, name=f"{EVIL}{number}", loss=EVIL, origin=replace(each.origin, data=EVIL, command=EVIL, recipe=EVIL)
        )
        for number, each in enumerate(result.students)
    ]
    hostile = replace(result, students=tuple(students), dataset=EVIL, machine={EVIL: EVIL}, created=EVIL)
    path = write(hostile, tmp_path / "r", histories={EVIL: [{"loss": 1.0}, {"loss": 0.5}]})["report.html"]
    with opened(browser, path) as (page, faults):
        assert page.locator("main").inner_text().count("onerror") > 20
        assert page.locator("script").count() == 1
        assert page.locator("img").count() == page.locator("img[alt^='Grad-CAM maps']").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    assert faults == []
    with opened(browser, path.parent / "pareto.svg") as (page, faults):
        assert page.locator("text").count() > 5
    assert faults == []


def test_the_policy_of_the_page_runs_no_other_script(browser: Browser, report: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    changed.write_text(report.read_text().replace("<footer>", "<script>document.title = 'owned'</script><footer>"))
    with opened(browser, changed) as (page, faults):
        assert page.title() == "Benchmark on folder:cifar10"
    assert len(faults) == 1
    assert "Content Security Policy" in faults[0]
