"""Every file of a report: what it says, what it never says, and that it stands alone."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from kdpipe.benchmark.comparison import compare
from kdpipe.benchmark.deciding import verdict
from kdpipe.benchmark.quality import Samples
from kdpipe.benchmark.results import (
    AttackIdentity,
    BenchmarkResult,
    StoreIdentity,
    StudentResult,
    TeacherResult,
    average,
)
from kdpipe.benchmark.settings import DecisionSettings
from kdpipe.benchmark.timing import Network
from kdpipe.metrics import METRICS, Logits, measure, metric
from kdpipe.printable import printable
from kdpipe.report import table, write
from tests.reports import ROUNDS, full, histories, quality, right, student
from tests.timings import timed

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '<script>alert("1")</script>&$x^[bold]_\n你'
VOID = {"meta", "img", "link", "br", "hr", "input"}
OWN = "Turns the headings of the columns into buttons"


def _student(name: str, *, top1: float | None, ms: float, **other: Any) -> StudentResult:
    timings = timed({1: ms, 64: 30 * ms}, network=Network(other.get("architecture", "resnet8"), "0" * 16, 32))
    return student(name, top1=top1, **{"timings": timings} | other)


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
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.script += data
        else:
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
    expected = dict.fromkeys(("p50", "p50_low", "p50_high", "p90", "p95", "p99"), 1.0)
    assert distilled["latency_ms"]["batch1"] == expected
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
    assert not {"link", "iframe", "object", "base", "img", "a"} & set(page.tags)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not [value for name, value in page.attributes if name in {"src", "href", "srcset", "action", "style"}]
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert {value for name, value in page.attributes if "://" in value} == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page.text
    assert "@import" not in page.text
    found = verdict(result)
    assert page.text.index(f"Ship {found.chosen}") < page.text.index(found.reason) < page.text.index("Students")
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
    assert page.tags.count("script") == 1
    assert page.script.count(OWN) == 1
    assert "alert" not in page.script
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


def _marks(path: Path) -> dict[str, tuple[str, float, float]]:
    """Return the marks of the plot by the student's name: style, and the place of the center in pixels."""
    found = {}
    for mark in ElementTree.fromstring(path.read_text()).iterfind(f".//{SVG}path[@class]/{SVG}title/.."):
        title, place = mark.findtext(f"{SVG}title") or "", re.match(r"M([\d.]+) ([\d.]+)", mark.get("d", ""))
        assert place is not None
        found[title.partition(":")[0]] = (mark.get("class", ""), float(place[1]), float(place[2]))
    return found


def test_picture_is_an_svg_with_a_mark_for_each_student(result: BenchmarkResult, tmp_path: Path) -> None:
    path = write(result, tmp_path)["pareto.svg"]
    marks = _marks(path)
    assert [marks[name][0].split()[1] for name in ("distilled", "far", "labels")] == ["s0", "s1", "s7"]
    assert "ship" in marks["far"][0]
    assert "unlabeled" not in marks
    heights = [marks[name][2] for name in ("labels", "distilled", "far")]
    assert (heights[0] - heights[1]) / (heights[1] - heights[2]) == pytest.approx(5 / 4, abs=0.01)
    widths = [marks[name][1] for name in ("distilled", "labels", "far")]
    assert (widths[1] - widths[0]) / (widths[2] - widths[1]) == pytest.approx(
        math.log(1.1) / math.log(40 / 1.1), abs=0.01
    )
    description = ElementTree.parse(path).getroot().findtext(f"{SVG}desc")
    assert description is not None
    assert "distilled: 85.00 % at 1.00 ms" in description
    assert "On the Pareto front with eager fp32: distilled, far." in description


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
    assert verdict(result).reason in text
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
    assert keys.index("adversarial_top1") == keys.index("top1_high") + 1
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


def _tables(path: Path) -> dict[str, list[str]]:
    """Return the rows of each table of a page, by the name of the table, and those of its headings."""
    text = path.read_text()
    return {
        name: [row.split("</tr>")[0] for row in re.split(r"<tr[ >]", rows)[1:]]
        for name, rows in re.findall(r'<caption id="([\w-]+)">(.*?)</table>', text, flags=re.DOTALL)
    }


def _cells(row: str) -> int:
    spans = [int(span) for span in re.findall(r'colspan="(\d+)"', row)]
    return len(re.findall(r"<t[dh][ >]", row)) - len(spans) + sum(spans)


@pytest.mark.parametrize("attacked", [False, True])
def test_every_row_of_a_table_has_the_same_cells(result: BenchmarkResult, tmp_path: Path, attacked: bool) -> None:
    tables = _tables(write(_attacked(result) if attacked else result, tmp_path)["report.html"])
    assert {"students", "figures", "speed", "differences", "given", "classes-1", "confusion-1"} < {*tables}
    for name, rows in tables.items():
        assert {_cells(row) for row in rows} == {_cells(rows[0])}, name
    assert len(tables["students"]) == 2 + 5
    assert _cells(tables["students"][0]) == 13 + attacked


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
    (one,) = [row for row in _tables(paths["report.html"])["students"] if ">one" in row]
    assert one.count("70.00") == 1
    assert "70.00 ±" not in one
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


