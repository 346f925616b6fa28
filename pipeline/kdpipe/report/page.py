"""The report as one HTML page: pictures and style are embedded, and it loads and runs nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from importlib import resources

import kdpipe
from kdpipe.benchmark.comparison import Recommendation, recommend
from kdpipe.benchmark.results import ADVERSARIAL_TOP1, GAP_RECOVERED, BenchmarkResult, StudentResult
from kdpipe.metrics import METRICS, Figure
from kdpipe.report.plots import MOST_CURVES
from kdpipe.report.tables import (
    UNDEFINED,
    batch_sizes,
    gap_notes,
    millions,
    number,
    recommended,
    size,
    spread,
    written,
)

DISTILLED = {"cache": "store", "live": "live teacher", "none": "labels only"}

DEFINITIONS = (
    (
        "Latency",
        "Time of one forward pass in evaluation mode, from a batch on the device to its logits, after a warm-up and "
        "with the device synchronized. p50 is the median and p95 the 95th percentile of the timed passes.",
    ),
    (
        "Images per second",
        "Batch size divided by the median latency.",
    ),
    (
        "Pareto front",
        "The students for which no other student is both as accurate and as fast (batch size 1), and better in one of "
        "the two.",
    ),
    (
        "Recommendation",
        "The fastest student (median, batch size 1) whose top-1, the mean of its seeds, lies within half a percentage "
        "point of the best student's. Of several seeds the first is to ship: selecting the best on the test samples "
        "would bias its accuracy.",
    ),
)

CURVES_TEXT = (
    f"Figures by epoch, one line per student, the mean of its seeds; at most {MOST_CURVES} students are drawn."
)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_page(result: BenchmarkResult, *, pareto: bytes, curves: bytes | None = None) -> str:
    """Return the page; ``pareto`` and ``curves`` are the PNGs of the plots."""
    teacher = result.teacher
    title = f"Benchmark on {result.dataset}"
    sections = [
        _recommendation(recommend(result), result),
        f"<section><h2>Students</h2>{_table(result)}{_table_note(result)}</section>",
        _figure("Accuracy against latency", pareto, _pareto_text(result)),
        _figure("Training curves", curves, CURVES_TEXT) if curves else "",
        f"<section><h2>Definitions</h2>{_terms(_definitions(result))}</section>",
        f"<section><h2>Machine</h2>{_terms(_machine(result))}</section>",
        f"<section><h2>Lineage</h2>{_terms(_lineage(result))}</section>",
    ]
    versus = f" against teacher {teacher.name}" if teacher is not None else ""
    lead = f"{_count(len(result.students), 'student')}{versus}, {_count(result.samples, 'test sample')}"
    body = "\n".join(filter(None, sections))
    style = resources.files("kdpipe.report").joinpath("page.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p>{escape(lead)} · {escape(result.created)}</p></header>
{body}
<footer>kdpipe {escape(kdpipe.__version__)}</footer>
</main>
</body>
</html>
"""


def _recommendation(chosen: Recommendation, result: BenchmarkResult) -> str:
    student = recommended(result)
    figures = [
        ("top-1", _unit(spread(student, METRICS["top1"].figure), "%")),
        ("top-1 under attack", _unit(spread(student, ADVERSARIAL_TOP1), "%")),
        ("gap recovered", _unit(spread(student, GAP_RECOVERED), "%")),
        ("latency, batch 1", _unit(number(student.single_image_ms), "ms")),
        ("parameters", millions(student.parameters)),
        ("on disk", size(student.file_bytes)),
    ]
    tiles = "".join(
        f"<li><b>{escape(value)}</b><span>{escape(label)}</span></li>" for label, value in figures if value != UNDEFINED
    )
    return (
        f'<section class="ship"><h2>Ship <code>{escape(chosen.name)}</code></h2>'
        f"<p>{escape(chosen.reason)}</p><ul>{tiles}</ul></section>"
    )


