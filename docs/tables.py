"""The tables of the documents, made from ``benchmarks/results`` and from what is registered.

    python docs/tables.py            fills every table in place
    python docs/tables.py --check    fails where a document differs from the results

A table stands between two comments, ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is one of ``TABLES``. The
tables of ``kdpipe list`` are in ``stages/listed.json``, so that the command need not import what it lists.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)

Rows = Iterable[Sequence[str]]


def documents() -> list[Path]:
    """Return the Markdown files that may hold tables."""
    examples = sorted((ROOT / "examples").glob("*/README.md"))
    return [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        ROOT / "benchmarks" / "README.md",
        *examples,
    ]


def fill(text: str) -> str:
    """Return a document with every table made anew.

    Raises:
        KeyError: a table has an unknown name.
        FileNotFoundError: its results are not in ``benchmarks/results``.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main() -> None:
    """Fill the tables, or compare them; exit with 1 where a document differs or results are missing."""
    check, faults = "--check" in sys.argv, []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        try:
            filled = fill(text)
        except FileNotFoundError as error:
            faults.append(f"{path.relative_to(ROOT)}: {error.filename} does not exist")
            continue
        if check and filled != text:
            faults.append(
                f"{path.relative_to(ROOT)}: a table differs from benchmarks/results; run python docs/tables.py"
            )
        elif filled != text:
            path.write_text(filled, encoding="utf-8")
    faults += _list_tables(check=check)
    if faults:
        sys.exit("\n".join(faults))


def _list_tables(*, check: bool) -> list[str]:
    """Write the tables of ``kdpipe list``, or return a line where the file differs from what is registered."""
    from kdpipe.stages.listing import LISTED, kept

    now = kept()
    if LISTED.is_file() and LISTED.read_text(encoding="utf-8") == now:
        return []
    if check:
        return [f"{LISTED.name} differs from what is registered; run python docs/tables.py"]
    LISTED.write_text(now, encoding="utf-8")
    return []


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _markdown(heading: Sequence[str], rows: Rows, *, numbers_from: int = 1) -> str:
    """Return a table whose columns from ``numbers_from`` on are aligned to the right."""
    rule = [("---:" if place >= numbers_from else "---") for place in range(len(heading))]
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _percent(figures: Mapping[str, float], sign: str = "") -> str:
    """Return mean and sample standard deviation of shares in percent."""
    return f"{100 * figures['mean']:{sign}.1f} ± {100 * figures['std']:.1f}"


def _interval(figures: Mapping[str, Any], digits: int = 2, *, factor: float = 1) -> str:
    """Return a median with its 95 % interval."""
    median, low, high = (f"{factor * value:.{digits}f}" for value in (figures["median"], *figures["interval_95"]))
    return f"{median} [{low}, {high}]"


def _demo() -> str:
    """Return the students of ``make repro``: the results are a copy of its ``reports/metrics.json``."""
    measured = _read("demo")
    learned_from = {"cache": "the store: logits of all images", "none": "labels alone"}
    rows = []
    for name, student in measured["students"].items():
        cells = ("n/a" if student[key] is None else _spread(student, key) for key in ("top1", "gap_recovered"))
        chosen = " (recommended)" if name == measured["recommended"] else ""
        rows.append((f"`{name}`{chosen}", learned_from[student["distill"]], *cells))
    teacher = measured["teacher"]
    rows.append((f"`{teacher['name']}`, the teacher", "all labels", f"{100 * teacher['top1']:.1f}", ""))
    return _markdown(("model", "learned from", "test top-1 %", "gap recovered %"), rows, numbers_from=2)


def _spread(student: Mapping[str, Any], key: str) -> str:
    """Return a figure in percent, with its deviation where there are several seeds."""
    mean, std = student[key], student[f"{key}_std"]
    return f"{100 * mean:.1f}" if std is None else _percent({"mean": mean, "std": std})


def _export_formats() -> str:
    measured = _read("export_formats")
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for each in measured["artifacts"]:
        groups.setdefault((each["format"], each["precision"], each["calibration"] or 0), []).append(each)
    rows = []
    for (name, precision, images), found in groups.items():
        top1, same = (f"{100 * fmean(each[key] for each in found):.2f}" for key in ("top1", "agreement"))
        if len(found) > 1:
            top1 += f" ± {100 * stdev(each['top1'] for each in found):.2f}"
        size = f"{fmean(each['bytes'] for each in found) / 1000:,.0f}"
        largest = f"{max(each['largest_logit_difference'] for each in found):.0e}"
        rows.append((f"`{name}`", precision, f"{images:,}" if images else "", size, top1, same, largest))
    rows.sort(key=lambda row: row[1])
    heading = ("format", "precision", "calibration images", "kB", "test top-1 %", "same class %", "largest difference")
    return _markdown(heading, rows, numbers_from=2)


def _labels() -> str:
    measured = _read("labels")
    arms, teachers = measured["arms"], measured["teachers_test_top1"]
    rows = []
    for share in ("0.01", "0.1", "1"):
        labels = arms[f"none {share}"]["labels"]
        cells = [_percent(arms[f"{arm} {share}"]["top1"]) for arm in ("none",)]
        labelled = arms.get(f"labelled {share}", arms[f"all {share}"])  # with all labels, both are the same images
        cells += [_percent(each["top1"]) for each in (labelled, arms[f"all {share}"], arms[f"same {share}"])]
        rows.append((f"{labels:,} ({float(share):.0%})", *cells, f"{100 * teachers[f'same-{share}']:.1f}"))
    heading = ("labels", "labels alone", "teacher, labeled images", "teacher, all images", "own teacher, all images")
    return _markdown((*heading, "own teacher itself"), rows)


