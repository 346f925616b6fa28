"""The report as one HTML page that carries its pictures and style, and runs and fetches nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from importlib import resources

import kdpipe
from kdpipe.benchmark import BenchmarkResult, Recommendation, StudentResult, recommend
from kdpipe.report.plots import MOST_CURVES
from kdpipe.report.tables import UNDEFINED, batch_sizes, millions, nats, number, percent, recommended, size, spread

DISTILLED = {"cache": "store", "live": "live teacher", "none": "labels only"}

ATTACKED = "Top-1 under attack"

DEFINITIONS = (
    (
        "Top-1, top-5",
        "Share of the labelled test samples whose label is the largest, or among the five largest, of "
        "the logits. Of equal logits the lower class wins.",
    ),
    (
        ATTACKED,
        "Top-1 where each pixel of a test image may move a little, as projected gradient descent on that student's "
        "cross-entropy moves it. An upper bound of what is left under any attack: others may find more.",
    ),
    (
        "Cross-entropy",
        "Mean negative log-likelihood of the label, in nats, at temperature 1.",
    ),
    (
        "Agreement",
        "Share of the test samples on which student and teacher name the same class, right or wrong.",
    ),
    (
        "Gap recovered",
        "(student − baseline) / (teacher − baseline), all top-1. The baseline is the mean of the runs "
        "of the same architecture trained on labels only. 0 is no gain, 100 matches the teacher. "
        "Undefined (n/a) without a baseline, or where the teacher is not better than it. Where student and "
        "baseline have the same several seeds, it is the mean of the gaps seed by seed.",
    ),
    (
        "Latency",
        "Time of one forward pass in eval mode, from a batch on the device to its logits, after warming "
        "up and with the device synchronised. p50 is the median and p95 the 95th percentile of the "
        "timed passes.",
    ),
    (
        "Images per second",
        "Batch size over the median latency.",
    ),
    (
        "Pareto front",
        "The students than which no other is at once as accurate and as fast (batch size 1), and "
        "better in one of the two.",
    ),
    (
        "Recommendation",
        "The fastest student (median, batch size 1) whose top-1 lies within half a percentage point "
        "of the best student's, in the mean of its seeds. Of several seeds the first is to ship: the best on the "
        "test samples would be one that luck chose.",
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
        f"<section><h2>What the figures mean</h2>{_terms(_definitions(result))}</section>",
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
        ("top-1", _unit(spread(student, "top1", percent), "%")),
        ("top-1 under attack", _unit(spread(student, "adversarial_top1", percent), "%")),
        ("of the gap recovered", _unit(spread(student, "gap_recovered", percent), "%")),
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
    left = ["Student", "Architecture", "Learnt from", "Loss"]
    right = [
        "Seed",
        "Top‑1 %",
        *([] if result.attack is None else ["PGD top‑1 %"]),
        "Top‑5 %",
        "Cross-entropy",
        "Agreement %",
        "Gap recovered %",
        "Parameters",
        "File",
    ]
    fixed = "".join(f'<th scope="col" rowspan="2">{escape(heading)}</th>' for heading in left)
    fixed += "".join(f'<th scope="col" rowspan="2" class="n">{escape(heading)}</th>' for heading in right)
    batches = "".join(f'<th scope="colgroup" colspan="3" class="b">Batch {batch}</th>' for batch in sizes)
    timings = '<th scope="col" class="n">p50 ms</th><th scope="col" class="n">p95 ms</th>'
    timings += '<th scope="col" class="n">images/s</th>'
    attacked = result.attack is not None
    rows = "".join(_row(student, sizes, chosen=student is chosen, attacked=attacked) for student in result.students)
    teacher = result.teacher
    if teacher is not None:
        shares = [percent(teacher.top1), *([""] if attacked else []), percent(teacher.top5)]
        accuracies = "".join(f'<td class="n">{share}</td>' for share in shares)
        before, after = "<td></td>" * 2, "<td></td>" * (5 + 3 * len(sizes))
        rows += f'<tr class="teacher"><th scope="row">{escape(teacher.name)}</th><td></td><td>teacher</td>'
        rows += f"{before}{accuracies}{after}</tr>"
    return (
        f'<div class="scroll"><table><thead><tr>{fixed}{batches}</tr><tr>{timings * len(sizes)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(student: StudentResult, sizes: list[int], *, chosen: bool, attacked: bool) -> str:
    texts = [student.architecture, DISTILLED[student.distill], student.loss]
    numbers = [
        str(student.seed) if student.seed is not None else _count(len(student.runs), "seed"),
        spread(student, "top1", percent),
        *([spread(student, "adversarial_top1", percent)] if attacked else []),
        spread(student, "top5", percent),
        spread(student, "loss_value", nats),
        spread(student, "agreement", percent),
        spread(student, "gap_recovered", percent),
        millions(student.parameters),
        size(student.file_bytes),
    ]
    for batch in sizes:
        timed = student.latencies.get(batch)
        figures = (timed.p50_ms, timed.p95_ms, timed.images_per_second) if timed else (None, None, None)
        numbers += map(number, figures)
    front = ' <span title="on the Pareto front">◆</span>' if student.on_front else ""
    cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    cells += "".join(f'<td class="n">{escape(text)}</td>' for text in numbers)
    opening = '<tr class="chosen">' if chosen else "<tr>"
    return f'{opening}<th scope="row">{escape(student.name)}{front}</th>{cells}</tr>'


def _table_note(result: BenchmarkResult) -> str:
    devices = {timed.device for student in result.students for timed in student.latencies.values()}
    where = f" Latencies were measured on {', '.join(sorted(devices))}." if devices else ""
    if any(student.members for student in result.students):
        where += (
            " Figures of several seeds are their mean ± sample standard deviation; size and latencies are of the first."
        )
    return f'<p class="note">◆ on the Pareto front. The recommended student is shaded.{escape(where)}</p>'


def _pareto_text(result: BenchmarkResult) -> str:
    front = [student.name for student in result.students if student.on_front]
    bars = any(student.std("top1") is not None for student in result.students)
    meaning = " Bars are ± one sample standard deviation over the seeds." if bars else ""
    return f"Up and left is better. On the Pareto front: {', '.join(front) or 'nobody'}.{meaning}"


def _figure(heading: str, png: bytes, text: str) -> str:
    encoded = base64.b64encode(png).decode("ascii")
    return (
        f'<section><h2>{escape(heading)}</h2><figure><img alt="{escape(heading)}" '
        f'src="data:image/png;base64,{encoded}"><figcaption>{escape(text)}</figcaption></figure></section>'
    )


def _definitions(result: BenchmarkResult) -> list[tuple[str, str]]:
    return [(term, text) for term, text in DEFINITIONS if term != ATTACKED or result.attack is not None]


def _terms(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs) + "</dl>"


def _machine(result: BenchmarkResult) -> list[tuple[str, str]]:
    shown = []
    for key, value in result.machine.items():
        if key == "memory_bytes" and isinstance(value, int):
            shown.append(("memory", size(value)))
        else:
            shown.append((key.replace("_", " "), "none found" if value is None else str(value)))
    return shown


def _lineage(result: BenchmarkResult) -> list[tuple[str, str]]:
    pairs = [("dataset", f"{result.dataset}, {_count(result.samples, 'test sample')}")]
    if result.attack is not None:
        pairs.append(("attack", f"{result.attack.written} on {_count(result.attack.samples, 'test sample')}"))
    if result.teacher is not None:
        pairs.append(("teacher", result.teacher.name))
    for store in result.stores:
        share = "" if len(result.stores) == 1 else f", {store.weight:.3g} of the mean"
        pairs += [("store", store.path + share), ("store digest", store.digest)]
    runs = [run for student in result.students for run in student.runs]
    pairs += [(f"run {run.name}", run.path.as_posix()) for run in runs]
    return [*pairs, ("benchmarked", result.created)]


def _unit(value: str, unit: str) -> str:
    return value if value == UNDEFINED else f"{value} {unit}"


def _count(number_of: int, noun: str) -> str:
    return f"{number_of:,} {noun}" if number_of == 1 else f"{number_of:,} {noun}s"
