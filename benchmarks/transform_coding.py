"""Bytes against KL of ``klt`` and of the encodings without a transform, on images that the basis was not fitted to.

    python benchmarks/transform_coding.py --logits lite0.npy --data folder:CIFAR10 --weights resnet20.safetensors

``--logits`` are those of a teacher with 1,000 classes for several views of each image, float32 (views, images,
classes). Encodings are fitted to all views of 80 % of the images and measured on those of the others. The other sets
are those of ``benchmarks/encodings.py``. Bytes are compressed codes and row maxima, as a store keeps them; the table of
``klt`` is given apart, since all rows of a store share it. The last figures are the time of decoding a batch of 128
beside a step of a resnet8 with as many classes, one thread, in turns. Writes
benchmarks/results/transform_coding.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import teacher_logits
import torch
from published_formats import FORMATS, Format

from kdpipe import models
from kdpipe.encoding.base import Encoding
from kdpipe.encoding.chooser import CANDIDATES, WIDE, largest_kl, stored_bytes
from kdpipe.encoding.fidelity import kl
from kdpipe.encoding.registry import get_encoding
from kdpipe.stages.provenance import git_revision, versions

RESULT = Path(__file__).parent / "results" / "transform_coding.json"
TEMPERATURES = (1.0, 2.0, 4.0)
SPAN = (1.0, 4.0)
BUDGET = 1e-3
PILOT = 4_096
PILOTS = (500, 1_000, 2_000)
MORE = tuple(f"klt{step:g}" for step in (1.2, 1.4, 1.7, 2, 2.5, 3, 4))
BATCH = 128

Row = dict[str, Any]


def main() -> None:
    """Measure all on all, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--logits", type=Path, required=True, help="float32 (views, images, 1000), .npy")
    parser.add_argument("--data", required=True, help="CIFAR-10 as kdpipe takes it")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--weights", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    saved = torch.from_numpy(np.load(options.logits))
    cifar = teacher_logits.cifar10(options.data, options.teacher, options.weights, rows=PILOT + 2_048).values
    sets = {
        "teacher": by_image(saved),
        "cifar10": (cifar[:PILOT], cifar[PILOT:]),
        "described-1000": _split(teacher_logits.described(rows=PILOT + 1_024).values),
        "independent-1000": _split(teacher_logits.independent(rows=PILOT + 1_024).values),
    }
    table: list[Row] = []
    for name, (pilot, held_out) in sets.items():
        for each in (*CANDIDATES, *WIDE, *MORE):
            table.append({"logits": name, **measured(get_encoding(each).calibrate(pilot), held_out)})
            print(*table[-1].values(), flush=True)
        table += [{"logits": name, **published(each, held_out)} for each in FORMATS if each.k < held_out.shape[1]]
    pilot, held_out = sets["teacher"]
    result = {
        "command": "python benchmarks/transform_coding.py --logits lite0.npy --data folder:CIFAR10 --weights "
        "cifar10-resnet20.safetensors",
        "rows": {name: [len(part) for part in parts] for name, parts in sets.items()},
        "within_budget": [smallest(table, name, family) for name in sets for family in ("klt", "others")],
        "against_published": against(table),
        "pilots": [
            {"rows": rows, **measured(get_encoding("klt0.28").calibrate(pilot[:rows]), held_out)}
            for rows in (*PILOTS, len(pilot))
        ],
        "unrotated": measured(get_encoding("klt0.28"), held_out),
        "seconds": speed(pilot, held_out),
        "table": table,
        "versions": versions(),
        "git_revision": git_revision(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("within_budget", "pilots", "unrotated", "seconds")}, indent=1))
    print(f"lower than published: {sum(row['lower'] for row in result['against_published'])} of", end=" ")
    print(len(result["against_published"]))


def by_image(saved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of 80 % of the images, and of the others, each in random order."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randperm(saved.shape[1], generator=generator)
    cut = len(images) * 4 // 5
    parts = (saved[:, part].flatten(0, 1) for part in (images[:cut], images[cut:]))
    first, second = (part[torch.randperm(len(part), generator=generator)] for part in parts)
    return first, second


def _split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return values[:PILOT], values[PILOT:]


def measured(encoding: Encoding, logits: torch.Tensor) -> Row:
    """Return bytes per row, the mean KL, and the largest between the ends of the span."""
    encoded = encoding.encode(logits)
    decoded = encoding.decode(torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max), logits.shape[1])
    return {
        "name": encoding.name,
        "bytes": stored_bytes(encoded, encoding.compression) / len(logits),
        "table_bytes": len(json.dumps(encoding.describe())),
        **{f"kl_t{t:g}": float(kl(logits, decoded, t).mean()) for t in TEMPERATURES},
        "kl_span": largest_kl(logits, decoded, SPAN),
        "serves": encoding.max_temperature is None or encoding.max_temperature >= max(SPAN),
    }


def published(form: Format, logits: torch.Tensor) -> Row:
    """Return the same of a published format, without the largest of the span."""
    read = form.roundtrip(logits, form.k)
    losses = {f"kl_t{t:g}": float(kl(logits, read.log_probabilities, t).mean()) for t in TEMPERATURES}
    return {"name": f"{form.name} {form.k}", "bytes": read.stored, **losses, "source": form.source}


def smallest(table: list[Row], logits: str, family: str) -> Row:
    """Return the smallest encoding within the budget over the span."""
    rows = [
        row
        for row in table
        if row["logits"] == logits
        and "source" not in row
        and row["name"].startswith("klt") == (family == "klt")
        and row["serves"]
        and row["kl_span"] <= BUDGET
    ]
    return min(rows, key=lambda row: row["bytes"])


def against(table: list[Row]) -> list[Row]:
    """Compare each published format with the best encoding that is no larger, and with the best ``klt``."""
    found = []
    for row in (row for row in table if "source" in row):
        for key in ("kl_t1", "kl_t4"):
            ours = [
                each
                for each in table
                if each["logits"] == row["logits"]
                and "source" not in each
                and each["bytes"] <= row["bytes"]
                and (each["serves"] or key == "kl_t1")
            ]
            best = min(ours, key=lambda each: each[key], default=None)
            found.append(
                {"logits": row["logits"], "format": row["name"], "bytes": row["bytes"], "at": key, "kl": row[key]}
                | {"best": best and best["name"], "best_kl": best and best[key]}
                | {"lower": best is not None and best[key] < row[key]}
            )
    return found


def speed(pilot: torch.Tensor, logits: torch.Tensor) -> Row:
    """Return processor seconds, medians of 20: a step, decoding of its batch, and encoding of a row."""
    works: dict[str, Callable[[], object]] = {"step": _step(logits.shape[1])}
    for name in ("klt0.28", "tailp7@16"):
        fitted = get_encoding(name).calibrate(pilot)
        works[f"decode {name}"] = _decoding(fitted, logits[:BATCH])
        works[f"encode {name}"] = lambda fitted=fitted: fitted.encode(logits[:BATCH])  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(23):
        for name, work in works.items():
            began = time.process_time()
            work()
            seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(each[3:]) for name, each in seconds.items()}
    return medians | {"decode klt0.28 / step": medians["decode klt0.28"] / medians["step"]}


def _decoding(encoding: Encoding, logits: torch.Tensor) -> Callable[[], object]:
    encoded = encoding.encode(logits)
    codes, row_max = torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max)
    return lambda: encoding.decode(codes, row_max, logits.shape[1])


def _step(classes: int) -> Callable[[], object]:
    student = models.create("resnet8", classes).train()
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, classes, (BATCH,))
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(student(images), labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