def _audit() -> str:
    measured = _read("audit")
    rows = [
        (f"`{recipe}`", name, *(f"{each['found'][name]} of {measured['planted']}" for each in found))
        for recipe, found in measured["recipes"].items()
        for name in found[0]["found"]
    ]
    heading = ("recipe of the views", "ordered by", *(f"choice {each + 1}" for each in range(len(rows[0]) - 2)))
    return _markdown(heading, rows, numbers_from=2)


_PAIRS_BESIDE = (
    "CIFAR-100, resnet56 -> resnet20",
    "CIFAR-100, resnet32x4 -> resnet8x4",
    "CIFAR-100, ResNet50 -> MobileNetV2",
)
_SOURCES = {"cached": "store", "live": "live"}


def _losses() -> str:
    measured = _read("losses")
    columns = [(student, source) for student, found in measured["students"].items() for source in found]
    arms = dict.fromkeys(arm for student, source in columns for arm in measured["students"][student][source])
    rows = [
        (
            f"`{arm}`",
            *(_with_gain(measured["students"][student][source].get(arm)) for student, source in columns),
            *(_published_gain(measured["published"].get(arm, {}).get(pair)) for pair in _PAIRS_BESIDE),
        )
        for arm in arms
    ]
    own = [f"`{student}`, {_SOURCES[source]}" for student, source in columns]
    return _markdown(("loss", *own, *(pair.removeprefix("CIFAR-100, ") for pair in _PAIRS_BESIDE)), rows)


def _with_gain(figures: Mapping[str, Any] | None) -> str:
    """Return an accuracy in percent, and its difference to no teacher with the 95 % interval of that."""
    if figures is None:
        return ""
    gain = figures["top1_minus_none"]
    low, high = (100 * each for each in gain["interval_95"])
    return f"{100 * figures['top1']['mean']:.1f}" + (
        "" if low == high else f", {100 * gain['mean']:+.1f} [{low:+.1f}, {high:+.1f}]"
    )


def _published_gain(figures: Mapping[str, Any] | None) -> str:
    return "" if figures is None else f"{figures['top1'] - figures['student_alone']:+.2f}"


def _loss_ranks() -> str:
    found = _read("losses")["rank_correlation"]
    rows = [
        (
            f"`{student}`, {_SOURCES[source]}",
            *(
                f"{each['rho']:+.2f} (p = {each['p_value']:.3f}, {each['losses']} losses)"
                if (each := pairs.get(pair))
                else ""
                for pair in _PAIRS_BESIDE
            ),
        )
        for student, by_source in found.items()
        for source, pairs in by_source.items()
    ]
    return _markdown(("student and soft targets", *(pair.removeprefix("CIFAR-100, ") for pair in _PAIRS_BESIDE)), rows)


def _cached_beliefs() -> str:
    recipes = _read("cached_beliefs")["recipes"]
    arms = next(iter(recipes.values()))["arms"]
    rows = []
    for arm in arms:
        cells = []
        for found in recipes.values():
            each = found["arms"].get(arm)
            if each is None:
                cells += ["", ""]
                continue
            low, high = (100 * end for end in each["top1_minus_view"]["interval_95"])
            gain = "" if arm == "view" else f"{100 * each['top1_minus_view']['mean']:+.1f} [{low:+.1f}, {high:+.1f}]"
            cells += [_percent(each["top1"]), gain]
        rows.append((f"`{arm}`" if arm == "view" else arm, *cells))
    heads = [text for recipe in recipes for text in (f"`{recipe}`, test top-1 %", "difference to `view`")]
    return _markdown(("soft targets, weights or samples", *heads), rows)


def _tuning() -> str:
    rows = []
    for name, each in _read("tuning")["searches"].items():
        low, high = (100 * end for end in each["tuned_minus_published"]["interval_95"])
        gain = f"{100 * each['tuned_minus_published']['mean']:+.1f} [{low:+.1f}, {high:+.1f}]"
        written = (
            ", ".join(f"{key} {value}" for key, value in each[how]["settings"].items())
            for how in ("published", "tuned")
        )
        rows.append((name, *written, _percent(each["published"]["top1"]), _percent(each["tuned"]["top1"]), gain))
    return _markdown(
        ("search", "published", "found", "published: test top-1 %", "found", "difference"), rows, numbers_from=3
    )


def _loss_cost() -> str:
    """Return a sentence and the times of an epoch with each loss, relative to one without a teacher."""
    measured = _read("loss_cost")
    over, threads = measured["over_none"], measured["machine"]["threads"]
    least, most = (choice(over, key=lambda arm: over[arm]["median"]) for choice in (min, max))
    said = (
        f"An epoch of `{measured['student']}` with one of these losses takes {over[least]['median']:.2f} (`{least}`) "
        f"to {over[most]['median']:.2f} (`{most}`) times as long as one without a teacher: medians and 95 % intervals "
        f"of {over[least]['rounds']} interleaved rounds of {measured['samples']:,} images on {threads} CPU "
        f"thread{'s' if threads > 1 else ''} (`benchmarks/loss_cost.py`).\n\n"
    )
    rows = [(f"`{arm}`", _interval(each)) for arm, each in over.items()]
    return said + _markdown(("loss", "seconds of an epoch, relative to no teacher"), rows)


