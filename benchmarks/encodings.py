"""Bytes against KL: every encoding of kdpipe and the cache formats of others, on the same logits.

    python benchmarks/encodings.py --logits lite0.npy --data folder:CIFAR10 --weights cifar10-resnet20.safetensors

``--logits`` are those of a teacher with 1,000 classes for several views of each image, float32 (views, images,
classes). Encodings are calibrated on all views of 80 % of the images and measured on those of the others; of the other
sets, on 4,096 rows and on the rest. Bytes are compressed codes and row maxima, as a store keeps them, without the
encoding's table in the manifest, which all rows share. Writes benchmarks/results/encodings.json, .csv and .png.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import teacher_logits
import torch
from published_formats import FORMATS, Format

from kdpipe.encoding import chooser
from kdpipe.encoding.base import Encoding
from kdpipe.encoding.chooser import CANDIDATES, stored_bytes
from kdpipe.encoding.registry import get_encoding
from kdpipe.stages.provenance import git_revision, versions

RESULTS = Path(__file__).parent / "results"
TEMPERATURES = (1.0, 4.0)
SPAN = "1 to 4"
AT = {"1": "kl_t1", "4": "kl_t4", SPAN: "kl_span"}
"""Temperatures that are compared, and where a row has the KL at them; that of the span is its largest."""
WITHIN = tuple(4 ** (place / 8) for place in range(9))
"""Temperatures of the span: between two of them, mean KL is at most 1 % larger."""
PILOT = 4_096
WIDE = tuple(each for each in chooser.WIDE if each not in ("klt0.1", "klt0.45"))
MORE = (
    *(f"tailp{bits}@{temperature}" for bits in range(2, 9) for temperature in (1.4, 2.8, 5.6, 11)),
    *(f"tailp{bits}@{temperature}" for bits in range(2, 5) for temperature in (1.2, 2.4)),
    *(f"peaks1@{floor:g}" for floor in (1, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5)),
    *(f"peaks2@{floor:g}" for floor in (3, 4, 4.8, 5.2, 6, 8)),
    *("klt0.3", "klt0.31", "klt0.316", "klt1.4", "klt2", "klt3", "klt4"),
)
TOPK = tuple(f"topk{k}" for k in (1, 2, 3, 5, 10, 20, 50, 100))
BUDGET = 1e-3
"""KL at which sizes are compared with raw float32."""
TIMED = 128
"""Rows whose encoding and decoding is timed."""

Row = dict[str, Any]


class Losses:
    """Mean KL of decoded logits, with the reference's probabilities computed once."""

    def __init__(self, logits: torch.Tensor) -> None:
        """Compute the probabilities of the reference, float32 ``(n, classes)``, at every temperature."""
        logs = {t: (logits.double() / t).log_softmax(dim=1) for t in WITHIN}
        self._p = {t: each.exp() for t, each in logs.items()}
        self._entropies = {t: (self._p[t] * each).sum(dim=1) for t, each in logs.items()}

    def of(self, decoded: torch.Tensor) -> dict[str, float]:
        """Return the mean KL at each temperature that is compared, and the largest of the span."""
        found = {}
        for t, p in self._p.items():
            cross = (p * (decoded.double() / t).log_softmax(dim=1)).sum(dim=1)
            found[t] = float((self._entropies[t] - cross).clamp(min=0).mean())
        return {**{f"kl_t{t:g}": found[t] for t in TEMPERATURES}, "kl_span": max(found.values())}


