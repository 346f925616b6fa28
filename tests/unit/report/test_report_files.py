"""Every file of a report: what it says, what it never says, and that it stands alone."""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kdpipe.benchmark.comparison import compare, recommend
from kdpipe.benchmark.results import (
    AttackIdentity,
    BenchmarkResult,
    StoreIdentity,
    StudentResult,
    TeacherResult,
    average,
)
from kdpipe.metrics import METRICS, Logits, measure, metric
from kdpipe.printable import printable
from kdpipe.report import table, write
from tests.timings import timed

EVIL = '<script>alert("1")</script>&$x^[bold]_\n你'
VOID = {"meta", "img", "link", "br", "hr", "input"}


def _student(name: str, *, top1: float | None, ms: float, **other: Any) -> StudentResult:
    figures = {"top1": top1, "top5": 0.99, "cross_entropy": 0.25, "agreement": 0.875}
    figures |= {name: other.pop(name) for name in list(other) if name in figures}
    plain = StudentResult(
        name=name,
        path=Path("runs") / name.replace("/", "-"),
        architecture="resnet8",
        distill="cache",
        loss="kd",
        seed=3,
        figures=figures,
        parameters=78_000,
        file_bytes=320_000,
        timings=timed({1: ms, 64: 30 * ms}),
    )
    return replace(plain, **other)


@pytest.fixture
def result() -> BenchmarkResult:
    students = [
        _student("distilled", top1=0.85, ms=1.0),
        _student("labels", top1=0.80, ms=1.1, distill="none", agreement=None),
        _student("far", top1=0.89, ms=40.0, architecture="resnet110", distill="live", cross_entropy=math.inf),
        _student("unlabeled", top1=None, ms=2.0, top5=None, cross_entropy=math.nan, timings={}),
    ]
    return BenchmarkResult(
        dataset="cifar10",
        samples=10_000,
        students=compare(students, teacher_top1=0.9, samples=10_000),
        machine={"processor": "Some <CPU>", "memory_bytes": 16_000_000_000, "gpu": None},
        created="2025-05-01T12:00:00+00:00",
        teacher=TeacherResult("resnet56", {"top1": 0.9, "top5": 0.999}),
        stores=(StoreIdentity("data/logits.zarr", "b3f0" * 8, 0.7), StoreIdentity("data/more.zarr", "c4e1" * 8, 0.3)),
    )


@pytest.fixture
def bare() -> BenchmarkResult:
    """A benchmark in which every text is hostile and nothing that may be missing is there."""
    student = _student(EVIL, top1=None, ms=1.0, architecture=EVIL, loss=EVIL, timings={}, agreement=None)
    return BenchmarkResult(
        dataset=EVIL,
        samples=1,
        students=(student, replace(student, name="_" + "long" * 50)),
        machine={EVIL: EVIL},
        created=EVIL,
        teacher=TeacherResult(EVIL, {"top1": None, "top5": None}),
        stores=(StoreIdentity(EVIL, EVIL),),
    )


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_metrics_are_strict_json(result: BenchmarkResult, tmp_path: Path) -> None:
    text = write(result, tmp_path)["metrics.json"].read_text()
    read = json.loads(text, parse_constant=_refuse_constant)
    assert read["recommended"] == "far"
    assert read["teacher"] == {"name": "resnet56", "top1": 0.9, "top5": 0.999}
    assert read["stores"] == [
        {"path": "data/logits.zarr", "digest": "b3f0" * 8, "weight": 0.7},
        {"path": "data/more.zarr", "digest": "c4e1" * 8, "weight": 0.3},
    ]
    distilled = read["students"]["distilled"]
    assert distilled["gap_recovered"] == pytest.approx(0.5)
    assert distilled["latency_ms"]["batch1"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert distilled["images_per_second"]["batch64"] == pytest.approx(64 / 0.03)
    assert read["students"]["labels"]["gap_recovered"] is None
    assert read["students"]["far"]["cross_entropy"] is None
    assert read["students"]["unlabeled"]["top1"] is None


def test_csv_has_one_row_per_student(result: BenchmarkResult, tmp_path: Path) -> None:
    with write(result, tmp_path)["results.csv"].open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["distilled", "labels", "far", "unlabeled"]
    assert float(rows["distilled"]["top1"]) == 0.85
    assert rows["labels"]["gap_recovered"] == rows["far"]["cross_entropy"] == "n/a"
    assert rows["unlabeled"]["batch64_p50_ms"] == rows["unlabeled"]["cross_entropy"] == "n/a"
    assert [row["recommended"] for row in rows.values()] == ["False", "False", "True", "False"]
    assert not any(value == "" for row in rows.values() for value in row.values())


def test_page_stands_alone_and_says_everything(result: BenchmarkResult, tmp_path: Path) -> None:
    histories = {"distilled": [{"epoch": 0, "loss": 2.0, "top1": 0.1}, {"epoch": 1, "loss": math.nan}]}
    page = _parse(write(result, tmp_path, histories=histories)["report.html"])
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in {"src", "href", "srcset", "action"}]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "url(" not in page.text
    assert "@import" not in page.text
    name, reason = recommend(result)
    assert page.text.index(f"Ship {name}") < page.text.index(reason) < page.text.index("Students")
    for expected in (
        "50.00",
        "87.50",
        "n/a",
        "Some <CPU>",
        "b3f0" * 8,
        "16.0 GB",
        "Gap recovered",
        "cifar10",
    ):
        assert expected in page.text