def _published_losses() -> str:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from published_losses import table  # type: ignore[import-not-found]

    return str(table()).strip()


def _logit_losses() -> str:
    return _registered_losses("logits", "weights of the loss and of cross-entropy")


def _layer_losses() -> str:
    return _registered_losses("features attention hidden heads", "weight")


def _registered_losses(reads: str, weights: str) -> str:
    """Return the registered losses that read one of the words ``reads``, as they are written with their defaults."""
    from kdpipe.distil.losses import LOSSES

    rows = [
        (f"`{entry.usage}`", entry.help.replace("``", "`"), entry.facts["reads"], entry.facts["weights"], entry.source)
        for entry in LOSSES
        if entry.facts["reads"].split()[0] in reads.split()
    ]
    return _markdown(("loss with its defaults", "term", "reads", weights, "source"), rows, numbers_from=5)


def _operations() -> str:
    from kdpipe.views import OPERATIONS

    rows = [(f"`{each.usage}`", each.help, each.source) for each in OPERATIONS]
    return _markdown(("operation", "meaning", "source"), rows, numbers_from=3)


def _signal_sizes() -> str:
    named = {"logits": "`logits` (`fp16`)"}
    named["features:layer3"] = "`features:layer3`, in a `resnet20` the same as `features:penultimate`"
    kinds = ("logits", "features", "attention")
    measured = _read("signals")["signals"].items()
    rows = [
        (named.get(name, f"`{name}`"), f"{each['numbers']:,}", f"{each['bytes_per_row']:,.0f}")
        for name, each in sorted(measured, key=lambda item: (kinds.index(item[0].split(":")[0]), item[1]["numbers"]))
        if name != "features:penultimate"
    ]
    return _markdown(("signal", "numbers", "bytes per row"), rows)


def _signal_losses() -> str:
    named = {
        "kd+features-of-layers": "`kd` and `features` of all three layers",
        "kd+features+attention": "`kd`, `features` and `attention`",
    }
    rows = []
    for arm, each in _read("signals")["losses"].items():
        name = named.get(arm, " and ".join(f"`{part}`" for part in arm.split("+")))
        gain = "" if arm == "none" else _percent(each["top1_minus_none"], "+")
        beside = _percent(each["top1_minus_kd"], "+") if arm.startswith("kd+") else ""
        rows.append((name, _percent(each["top1"]), gain, beside))
    return _markdown(("loss", "test top-1 %", "difference to `none`", "difference to `kd`"), rows)


_CHAINS = {
    "alone": "no teacher",
    "one-way": "the given teacher",
    "longer": "the same for 20 epochs",
    "multi-level": "an assistant of the given teacher",
    "two-way": "the given teacher, tuned by the student of `one-way`",
    "second": "the second teacher",
    "mean": "both, equal weights",
    "weighted": "both, 0.7 for the given one",
    "confidence": "both",
    "draw": "both",
}


def _chains() -> str:
    rows = []
    for arm, each in _read("chains")["arms"].items():
        teachers = [fmean(column) for column in zip(*each["teachers_test_top1"], strict=True)]
        difference = "" if arm == "one-way" else _percent(each["top1_minus_one_way"], "+")
        taught = " and ".join(f"{100 * top1:.1f}" for top1 in teachers)
        rows.append((f"`{arm}`: {_CHAINS[arm]}", taught, _percent(each["top1"]), difference))
    heading = ("chain", "teachers of the last student, top-1 %", "last student, top-1 %", "difference to `one-way`")
    return _markdown(heading, rows)


def _compression() -> str:
    result = _read("compression")
    ways = ("none", "labels", "cache", "anew")
    parent = ("the parent", "100", "100", "", "", _percent(result["parent"]["top1"]), "", "")
    rows = [parent]
    for shape, each in result["shapes"].items():
        left = (f"{100 * each[cost]['mean']:.0f}" for cost in ("macs", "parameters"))
        rows.append((shape, *left, *(_percent(each[way]) for way in ways), _percent(each["cache_minus_labels"], "+")))
    heading = (
        *("network", "MACs %", "parameters %", "not recovered", "recovered, labels", "recovered, store"),
        *("trained anew, store", "store − labels"),
    )
    return _markdown(heading, rows)


_ROBUST = {
    "none": "labels, clean images",
    "adversarial": "labels, attacked images",
    "kd": "the robust teacher, clean images",
    "ard": "the robust teacher, attacked images",
    "rslad": "the robust teacher, attacked images",
    "rslad given": "the given teacher, attacked images",
}


def _robust() -> str:
    rows = [
        (f"`{arm}`: {_ROBUST[arm]}", _percent(each["top1"]), _percent(each["adversarial_top1"]))
        for arm, each in _read("robust")["arms"].items()
    ]
    return _markdown(("student", "clean top-1 %", "top-1 under attack %"), rows)