def main() -> None:
    """Measure all on all, and write table, checks and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logits", type=Path, help="float32 (views, images, 1000), .npy; without it, one set less")
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--rows", type=int, default=PILOT + 2_048, help="rows with 10 classes")
    parser.add_argument("--held-out", type=int, default=1_024, help="most rows that encodings are measured on")
    parser.add_argument("--processes", type=int, default=1, help="sets that are measured at once")
    options = parser.parse_args()
    torch.set_num_threads(1)

    stand_ins = {
        "cifar10": teacher_logits.cifar10(options.data, options.teacher, options.weights, rows=options.rows),
        "described-1000": teacher_logits.described(rows=PILOT + options.held_out),
        "independent-1000": teacher_logits.independent(rows=PILOT + options.held_out),
    }
    sets = {}
    if options.logits is not None:
        sets["teacher"] = teacher_logits.by_image(torch.from_numpy(np.load(options.logits)))
    sets |= {name: (each.values[:PILOT], each.values[PILOT:]) for name, each in stand_ins.items()}
    parts = [(name, pilot, held_out[: options.held_out]) for name, (pilot, held_out) in sets.items()]
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("fork")) as pool:
        table: list[Row] = [row for rows in pool.map(measured, *zip(*parts, strict=True)) for row in rows]
    by_set = {name: [row for row in table if row["logits"] == name] for name in sets}
    speeds = {name: {"teacher_rows_per_second": each.rows_per_second} for name, each in stand_ins.items()}
    result: dict[str, Any] = {
        "command": "python benchmarks/encodings.py --logits lite0.npy --data folder:CIFAR10 "
        "--weights cifar10-resnet20.safetensors",
        "logits": {
            name: teacher_logits.summary(torch.cat(parts))
            | {"pilot_rows": len(parts[0]), "held_out_rows": min(len(parts[1]), options.held_out)}
            | speeds.get(name, {})
            for name, parts in sets.items()
        },
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git_revision": git_revision(),
        "against_raw": [row for name, rows in by_set.items() for row in against_raw(rows, sets[name][1].shape[1])],
        "within_budget": [row for rows in by_set.values() for row in within_budget(rows)],
        "against_published": [row for rows in by_set.values() for row in against_published(rows)],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "encodings.json").write_text(json.dumps(result, indent=1) + "\n")
    with (RESULTS / "encodings.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in table for key in row)))
        writer.writeheader()
        writer.writerows(table)
    draw(table, list(sets))
    for row in result["against_raw"]:
        print(*row.values())
    for row in result["against_published"]:
        print("lower " if row["lower"] else "HIGHER", *row.values())
    print(counted(result["against_published"]))


def measured(name: str, pilot: torch.Tensor, held_out: torch.Tensor) -> list[Row]:
    """Measure all encodings and formats on one set of logits."""
    classes, losses = held_out.shape[1], Losses(held_out)
    names = dict.fromkeys((*CANDIDATES, *WIDE, *MORE, *(each for each in TOPK if int(each[4:]) < classes)))
    rows = [ours(get_encoding(each).calibrate(pilot), held_out, losses) for each in names]
    rows += [theirs(each, held_out, losses) for each in FORMATS if each.k < classes]
    print(f"{name}: {len(rows)} measured on {len(held_out)} rows", flush=True)
    return [{"logits": name, **row} for row in rows]


def ours(encoding: Encoding, logits: torch.Tensor, losses: Losses) -> Row:
    """Measure one of kdpipe's encodings."""
    encoded = encoding.encode(logits)
    codes, row_max = torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max)
    decoded = encoding.decode(codes, row_max, logits.shape[1])
    size = stored_bytes(encoded, encoding.compression) / len(logits)
    family = re.match(r"fp\d*|[a-z]+", encoding.name)
    assert family is not None, encoding.name
    some, its_codes, its_max = logits[:TIMED], codes[:TIMED], row_max[:TIMED]
    return {
        "family": family[0],
        "name": encoding.name,
        "bytes": size,
        "bytes_packed": size,
        "table_bytes": len(json.dumps(encoding.describe())),
        **losses.of(decoded),
        "max_temperature": encoding.max_temperature,
        "encode_rows_per_second": rate(lambda: encoding.encode(some), len(some)),
        "decode_rows_per_second": rate(lambda: encoding.decode(its_codes, its_max, logits.shape[1]), len(some)),
    }


def theirs(form: Format, logits: torch.Tensor, losses: Losses) -> Row:
    """Measure a published format."""
    read = form.roundtrip(logits, form.k)
    return {
        "family": form.name,
        "name": f"{form.name} {form.k}",
        "bytes": read.stored,
        "bytes_packed": read.packed,
        **losses.of(read.log_probabilities),
        "source": form.source,
    }