def test_hostile_texts_stay_texts(bare: BenchmarkResult, tmp_path: Path) -> None:
    paths = write(bare, tmp_path, histories={EVIL: [{EVIL: 1.0}], "_hidden": [{EVIL: 2.0}]})
    page = _parse(paths["report.html"])
    assert "script" not in page.tags
    assert printable(EVIL) in page.text
    assert list(json.loads(paths["metrics.json"].read_text())["students"]) == [s.name for s in bare.students]
    assert "[bold]" in paths["summary.txt"].read_text()


@pytest.mark.parametrize("name", ["summary.txt", "results.csv", "report.html", "metrics.json"])
def test_no_text_steers_a_terminal(bare: BenchmarkResult, tmp_path: Path, name: str) -> None:
    evil = "\x1b]0;owned\x07\u202egpj\nShip evil"
    student = replace(bare.students[0], name=evil, architecture=evil, loss=evil, gap_note=evil)
    hostile = replace(bare, students=(student,), dataset=evil, teacher=TeacherResult(evil, {"top1": 0.5}))
    text = write(hostile, tmp_path)[name].read_text(encoding="utf-8")
    assert not {"\x1b", "\x07", "\u202e"} & {*text}
    assert not any(line.startswith("Ship evil") for line in text.splitlines())
    assert ("\\u202e" if name == "metrics.json" else printable(evil)) in text


@pytest.mark.parametrize("first", "=+-@\t\r")
def test_no_cell_of_the_csv_is_a_formula(bare: BenchmarkResult, tmp_path: Path, first: str) -> None:
    student = replace(bare.students[0], name=f"{first}HYPERLINK(1)", loss=f"{first}1")
    path = write(replace(bare, students=(student,)), tmp_path)["results.csv"]
    with path.open(encoding="utf-8", newline="") as stream:
        row = next(csv.DictReader(stream))
    assert (row["name"][0], row["loss"][0]) == ("'", "'")


def test_picture_is_a_png_with_something_on_it(result: BenchmarkResult, tmp_path: Path) -> None:
    pixels = np.asarray(Image.open(write(result, tmp_path)["pareto.png"]).convert("RGB"))
    assert pixels.shape == (800, 1280, 3)
    for color in [(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0x7A, 0x7A, 0x7A)]:
        assert (pixels == color).all(axis=-1).sum() > 50