def _auxiliary() -> str:
    arms = _read("auxiliary")["arms"]
    rows = []
    for arm, learned_from in (("none", "labels"), ("kd", "a `resnet20` with 86.9 %")):
        task = arms[f"{arm}+rotation"]
        cells = (arms[arm]["top1"], task["top1"], task["top1_minus_without"])
        rows.append((f"`{arm}`: {learned_from}", *map(_percent, cells)))
    return _markdown(("loss", "without", "with `--aux rotation`", "difference"), rows)


_FLEETS = {
    "crop-flip": "CIFAR-10, `crop-flip`, batches of 128, `resnet8`",
    "rrc-flip+color+trivial": "CIFAR-10, `rrc-flip+color+trivial`, batches of 128, `resnet8`",
    "streamed": "JPEG photographs at 224, `rrc-flip`, batches of 16, one small convolution on pooled images",
}


def _fleet() -> str:
    rows = []
    for case, each in _read("fleet")["cases"].items():
        times = [f"{each[f'milliseconds_of_{part}_per_batch']['median']:.2f}" for part in ("data", "step")]
        ideal, speed_up = f"{each['ideal_speed_up']['median']:.3f}", _interval(each["speed_up"], 3)
        rows.append((_FLEETS[case], *times, ideal, speed_up, f"{100 * each['share_of_ideal']['median']:.1f} %"))
    heading = ("images", "`d`, ms", "`s`, ms", "ideal speed-up", "measured", "of the ideal")
    return _markdown(heading, rows)


def _scale() -> str:
    rows = []
    for count, each in _read("scale")["sizes"].items():
        first, read, again = each["first"], each["read"], each["again"]
        seconds = (
            each["listing"]["cpu_seconds"],
            each["loader"]["cpu_seconds"],
            first["cpu_seconds"],
            again["load_cpu_seconds"],
            read["load_cpu_seconds"],
        )
        memory = (again["peak_mb_beyond"], again["worker_private_mb_beyond"])
        rows.append(
            (f"{int(count):,}", *(f"{each:.2f}" for each in seconds), *(f"{max(0, each):.0f}" for each in memory))
        )
    listing = (
        "images",
        "`ImageFolder`, s",
        "its first batch, s",
        "first batch, s",
        "later command, s",
        "reading all, s",
    )
    heading = (*listing, "MB", "MB per worker")
    return _markdown(heading, rows[1:])


def _large() -> str:
    """Return seconds and memory of every stage, a column for each number of images."""
    sizes = _read("large")["sizes"]
    rows = []
    for stage in next(iter(sizes.values()))["stages"]:
        cells = []
        for each in sizes.values():
            found = each["stages"].get(stage)
            if found is None:
                cells.append("not run")
                continue
            memory = f" / {found['peak_mb'] / 1000:.1f} GB" if "peak_mb" in found else ""
            cells.append(f"{_three_digits(found['cpu_seconds'])} / {_three_digits(found['wall_seconds'])}{memory}")
        rows.append((stage, *cells))
    rows.append(("bytes, files of the store", *(f"{each['bytes']:,}, {each['files']:,}" for each in sizes.values())))
    return _markdown(("stage", *(f"{int(count):,} images" for count in sizes)), rows)


def _extrapolated() -> str:
    """Return what two large datasets would take, from measured seconds and bytes per image, row and byte."""
    count, start = max((int(count), each) for count, each in _read("scale")["sizes"].items())
    coding, seconds = (
        {each["name"]: each for each in _read("transform_coding")["imagenet"]},
        _read("transform_coding")["seconds"],
    )
    losses = {(each["classes"], each["encoding"]): each for each in _read("fidelity")["rows"]}
    few, many = losses[1_000, "fp16"], losses[21_841, "fp16"]
    photographs = _read("views")["photographs"]["recipes"]["rrc-flip"]["images_per_second"]["kdpipe"]
    imagenet = {
        "images": 1_281_167,
        "planes": 5,
        "bytes": coding["klt0.32"]["plane_megabytes"] * 1e6 / 1_281_167,
        "in memory": 2 * 1_000,
        "encode": seconds["encode klt0.32"] + seconds["compress klt0.32"] + few["figures_ms"] / 1000,
        "decode": seconds["decompress klt0.32"] + seconds["decode klt0.32"],
    }
    more = 21_841 / 1_000
    large = {
        "images": 14_197_122,
        "planes": 2,
        "bytes": many["bytes"],
        "in memory": 2 * 21_841,
        "encode": (many["encode_ms"] + many["compress_ms"] + many["figures_ms"]) / 1000,
        "decode": more * (seconds["decompress fp16"] + seconds["decode fp16"]),
    }
    cells = []
    for case in (imagenet, large):
        rows = case["images"] * case["planes"]
        cells.append(
            {
                "names to the first batch, seconds": case["images"] * start["first"]["cpu_seconds"] / count,
                "decoding and rendering at 224 pixels, core hours": rows * 2 / photographs / 3600,
                "a teacher of 1,000 images/s (assumed), device hours": rows / 1000 / 3600,
                "encoding, its loss and compression, core hours": rows * case["encode"] / 3600,
                "store, GB": rows * case["bytes"] / 1e9,
                "digests of all files, core seconds": rows * case["bytes"] * seconds["check a byte"],
                "decoding a plane, core seconds": case["images"] * case["decode"],
                "a plane in memory, GB": case["images"] * case["in memory"] / 1e9,
            }
        )
    table = [(what, *(f"{float(f'{case[what]:.2g}'):,g}" for case in cells)) for what in cells[0]]
    heading = (
        "",
        "ImageNet-1k, plain and 4 views, `klt:0.32`",
        "14 M images of 21,841 classes, plain and 1 view, `fp16`",
    )
    return _markdown(heading, table)