def _bars(path: Path, style: str) -> list[tuple[float, float]]:
    """Return bottom and top, in pixels, of the bars of one style."""
    root = ElementTree.fromstring(path.read_text())
    drawn = [
        bar.get("d", "") for bar in root.iterfind(f".//{SVG}path[@class]") if style in bar.get("class", "").split()
    ]
    ends = [re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", each) for each in drawn]
    return [(float(end[2]), float(end[1])) for end in ends if end is not None]


def test_bars_in_the_picture_are_as_long_as_the_deviation(seeded: BenchmarkResult, tmp_path: Path) -> None:
    """The bar of 86 ± 2 % reaches from one student's height, 84 %, to the other's, 88 %."""
    kd = seeded.students[0]
    marks = [_student(f"m{share}", top1=share, ms=4.0, distill="live") for share in (0.84, 0.88)]
    for name, drawn in (("several", kd), ("single", replace(kd, seed_runs=()))):
        result = replace(seeded, students=(drawn, *marks), teacher=None)
        path = write(result, tmp_path / name)["pareto.svg"]
        heights = [_marks(path)[mark.name][2] for mark in marks]
        expected = [pytest.approx(tuple(heights), abs=0.06)] if name == "several" else []
        assert _bars(path, "deviation") == expected


def test_csv_has_a_row_for_each_student_and_engine(tmp_path: Path) -> None:
    found = full("resnet8-kd", "resnet20-dkd")
    paths = write(found, tmp_path)
    with paths["results.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["engine"], row["precision"]) for row in rows] == [
        (name, *way)
        for way in (("onnx", "fp32"), ("eager", "fp32"), ("onnx", "int8"))
        for name in ("resnet8-kd", "resnet20-dkd")
    ]
    assert [float(row["batch1_p50_ms"]) for row in rows] == [0.105, 0.31, 0.61, 1.62, 0.07, 0.19]
    assert float(rows[1]["batch1_p50_ms_low"]) < 0.31 < float(rows[1]["batch1_p50_ms_high"])
    assert {row["load_ms"] for row in rows} == {"12.5"}
    with paths["timings.csv"].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(found.timings) * ROUNDS


def test_metrics_have_a_version_and_the_verdict(tmp_path: Path) -> None:
    read = json.loads(write(full(), tmp_path)["metrics.json"].read_text(), parse_constant=_refuse_constant)
    assert read["schema"] == 2
    verdict = read["verdict"]
    assert (read["recommended"], verdict["runner_up"], verdict["ship_engine"]) == (
        "resnet20-dkd-pruned50", "resnet14-kd", "onnx",
    )  # fmt: skip
    assert verdict["rules"]["max_macs"] == 30e6
    assert {*verdict["left_out"]} == {"resnet8-labels", "resnet20-dkd", "resnet20-live"}
    assert [check["met"] for check in verdict["constraints"]] == [True] * 3
    assert verdict["margin"]["difference"] == pytest.approx(0.0027)
    assert read["ledger"]["lines"][0] == {
        "student": "resnet8-kd", "runs": 3, "passes": 180,
        "saved_seconds": 180 * 41.5, "training_seconds": pytest.approx(3 * 1804.3),
    }  # fmt: skip


def test_nothing_is_shipped_where_nothing_fits(tmp_path: Path) -> None:
    found = replace(full("resnet8-kd", "resnet20-dkd"), rules=DecisionSettings(max_ms=0.01))
    paths = write(found, tmp_path)
    read = json.loads(paths["metrics.json"].read_text())
    assert (read["recommended"], read["recommended_run"]) == (None, None)
    for text in (_parse(paths["report.html"]).text, paths["summary.txt"].read_text()):
        assert "Ship none of them" in text
        assert "Left out: resnet8-kd: latency 0.105 ms, expected at most 0.01 ms." in " ".join(text.split())
    assert not any("ship" in style for style, *_ in _marks(paths["pareto.svg"]).values())


def test_the_page_has_all_its_parts(tmp_path: Path) -> None:
    found = full()
    path = write(found, tmp_path, histories=histories(found))["report.html"]
    text = _parse(path).text
    for heading in (
        *("Students", "Accuracy against latency", "Time by engine", "Quality", "Predictions", "Risk against coverage"),
        *("Training curves", "What each run was given", "Cost ledger", "Definitions", "Machine", "Lineage"),
    ):
        assert f"\n{heading}\n" in text or f"{heading}\n" in text
    for part in ("b3f0" * 8, "compressed from runs/resnet20-dkd", "kdpipe train-student --data folder:cifar10"):
        assert part in text
    # Losses of other kinds have other charts: their values are not comparable.
    for title in ("loss, trained with kd", "loss, trained with ce", "loss, trained with kd+dist", "train_top1"):
        assert title in text
    assert "The stores break even after 2 such runs." in text
    assert path.read_text().count('class="arrow"') == 3  # from the parent, with each engine


def test_many_classes_are_shown_by_the_worst(tmp_path: Path) -> None:
    predicted = quality(right(0.8, 3000), classes=150)
    names = tuple(f"class <{index}>" for index in range(150))
    many = replace(full("resnet20-dkd"), test=Samples(np.zeros((3000, 16), np.uint8), predicted.labels, names))
    many = replace(many, students=(replace(many.students[0], quality=predicted),))
    tables = _tables(write(many, tmp_path)["report.html"])
    assert len(tables["classes-1"]) == 1 + 20
    assert len(tables["confusion-1"]) == 1 + 15
    scores = [float(re.findall(r'data-value="([\d.]+)"', row)[-1]) for row in tables["classes-1"][1:]]
    assert scores == sorted(scores)
    assert scores == pytest.approx(sorted(each.f1 or 0.0 for each in predicted.per_class)[:20])