def _table(result: BenchmarkResult) -> str:
    sizes = batch_sizes(result)
    chosen = recommended(result)
    left = ["Student", "Architecture", "Soft targets", "Loss"]
    right = ["Seed", *(_heading(figure) for figure in result.figures), "Parameters", "File"]
    fixed = "".join(f'<th scope="col" rowspan="2">{escape(heading)}</th>' for heading in left)
    fixed += "".join(f'<th scope="col" rowspan="2" class="n">{escape(heading)}</th>' for heading in right)
    batches = "".join(f'<th scope="colgroup" colspan="3" class="b">Batch {batch}</th>' for batch in sizes)
    timings = '<th scope="col" class="n">p50 ms</th><th scope="col" class="n">p95 ms</th>'
    timings += '<th scope="col" class="n">images/s</th>'
    rows = "".join(_row(student, sizes, result.figures, chosen=student is chosen) for student in result.students)
    teacher = result.teacher
    if teacher is not None:
        texts = [written(each, teacher.figures) if each.name in teacher.figures else "" for each in result.figures]
        cells = "".join(f'<td class="n">{escape(text)}</td>' for text in texts)
        before, after = "<td></td>" * 2, "<td></td>" * (2 + 3 * len(sizes))
        rows += f'<tr class="teacher"><th scope="row">{escape(teacher.name)}</th><td></td><td>teacher</td>'
        rows += f"{before}{cells}{after}</tr>"
    return (
        f'<div class="scroll"><table><thead><tr>{fixed}{batches}</tr><tr>{timings * len(sizes)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _heading(figure: Figure) -> str:
    return figure.heading.replace("-", "\u2011")  # a column is not broken at the hyphen


def _row(student: StudentResult, sizes: list[int], figures: Iterable[Figure], *, chosen: bool) -> str:
    texts = [student.architecture, DISTILLED[student.distill], student.loss]
    numbers = [
        str(student.seed) if student.seed is not None else _count(len(student.runs), "seed"),
        *(spread(student, figure) for figure in figures),
        millions(student.parameters),
        size(student.file_bytes),
    ]
    for batch in sizes:
        timed = student.latencies.get(batch)
        times = (timed.p50_ms, timed.p95_ms, timed.images_per_second) if timed else (None, None, None)
        numbers += map(number, times)
    front = ' <span title="on the Pareto front">◆</span>' if student.on_front else ""
    cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    cells += "".join(f'<td class="n">{escape(text)}</td>' for text in numbers)
    opening = '<tr class="chosen">' if chosen else "<tr>"
    return f'{opening}<th scope="row">{escape(student.name)}{front}</th>{cells}</tr>'


def _table_note(result: BenchmarkResult) -> str:
    notes = ["◆ on the Pareto front. The recommended student is shaded."]
    devices = {timed.device for student in result.students for timed in student.latencies.values()}
    if devices:
        notes[0] += f" Latencies were measured on {', '.join(sorted(devices))}."
    if any(student.seed_runs for student in result.students):
        notes[0] += (
            " Figures of several seeds are their mean ± sample standard deviation; size and latencies are of the first."
        )
    return "".join(f'<p class="note">{escape(note)}</p>' for note in (*notes, *gap_notes(result)))


def _pareto_text(result: BenchmarkResult) -> str:
    front = [student.name for student in result.students if student.on_front]
    bars = any(student.std("top1") is not None for student in result.students)
    meaning = " Bars are ± one sample standard deviation over the seeds." if bars else ""
    return f"Up and left is better. On the Pareto front: {', '.join(front) or 'none'}.{meaning}"


def _figure(heading: str, png: bytes, text: str) -> str:
    encoded = base64.b64encode(png).decode("ascii")
    return (
        f'<section><h2>{escape(heading)}</h2><figure><img alt="{escape(heading)}" '
        f'src="data:image/png;base64,{encoded}"><figcaption>{escape(text)}</figcaption></figure></section>'
    )


def _definitions(result: BenchmarkResult) -> list[tuple[str, str]]:
    return [*((figure.title, figure.help) for figure in result.figures), *DEFINITIONS]


def _terms(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs) + "</dl>"


def _machine(result: BenchmarkResult) -> list[tuple[str, str]]:
    pairs = []
    for key, value in result.machine.items():
        if key == "memory_bytes" and isinstance(value, int):
            pairs.append(("memory", size(value)))
        else:
            pairs.append((key.replace("_", " "), "unknown" if value is None else str(value)))
    return pairs


def _lineage(result: BenchmarkResult) -> list[tuple[str, str]]:
    pairs = [("dataset", f"{result.dataset}, {_count(result.samples, 'test sample')}")]
    if result.attack is not None:
        pairs.append(("attack", f"{result.attack.written} on {_count(result.attack.samples, 'test sample')}"))
    if result.teacher is not None:
        pairs.append(("teacher", result.teacher.name))
    for store in result.stores:
        weight = "" if len(result.stores) == 1 else f", weight {store.weight:.3g} in the mean"
        pairs += [("store", store.path + weight), ("store digest", store.digest)]
    runs = [run for student in result.students for run in student.runs]
    pairs += [(f"run {run.name}", run.path.as_posix()) for run in runs]
    return [*pairs, ("benchmarked", result.created)]


def _unit(value: str, unit: str) -> str:
    return value if value == UNDEFINED else f"{value} {unit}"


def _count(number_of: int, noun: str) -> str:
    return f"{number_of:,} {noun}" if number_of == 1 else f"{number_of:,} {noun}s"