def _three_digits(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:,.0f}"


def _data_formats() -> str:
    """Return the times to the first batch of the same images in every form."""
    measured = _read("data_formats")
    rows = []
    for name, found in measured["forms"].items():
        seconds = [f"{found[key]:.2f}" for key in ("stream_cold", "stream_warm", "memory_cold", "memory_warm")]
        rows.append((f"`{name}`", f"{found['bytes'] / 1e6:.1f}", *seconds, f"{found['shuffled_per_second']:,.0f}"))
    heading = ("form", "MB", "streamed: first", "later", "in memory: first", "later", "shuffled images/s")
    return _markdown(heading, rows)


def _memory_formats() -> str:
    rows = []
    for name, found in _read("memory_formats")["default_over_channels_last"].items():
        cells = (_interval(found[kind]) if kind in found else "" for kind in ("step", "forward"))
        rows.append((f"`{name.removeprefix('torchvision:')}`", f"{found['batch']} of {found['size']}", *cells))
    return _markdown(("network", "batch", "training step", "forward pass"), rows, numbers_from=2)


def _compiled() -> str:
    rows = []
    for name, found in _read("memory_formats")["compile"].items():
        after = found["breaks_even_after_images"]
        gain = _interval(found["plain_over_compiled"])
        rows.append((f"`{name}`", f"{found['seconds_to_compile']:.0f}", gain, f"{after:,.0f}" if after else "never"))
    return _markdown(("network", "seconds to compile", "step, over the compiled one", "breaks even after images"), rows)


def _skew() -> str:
    recall = _read("skew")["recall"]
    rows = [
        (name, *(_percent(recall[arm][each]) for each in ("of_0", "of_others")))
        for name, arm in (("each image once", "as they are"), ("`--balance`", "balanced"))
    ]
    return _markdown(("sampling", "recall of the digit 0 %", "mean recall of the other digits %"), rows)


def _views_speed() -> str:
    measured = _read("views")

    def row(name: str, each: Mapping[str, Any]) -> Sequence[str]:
        speeds, faster, share = (
            each.get(key) for key in ("images_per_second", "torchvision_over_kdpipe", "rendering_over_step")
        )
        peers = ("", "") if faster is None else (f"{speeds['torchvision']:,}", _interval(faster, 1))
        return (name, f"{speeds['kdpipe']:,}", *peers, "" if share is None else f"{_interval(share, 1, factor=100)} %")

    rows = [row(f"`{name}`", each) for name, each in measured["in_memory"]["recipes"].items()]
    rows += [row(f"`{name}`, photographs at 224", each) for name, each in measured["photographs"]["recipes"].items()]
    return _markdown(("recipe", "images/s", "torchvision", "times faster", "share of a step"), rows)


_CACHED = {
    "none": "none",
    "live": "live teacher, new crops in every epoch",
    **{f"cache-{views}": f"{views} cached view{'s' * (views > 1)}" for views in (1, 2, 4, 8, 16)},
    "fixed": "fixed teacher: the plain view's soft targets, new crops",
    "mismatch": "another crop's soft targets, new crops",
}


def _consistency() -> str:
    rows = [
        (_CACHED[arm], _percent(each["top1"]), str(each["teacher_passes_per_sample"]), f"{each['plane_bytes']:,}")
        for arm, each in _read("consistency")["arms"].items()
    ]
    heading = ("soft targets", "test top-1 %", "teacher passes per image", "bytes of the planes read")
    return _markdown(heading, rows)


def _cifar10() -> str:
    measured = _read("cifar10")
    seconds = measured["timing"]["median_seconds_per_epoch_of_50000"]
    rows = [
        (name, f"{100 * measured['accuracy'][arm]['top1']:.2f}", f"{seconds[arm]:.1f}")
        for name, arm in (("from the store", "cache"), ("live teacher", "live"), ("none", "none"))
    ]
    return _markdown(("soft targets", "test top-1 %", "seconds per epoch of 50,000 images"), rows)


_RIVALS = {
    "kdpipe": "kdpipe: `resnet8` with a store, checkpoints included",
    "bare step": "the bare step: pixels, logits and labels ready in memory",
    "hack": "a batch cropped by one gather, with the logits of the plain images",
    "hack in channels-last": "the same in channels-last",
    "memmap": "torchvision's transforms, the plain images' logits in an fp16 `.npy` file",
    "live": "torchvision's transforms, the teacher in the loop",
    "timm": "timm's loader and optimizer, the teacher in the loop",
}


def _rivals() -> str:
    measured = _read("rivals")
    images, medians = measured["images_per_training"], measured["median_cpu_seconds"]
    rows = [
        (
            words,
            f"{1000 * medians[name] / images:.2f}",
            "1" if name == "kdpipe" else _interval(measured["over_kdpipe"][name]),
        )
        for name, words in _RIVALS.items()
    ]
    return _markdown(("loop", "CPU ms per image", "over kdpipe's [95 % interval]"), rows)