def rate(work: Callable[[], object], rows: int) -> float:
    """Return rows per second, median of three."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return rows / statistics.median(seconds)


def against_published(rows: list[Row]) -> list[Row]:
    """Compare each published format with the best of ours that is no larger and serves the temperature."""
    found = []
    for row, size, at in product((row for row in rows if "source" in row), ("bytes", "bytes_packed"), AT):
        key = AT[at]
        fitting = [each for each in rows if each["bytes"] <= row[size] and _serves(each, at)]
        best = min(fitting, key=lambda each: each[key], default={"name": None, "bytes": None, key: math.inf})
        lower = best[key] < row[key]
        found.append(
            {"logits": row["logits"], "format": row["name"], "temperature": at, "counting": size}
            | {"its_bytes": row[size], "its_kl": row[key], "best": best["name"], "best_bytes": best["bytes"]}
            | {"best_kl": best[key] if best["name"] else None, "lower": lower}
        )
    return found


def counted(compared: list[Row]) -> str:
    """Return at how many comparisons the KL is lower: on all sets, and at T = 1 and 4 on those without the teacher."""
    older = [row for row in compared if row["logits"] != "teacher" and row["temperature"] != SPAN]
    parts = (f"{sum(row['lower'] for row in each)} of {len(each)}" for each in (compared, older))
    return "lower KL in no more bytes: {} comparisons; without the teacher and the span: {}".format(*parts)


def against_raw(rows: list[Row], classes: int) -> list[Row]:
    """Return the smallest of ours whose KL stays within ``BUDGET``, against four bytes a class."""
    found = []
    for temperatures in (("1",), ("1", "4"), (SPAN,)):
        within = [row for row in rows if all(_serves(row, at) and row[AT[at]] <= BUDGET for at in temperatures)]
        best = min(within, key=lambda row: row["bytes"])
        found.append(
            {"logits": best["logits"], "within": BUDGET, "temperatures": temperatures, "name": best["name"]}
            | {"bytes": best["bytes"], "times_smaller_than_fp32": 4 * classes / best["bytes"]}
        )
    return found


def within_budget(rows: list[Row]) -> list[Row]:
    """Return the smallest ``klt`` within ``BUDGET`` over the span, and the smallest of the others."""
    within = [row for row in rows if _serves(row, SPAN) and row["kl_span"] <= BUDGET]
    families = [[row for row in within if (row["family"] == "klt") == rotated] for rotated in (True, False)]
    return [min(each, key=lambda row: row["bytes"]) for each in families]


def _serves(row: Row, at: str) -> bool:
    temperature = max(TEMPERATURES) if at == SPAN else float(at)
    return "source" not in row and temperature <= (row["max_temperature"] or math.inf)


def draw(table: list[Row], names: list[str]) -> None:
    """Draw bytes against KL, one panel for each set of logits and temperature."""
    figure, panels = plt.subplots(len(TEMPERATURES), len(names), figsize=(5 * len(names), 8), squeeze=False)
    for column, name in enumerate(names):
        rows = [row for row in table if row["logits"] == name and row["kl_t1"] > 0]
        for line, t in enumerate(TEMPERATURES):
            panel = panels[line][column]
            for family in dict.fromkeys(row["family"] for row in rows):
                points = sorted((r["bytes"], r[f"kl_t{t:g}"]) for r in rows if r["family"] == family)
                published = any("source" in r for r in rows if r["family"] == family)
                panel.plot(*zip(*points, strict=True), "s" if published else ".", label=family)
            panel.set(xscale="log", yscale="log", xlabel="bytes per row", ylabel=f"mean KL at T = {t:g}", title=name)
            panel.set_ylim(1e-6, 2)
            panel.grid(alpha=0.3)
    panels[0][1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "encodings.png", dpi=70)
    plt.close(figure)


if __name__ == "__main__":
    main()