def test_equal_results_give_equal_files(result: BenchmarkResult, tmp_path: Path) -> None:
    first = {name: path.read_bytes() for name, path in write(result, tmp_path).items()}
    assert first == {name: path.read_bytes() for name, path in write(result, tmp_path).items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(first)


@pytest.mark.parametrize("count", [1, 40])
def test_crowds_and_single_students_are_drawn(count: int, tmp_path: Path) -> None:
    students = [_student(f"student-{i}", top1=0.5 + 0.001 * (i % 7), ms=1.0) for i in range(count)]
    crowd = BenchmarkResult(
        dataset="d", samples=5, students=compare(students, teacher_top1=None, samples=10_000), machine={}, created="now"
    )
    paths = write(crowd, tmp_path)
    assert json.loads(paths["metrics.json"].read_text())["teacher"] is None
    assert _parse(paths["report.html"]).text.count("student-0") >= 2


def test_summary_is_plain_text(result: BenchmarkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    text = write(result, tmp_path)["summary.txt"].read_text()
    assert "\x1b" not in text
    assert "* far" in text
    assert recommend(result).reason in text
    assert str(tmp_path / "report.html") in text


def test_table_lists_students_and_teacher(result: BenchmarkResult) -> None:
    console = Console(file=io.StringIO(), width=140)
    with console.capture() as capture:
        console.print(table(result))
    text = capture.get()
    for expected in ("distilled", "* far", "resnet56", "85.00", "n/a", "78.0 k", "320 kB", "2,133"):
        assert expected in text


def test_an_undefined_gap_is_printed_with_its_reason(tmp_path: Path) -> None:
    students = [
        _student("kd", top1=0.94, ms=1.0),
        _student("dkd", top1=0.95, ms=1.0),
        _student("labels", top1=0.94, ms=1.0, distill="none"),
        _student("other", top1=0.95, ms=1.0, architecture="resnet<14>"),
    ]
    result = BenchmarkResult(
        dataset="digits", samples=360, machine={}, created="now",
        students=compare(students, teacher_top1=0.955, samples=360), teacher=TeacherResult("big", {"top1": 0.955}),
    )  # fmt: skip
    noise = (
        "the difference between teacher (95.50%) and baseline (94.00%) is within the noise of 360 test samples "
        "(± 3.26 percentage points)"
    )
    paths = write(result, tmp_path)
    found = json.loads(paths["metrics.json"].read_text())["students"]
    assert {student["gap_recovered"] for student in found.values()} == {None}
    assert found["kd"]["gap_note"] == found["dkd"]["gap_note"] == noise
    assert found["labels"]["gap_note"] is None
    assert "no baseline" in found["other"]["gap_note"]
    with paths["results.csv"].open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert [rows[name]["gap_recovered"] for name in rows] == ["n/a"] * 4
    assert (rows["kd"]["gap_note"], rows["labels"]["gap_note"]) == (noise, "n/a")
    sentence = f"Gap recovered is n/a for kd, dkd: {noise}."
    assert sentence in _parse(paths["report.html"]).text
    assert sentence in " ".join(paths["summary.txt"].read_text().split())
    assert "Newcombe" in paths["report.html"].read_text()


@pytest.fixture
def margin() -> Iterator[None]:
    """A metric that is registered for one test."""

    @metric(title="Mean <margin>", short="margin")
    def margin(logits: Logits) -> float:
        """Difference of the two largest logits & nothing else."""
        return float(np.diff(np.sort(logits, axis=1)[:, -2:]).mean())

    yield
    del METRICS["margin"]


@pytest.mark.usefixtures("margin")
def test_a_registered_metric_is_in_every_file(tmp_path: Path) -> None:
    logits, labels = np.array([[0, 2, 5], [0, 1, 0]], np.float32), np.array([2, 0], np.int32)
    students = [
        replace(_student("a", top1=None, ms=1.0), figures=measure(logits, labels)),
        replace(_student("b", top1=None, ms=1.0), figures=measure(2 * logits, labels)),
    ]
    students.append(average(students, name="both", path=Path("runs/both")))
    result = BenchmarkResult(
        dataset="d", samples=2, machine={}, created="now", teacher=TeacherResult("t", measure(3 * logits, labels)),
        students=compare(students, teacher_top1=0.5, samples=2),
    )  # fmt: skip
    paths = write(result, tmp_path)
    found = json.loads(paths["metrics.json"].read_text())
    assert [student["margin"] for student in found["students"].values()] == [2.0, 4.0, 3.0]
    assert found["students"]["both"]["margin_std"] == pytest.approx(2**0.5)
    assert [run["margin"] for run in found["students"]["both"]["runs"]] == [2.0, 4.0]
    assert found["teacher"]["margin"] == 6.0
    with paths["results.csv"].open(newline="") as file:
        assert [row["margin"] for row in csv.DictReader(file)] == ["2.0", "4.0", "3.0"]
    page = _parse(paths["report.html"]).text
    for part in ("Mean <margin>", "Difference of the two largest logits & nothing else.", "3.00 ± 1.41", "6.00"):
        assert part in page
    summary = paths["summary.txt"].read_text()
    assert "margin" in summary
    assert "± 1.41" in summary


def _attacked(result: BenchmarkResult) -> BenchmarkResult:
    """Return the result with an attack that one student was not measured under."""
    shares = [0.4375, 0.125, None, None]
    students = [
        replace(student, figures={**student.figures, "adversarial_top1": share})
        for student, share in zip(result.students, shares, strict=True)
    ]
    return replace(result, students=tuple(students), attack=AttackIdentity("pgd:8/255,20", 9_000))


def test_accuracy_under_attack_stands_beside_the_clean_one(result: BenchmarkResult, tmp_path: Path) -> None:
    files = write(_attacked(result), tmp_path)
    found = json.loads(files["metrics.json"].read_text())
    assert found["adversarial"] == {"attack": "pgd:8/255,20", "samples": 9_000}
    keys = list(found["students"]["distilled"])
    assert keys.index("adversarial_top1") == keys.index("top1_std") + 1
    assert found["students"]["unlabeled"]["adversarial_top1"] is None
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(files["results.csv"].read_text()))}
    assert [rows[name]["adversarial_top1"] for name in ("distilled", "far")] == ["0.4375", "n/a"]
    page = _parse(files["report.html"]).text
    for part in ("PGD top‑1 %", "43.75", "12.50", "pgd:8/255,20 on 9,000 test samples", "upper bound"):
        assert part in page
    summary = files["summary.txt"].read_text()
    assert "9,000 attacked by pgd:8/255,20" in summary
    (line,) = [line for line in summary.splitlines() if "│ labels " in line]
    assert [cell.strip() for cell in line.split("│")[3:5]] == ["80.00", "12.50"]