def _rows_read() -> str:
    rows = []
    for threads, each in _read("rivals")["rows"].items():
        figures = (f"{each['median_cpu_ms'][name]:.2f}" for name in ("store", "npy fp16", "npy to float32"))
        rows.append((threads, *figures, _interval(each["store_speed_over_npy_fp16"])))
    heading = ("torch's threads", "`store.logits`", "`.npy`, fp16", "`.npy`, to float32", "speed over `.npy` fp16")
    return _markdown(heading, rows)


def _store() -> str:
    overhead, epoch, read = _read("cache_overhead"), _read("student_epoch"), _read("store_read")
    gather = read["gather"]["speed_against"]["numpy_take / kdpipe_plane"]
    plane = read["decode_plane"]["speed_against"]
    rows = [
        (
            "`cache-teacher`, ResNet-20 on CIFAR-10, over the fastest loop that stores nothing",
            "CPU time",
            _interval(overhead["cached_over_thrown_away_in_cpu_seconds"]["fp16"]),
        ),
        (
            "`resnet8` epoch with cached logits, over one that reads none",
            "time",
            _interval(epoch["cached_over_none_read"]),
        ),
        ("the same, over one without distillation", "time", _interval(epoch["cached_over_no_distillation"])),
        (
            "the same epoch with a live teacher, over one with cached logits",
            "time",
            _interval(epoch["live_over_cached"]),
        ),
        (
            "shuffled batch of 256 of 200,000 x 1,000 `fp16`, over numpy's `take` from memory",
            "speed",
            _interval(gather),
        ),
        (
            "decoding that plane with digests, over writing and reading it as `.npy`",
            "speed",
            _interval(plane["npy_written_and_read / kdpipe_with_digests"]),
        ),
        ("the same without digests", "speed", _interval(plane["npy_written_and_read / kdpipe_again"])),
        (
            "`verify`, over a plain loop that reads and digests the files",
            "speed",
            _interval(read["verify"]["speed_against"]["plain_loop / kdpipe_verify"]),
        ),
    ]
    return _markdown(("compared", "ratio of", "median [95 % interval]"), rows, numbers_from=2)


_LOGITS = {
    "teacher": "EfficientNet-Lite0, held-out images",
    "cifar10": "`resnet20` on CIFAR-10, 10 classes",
    "described-1000": "1,000 described classes",
    "independent-1000": "1,000 independent classes",
}


def _ants_and_bees() -> str:
    found = _read("ants_and_bees")
    words = {
        "labels": "student, from the labels alone",
        "teacher": "student, from the teacher alone, without labels",
        "both": "student, from both",
    }
    right, of = (sum(each[key] for each in found["teacher"].values()) for key in ("right", "of"))
    test = found["teacher"]["test"]
    rows = [
        (f"teacher through its map ({right} of all {of} right)", f"{test['right'] / test['of']:.1%}", ""),
        *(
            (
                words[arm],
                f"{each['mean']:.1%} ± {100 * each['deviation']:.1f}",
                ", ".join(f"{one:.1%}" for one in each["each"]),
            )
            for arm, each in found["top1"].items()
        ),
    ]
    return _markdown(("", "test top-1", "each seed"), rows, numbers_from=1)


def _encodings() -> str:
    rows = [
        (
            _LOGITS[each["logits"]],
            f"{each['within']:g}",
            " and ".join(each["temperatures"]),
            f"`{_grammatical(each['name'])}`",
            f"{each['bytes']:.1f}",
            f"{each['times_smaller_than_fp32']:.1f}",
        )
        for each in _read("encodings")["against_raw"]
    ]
    heading = ("logits", "mean KL at most", "at temperature", "smallest encoding", "bytes per row")
    return _markdown((*heading, "times smaller than float32"), rows, numbers_from=4)


def _formats() -> str:
    found = _read("encodings")["against_published"]
    rows = []
    for logits, words in _LOGITS.items():
        own = [each for each in found if each["logits"] == logits]
        by_temperature = [[each for each in own if each["temperature"] == at] for at in ("1", "4", "1 to 4")]
        counts = [f"{sum(each['lower'] for each in some)} of {len(some)}" for some in (*by_temperature, own)]
        rows.append((words, *counts))
    return _markdown(("logits", "T = 1", "T = 4", "T = 1 to 4", "all"), rows, numbers_from=1)


def _transform() -> str:
    found = _read("encodings")["within_budget"]
    rows = [
        (
            _LOGITS[rotated["logits"]],
            f"`{_grammatical(other['name'])}`",
            f"{other['bytes']:.1f}",
            f"`{_grammatical(rotated['name'])}`",
            f"{rotated['bytes']:.1f}",
        )
        for rotated, other in zip(found[::2], found[1::2], strict=True)
    ]
    heading = ("logits", "smallest of the others", "bytes per row", "smallest `klt`")
    return _markdown((*heading, "bytes per row, without its table"), rows, numbers_from=1)


def _published_store() -> str:
    rows = [
        (
            f"`{_grammatical(each['name'])}`",
            f"{each['plane_megabytes']:,.0f}",
            f"{each['gigabytes']:.1f}",
            f"{60 * each['transfer_hours_100']:.0f}",
            f"{60 * each['transfer_hours_1000']:.1f}",
            f"{60 * each['check_hours']:.1f}",
            f"{each['decode_plane_seconds']:.0f}",
            f"{each['encode_hours']:.1f}",
        )
        for each in _read("transform_coding")["imagenet"]
    ]
    heading = (
        "encoding",
        "MB a plane",
        "GB in all",
        "minutes at 100 Mbit/s",
        "minutes at 1 Gbit/s",
        "minutes to check",
    )
    return _markdown((*heading, "seconds to decode a plane", "core hours to encode"), rows, numbers_from=1)


def _encoding_accuracy() -> str:
    rows = [
        (
            f"`{name}`",
            f"{each['bytes_per_row']:.1f}",
            f"{each['fidelity']['kl_t4_mean']:.1e}",
            f"{100 * each['mean_top1']:.2f} ± {100 * each['deviation']:.2f}",
            "" if name == "fp32" else f"{100 * each['mean_minus_fp32']:+.2f}",
        )
        for name, each in _read("encoding_accuracy")["encodings"].items()
    ]
    heading = ("encoding", "bytes per row", "mean KL at T = 4", "test top-1, %", "minus that of `fp32`")
    return _markdown(heading, rows, numbers_from=1)


def _grammatical(name: str) -> str:
    """Return an encoding as it is written today, where the results have ``tailp6@1.4``."""
    return re.sub(r"^(klt)(?=\d)", r"\1:", re.sub(r"^([a-z]+)([\d.]+)@", r"\1:\2,", name))


def _sharing() -> str:
    """Return the bytes and seconds of pulls of parts of a store, a row for each kind of place."""
    found = _read("sharing")
    parts = ("test split", "one view", "all", "again", "update")
    rows = [
        (name, *(f"{row[part]['bytes'] / 1e6:.1f} MB, {row[part]['seconds']:.1f} s" for part in parts))
        for name, row in found["rows"].items()
    ]
    return _markdown(("", *parts), rows)


def _growth() -> str:
    found = _read("growth")
    rows = [
        ("a pass over all images", f"{found['whole_pass_cpu_s']:.0f}", f"{found['whole_bytes'] / 1e6:.2f}"),
        ("growth", f"{found['growth_cpu_s']:.1f}", f"{found['growth_bytes'] / 1e6:.2f}"),
        ("the same again, nothing new", f"{found['nothing_new_cpu_s']:.1f}", "0"),
    ]
    heading = (f"{found['added']:,} images added to {found['samples']:,}", "CPU seconds", "MB written")
    return _markdown(heading, rows)


def _forecast() -> str:
    def written(value: float) -> str:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

    rows = [
        (case, what, written(each["forecast"]), written(each["measured"]), f"{each['ratio']:.2f}")
        for case, found in _read("forecast")["cases"].items()
        for what, each in found["figures"].items()
    ]
    return _markdown(("data", "figure", "forecast", "measured", "ratio"), rows, numbers_from=2)


def _shuffle() -> str:
    windows = _read("shuffle")["windows"]
    rows = [
        (
            each["window"].removesuffix(" of a plane"),
            str(each["windows"]),
            f"{each['distinct_classes']:.0f}",
            f"{each['of_shuffled_rows']:.0f}",
        )
        for each in windows
    ]
    heading = ("a window holds, of a plane", "windows in an epoch", "rows by class", "shuffled rows")
    return _markdown(heading, rows)


def _checkpoints() -> str:
    rows = [
        (
            f"`{each['model']}`, {each['parameters']:,} parameters{', `--ema`' if each['ema'] else ''}",
            f"{1000 * each['write_s']:.0f}",
            f"{1000 * each['read_s']:.0f}",
            f"{each['bytes'] / 1e6:.1f}",
        )
        for each in _read("checkpoint_cost")["checkpoints"]
    ]
    return _markdown(("model", "write, ms", "read, ms", "MB"), rows)


def _engines() -> str:
    """Return CPU milliseconds of a batch of 1 and of 64 on one thread, by engine and network."""
    found = [each for each in _read("engines")["timings"] if each["threads"] == 1 and each["batch_size"] in (1, 64)]
    networks = list(dict.fromkeys(each["architecture"] for each in found))
    ways = dict.fromkeys((each["engine"], each["precision"]) for each in found)
    figures = {(each["engine"], each["precision"], each["architecture"], each["batch_size"]): each for each in found}
    rows = []
    for way in ways:
        cells = (figures.get((*way, network, batch)) for network in networks for batch in (1, 64))
        rows.append((" ".join(way), *("n/a" if each is None else f"{each['cpu_ms']:.3g}" for each in cells)))
    return _markdown(("engine", *(f"`{network}`, batch {batch}" for network in networks for batch in (1, 64))), rows)


def _engine_costs() -> str:
    """Return size, load time and memory of one network by engine."""
    measured = _read("engines")
    network = measured["timings"][0]["architecture"]
    sizes = next(each["format_bytes"] for each in measured["costs"] if each["architecture"] == network)
    rows = []
    for each in measured["starts"]:
        if (each["architecture"], each["threads"], each["batch_size"]) != (network, 1, 1):
            continue
        onnx = "onnx" if each["precision"] == "fp32" else f"onnx {each['precision']}"
        size = sizes["safetensors" if each["engine"] in ("eager", "compile") else onnx]
        times = [f"{each['load_ms']:,.0f}", *(f"{each[key] / 1e6:,.0f}" for key in ("libraries_bytes", "peak_bytes"))]
        rows.append((f"{each['engine']} {each['precision']}", f"{size / 1e3:,.0f}", *times))
    return _markdown(("engine", "file, kB", "load, ms", "libraries, MB", "peak, MB"), rows)