@pytest.mark.parametrize("attacked", [False, True])
def test_every_row_of_the_page_has_the_same_cells(result: BenchmarkResult, tmp_path: Path, attacked: bool) -> None:
    result = _attacked(result) if attacked else result
    body = write(result, tmp_path)["report.html"].read_text().split("<tbody>")[1].split("</tbody>")[0]
    counts = [row.count("<td") + row.count("<th") for row in body.split("</tr>")[:-1]]
    assert counts == [18 + attacked] * 5


@pytest.fixture
def seeded() -> BenchmarkResult:
    """Two students of three seeds, one of a single seed below ``--seeds``, and a single run."""

    def seeds(name: str, *top1: float, **other: Any) -> StudentResult:
        runs = [_student(f"{name}/seed-{seed}", top1=share, seed=seed, **other) for seed, share in enumerate(top1)]
        runs = [
            replace(
                run, path=Path("runs") / run.name, figures={**run.figures, "cross_entropy": run.figures["top1"] * 2}
            )
            for run in runs
        ]
        return average(runs, name=name, path=Path("runs") / name)

    students = [
        seeds("kd", 0.84, 0.88, 0.86, ms=1.0),
        seeds("labels", 0.80, 0.82, 0.78, ms=1.5, distill="none", agreement=None),
        seeds("one", 0.70, ms=2.0, architecture="resnet14"),
        _student("single", top1=0.75, ms=3.0, architecture="resnet14"),
    ]
    return BenchmarkResult(
        dataset="cifar10", samples=10_000, machine={}, created="now",
        students=compare(students, teacher_top1=0.9, samples=10_000),
        teacher=TeacherResult("resnet56", {"top1": 0.9, "top5": 0.999}),
    )  # fmt: skip


def test_several_seeds_are_one_entry_with_their_runs(seeded: BenchmarkResult, tmp_path: Path) -> None:
    read = json.loads(write(seeded, tmp_path)["metrics.json"].read_text(), parse_constant=_refuse_constant)
    assert (read["recommended"], read["recommended_run"]) == ("kd", "runs/kd/seed-0")
    students = read["students"]
    assert list(students) == ["kd", "labels", "one", "single"]
    assert [student["seeds"] for student in students.values()] == [3, 3, 1, 1]
    assert [student["seed"] for student in students.values()] == [None, None, 0, 3]
    kd = students["kd"]
    assert (kd["top1"], kd["top1_std"]) == pytest.approx((0.86, 0.02))
    assert (kd["cross_entropy"], kd["cross_entropy_std"]) == pytest.approx((1.72, 0.04))
    gaps = [0.04 / 0.1, 0.06 / 0.08, 0.08 / 0.12]
    assert (kd["gap_recovered"], kd["gap_recovered_std"]) == pytest.approx((np.mean(gaps), np.std(gaps, ddof=1)))
    assert [(run["seed"], run["path"]) for run in kd["runs"]] == [(seed, f"runs/kd/seed-{seed}") for seed in range(3)]
    assert [run["gap_recovered"] for run in kd["runs"]] == pytest.approx(gaps)
    assert "runs" not in students["single"]
    assert {students[name]["top1_std"] for name in ("one", "single")} == {None}