def _example(name: str) -> str:
    """Return the networks of an example with their costs, and the test accuracy of each that was trained."""
    found = _read(f"textbook_{name}")
    teacher, networks = found["teacher"], found["networks"]
    images = found["test_samples"]

    def row(network: str, role: str, top1: str) -> list[str]:
        cost = networks[network]
        times = (f"{cost['cpu_ms'][engine]:.2f}" for engine in ("eager", "onnx"))
        return [
            f"`{network.rpartition(':')[2]}`, {role}",
            str(cost["size"]),
            f"{cost['parameters']:,}",
            f"{cost['macs'] / 1e6:,.1f}",
            *times,
            top1,
        ]

    rows = [row(teacher["model"], "teacher", _of_one_run(teacher["top1"], images))]
    for way, student in found["students"].items():
        top1, seeds = student["top1"], len(student["seeds"])
        figures = f"{_percent(top1)} ({seeds} seeds)" if seeds > 1 else _of_one_run(top1["mean"], images)
        rows.append(row(student["model"], f"student, {way}", figures))
    trained = {teacher["model"], *(student["model"] for student in found["students"].values())}
    rows += [row(network, "only timed", "") for network in networks if network not in trained]
    heading = ["network", "pixels", "parameters", "MMACs", "CPU ms, PyTorch", "CPU ms, ONNX Runtime", "test top-1, %"]
    return _markdown(heading, rows)


def _sequences(name: str, learned_from: Mapping[str, str]) -> str:
    """Return the networks of an example with tensors: costs of one item, and test accuracy over the seeds."""
    found = _read(f"textbook_{name}")
    rows = []
    for way, each in {"teacher": found["teacher"], **found["students"]}.items():
        cost = found["networks"][each["model"]]
        numbers = (f"{cost['parameters']:,}", f"{cost['macs'] / 1e6:,.2f}", f"{cost['cpu_ms']['eager']:.2f}")
        rows.append((f"`{way}`", f"{learned_from[way]}", *numbers, _percent(each["top1"])))
    heading = ("network", "learned from", "parameters", "MMACs", "CPU ms, PyTorch", "test top-1, %")
    return _markdown(heading, rows, numbers_from=2)


_SPEECH = {
    "teacher": "labels",
    "assistant": "the teacher",
    "student": "the assistant",
    "direct": "the teacher",
    "alone": "labels",
}
_TEXT = {
    "teacher": "labels",
    "logits": "the teacher's logits",
    "layers": "its logits, hidden states and attention",
    "second": "the tuned teacher's logits",
    "tuned": "labels and the logits of `logits`",
    "alone": "labels",
}


def _of_one_run(share: float, images: int) -> str:
    """Return an accuracy in percent with its 95 % interval (Wilson, 1927), which is that of the test images alone."""
    z = 1.959964
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    return f"{100 * share:.1f} [{100 * (middle - half):.1f}, {100 * (middle + half):.1f}]"


TABLES: dict[str, Callable[[], str]] = {
    "demo": _demo,
    "data-formats": _data_formats,
    "export-formats": _export_formats,
    "labels": _labels,
    "audit": _audit,
    "logit-losses": _logit_losses,
    "layer-losses": _layer_losses,
    "losses": _losses,
    "loss-ranks": _loss_ranks,
    "cached-beliefs": _cached_beliefs,
    "tuning": _tuning,
    "loss-cost": _loss_cost,
    "published-losses": _published_losses,
    "operations": _operations,
    "signal-sizes": _signal_sizes,
    "signal-losses": _signal_losses,
    "chains": _chains,
    "compression": _compression,
    "robust": _robust,
    "auxiliary": _auxiliary,
    "fleet": _fleet,
    "scale": _scale,
    "large": _large,
    "extrapolated": _extrapolated,
    "memory-formats": _memory_formats,
    "compiled": _compiled,
    "skew": _skew,
    "views-speed": _views_speed,
    "consistency": _consistency,
    "cifar10": _cifar10,
    "store": _store,
    "rivals": _rivals,
    "rows-read": _rows_read,
    "ants-and-bees": _ants_and_bees,
    "encodings": _encodings,
    "transform-coding": _transform,
    "published-formats": _formats,
    "published-store": _published_store,
    "encoding-accuracy": _encoding_accuracy,
    "growth": _growth,
    "sharing": _sharing,
    "forecast": _forecast,
    "shuffle": _shuffle,
    "checkpoints": _checkpoints,
    "example-cifar10": partial(_example, "cifar10"),
    "example-mnist": partial(_example, "mnist"),
    "example-speech": partial(_sequences, "speech", _SPEECH),
    "example-text": partial(_sequences, "text", _TEXT),
    "engines": _engines,
    "engine-costs": _engine_costs,
}
"""The Markdown of each table, by its name."""

if __name__ == "__main__":
    main()