def test_csv_of_several_seeds(seeded: BenchmarkResult, tmp_path: Path) -> None:
    with write(seeded, tmp_path)["results.csv"].open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["kd"]["top1"]) == pytest.approx(0.86)
    assert float(rows["kd"]["top1_std"]) == pytest.approx(0.02)
    assert [row["seeds"] for row in rows.values()] == ["3", "3", "1", "1"]
    assert [row["seed"] for row in rows.values()] == ["n/a", "n/a", "0", "3"]
    assert rows["one"]["top1_std"] == rows["single"]["top1_std"] == rows["labels"]["gap_recovered_std"] == "n/a"
    assert float(rows["kd"]["batch1_p50_ms"]) == 1.0


def test_page_and_summary_show_means_and_the_run_to_ship(seeded: BenchmarkResult, tmp_path: Path) -> None:
    paths = write(seeded, tmp_path)
    page = _parse(paths["report.html"])
    for expected in ("86.00 ± 2.00", "80.00 ± 2.00", "1.720 ± 0.040", "3 seeds", "runs/kd/seed-2", "sample standard"):
        assert expected in page.text
    assert page.text.count("70.00") == 1
    assert "70.00 ±" not in page.text
    body = paths["report.html"].read_text().split("<tbody>")[1].split("</tbody>")[0]
    assert {row.count("<td") + row.count("<th") for row in body.split("</tr>")[:-1]} == {18}
    text = paths["summary.txt"].read_text()
    assert "runs/kd/seed-0" in text
    assert text.count("3 seeds") == 3
    assert "± 2.00" in text
    plain = replace(seeded, students=seeded.students[3:])
    assert "standard deviation" not in _parse(write(plain, tmp_path)["report.html"]).text


@pytest.mark.parametrize("width", [100, 140])
def test_deviations_take_hardly_any_width_in_the_terminal(seeded: BenchmarkResult, width: int) -> None:
    means = replace(seeded, students=tuple(replace(student, seed_runs=()) for student in seeded.students))
    console = Console(width=width)
    drawn = [console.render_lines(table(result), pad=False) for result in (seeded, means)]
    widths = [sum(len(segment.text) for segment in lines[1]) for lines in drawn]
    assert widths[1] <= widths[0] <= min(width, widths[1] + 2)
    text = ["".join(segment.text for segment in line) for line in drawn[0]]
    assert sum("± 2.00" in line for line in text) == 2
    assert not any("…" in line for line in text)


def _rows(png: Path, color: tuple[int, int, int]) -> np.ndarray:
    """Return the rows of the axes in which a color is found."""
    pixels = np.asarray(Image.open(png).convert("RGB")).astype(int)[:640]
    return np.flatnonzero((np.abs(pixels - color).max(axis=-1) < 40).any(axis=1))


def test_bars_in_the_picture_are_as_long_as_the_deviation(seeded: BenchmarkResult, tmp_path: Path) -> None:
    """The bar of 86 ± 2 % reaches from one student's height, 84 %, to the other's, 88 %."""
    kd = seeded.students[0]
    marks = [_student(f"m{share}", top1=share, ms=4.0, distill="live") for share in (0.84, 0.88)]
    pictures = {}
    for name, student in (("several", kd), ("single", replace(kd, seed_runs=()))):
        result = replace(seeded, students=(student, *marks), teacher=None)
        pictures[name] = write(result, tmp_path / name)["pareto.png"]
    orange = _rows(pictures["several"], (0xD5, 0x5E, 0))
    distance = np.ptp(orange) - np.ptp(orange[orange < orange.mean()])
    assert distance > 200
    assert np.ptp(_rows(pictures["several"], (0, 0x72, 0xB2))) == pytest.approx(distance, abs=6)
    assert np.ptp(_rows(pictures["single"], (0, 0x72, 0xB2))) < 30
