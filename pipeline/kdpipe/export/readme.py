"""The files that describe an export: README.md with code for each artifact, export.json, and an example image."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import Image

from kdpipe.directories import Kind
from kdpipe.export import formats
from kdpipe.export.checks import Figures, Tested, shown
from kdpipe.export.formats import Artifact
from kdpipe.export.images import Pixels, example
from kdpipe.models import Preset
from kdpipe.printable import printable, printable_json

README, REPORT, EXAMPLE = "README.md", "export.json", "example.png"

EXPORT = Kind("export", (README, REPORT, EXAMPLE, *formats.FILES))
"""The directories that this makes."""

FORMAT = 1
"""Version of ``export.json``."""

_LOGITS = 8
"""Logits of the example image in ``export.json``."""


def metadata(facts: Mapping[str, Any], preset: Preset) -> dict[str, str]:
    """Return the texts for the metadata of every file: facts on the network, and how its images are prepared.

    The preparation is written as in the header of a run's safetensors; what is no text is written as JSON.
    """
    described = {
        "input_size": preset.size,
        "resize": preset.resize,
        "interpolation": preset.interpolation,
        "mean": ",".join(map(repr, preset.mean)),
        "std": ",".join(map(repr, preset.std)),
    }
    known = {key: value for key, value in {**facts, **described}.items() if value is not None}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in known.items()}


def files(
    tested: Tested, preset: Preset, classes: tuple[str, ...], *, facts: Mapping[str, Any], images: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return all files of an export by name.

    ``facts`` describe the network: its name, digests, lineage and license; ``images`` those that it was tested and
    calibrated with.
    """
    image = example(preset.size)
    report = {
        "format": FORMAT,
        **facts,
        "classes": list(classes),
        "input": {"name": "images", "dtype": "uint8", "shape": ["n", 3, preset.size, preset.size], "order": "RGB"},
        "output": {"name": "logits", "dtype": "float32", "shape": ["n", len(classes)]},
        "preset": preset.describe(),
        **images,
        "run": _figures(tested.run, tested),
        "artifacts": [
            _artifact(artifact, image, classes) | _figures(figures, tested) for artifact, figures in tested.artifacts
        ],
    }
    found = {name: content for artifact, _ in tested.artifacts for name, content in artifact.files.items()}
    return {
        README: _readme(tested, preset, report).encode(),
        REPORT: (printable_json(report) + "\n").encode(),
        EXAMPLE: _png(image),
        **found,
    }


def _figures(figures: Figures, tested: Tested) -> dict[str, Any]:
    return {
        "top1": figures.top1,
        "agreement": figures.agreement,
        "drop_points": tested.drop(figures),
        "largest_logit_difference": figures.difference,
    }


def _artifact(artifact: Artifact, image: Pixels, classes: tuple[str, ...]) -> dict[str, Any]:
    logits = artifact.predict(image)[0]
    return {
        "format": artifact.format,
        "precision": artifact.precision,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in artifact.files.items()
        },
        "bytes": artifact.bytes,
        "example": {
            "file": EXAMPLE,
            "class": classes[logits.argmax()],
            "first_logits": [float(f"{value:.4g}") for value in logits[:_LOGITS].tolist()],
        },
    }


def _png(image: Pixels) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image[0].transpose(1, 2, 0)).save(content, format="PNG")
    return content.getvalue()


def _readme(tested: Tested, preset: Preset, report: Mapping[str, Any]) -> str:
    classes, license_line = len(report["classes"]), report["license"]
    shape = f"`(n, 3, {preset.size}, {preset.size})`"
    parts = [
        f"# {_code(report['name'])}",
        f"The network {_code(report['architecture'])}, exported by kdpipe {report['kdpipe']}. It takes RGB images as "
        f"uint8 {shape}, for any n, and returns float32 logits `(n, {classes})`. Normalization is part of the files; "
        f"resizing is not: the shorter side of an image is resized to {preset.resize} pixels ({preset.interpolation}, "
        f"with antialiasing), and a centered square of {preset.size} is cut out.",
        f"License: {'not stated' if license_line is None else _code(license_line)}. Digests, lineage, class names and "
        f"all figures are in {REPORT}; each file has them in its metadata, too, but for the figures.",
        _table(tested),
        f"Measured on {tested.run.images:,} {report['test']['split']} images; the last two columns compare with the "
        f"run in PyTorch. `{EXAMPLE}` is a synthetic pattern whose logits are in {REPORT}.",
        *(part for artifact, _ in tested.artifacts for part in _section(artifact, preset)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(tested: Tested) -> str:
    rows = [
        "| file | format | bytes | top-1 | same class | largest difference of a logit |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for artifact, figures in tested.artifacts:
        names = " and ".join(f"`{name}`" for name in artifact.files)
        top1, same = shown(figures.top1), shown(figures.agreement)
        rows.append(
            f"| {names} | {artifact.format} {artifact.precision} | {artifact.bytes:,} | {top1} | {same} | "
            f"{figures.difference:.1e} |"
        )
    return "\n".join(rows)


def _section(artifact: Artifact, preset: Preset) -> list[str]:
    """Return the heading of an artifact, its code, which runs as it stands, and remarks."""
    modules = sorted(each for each in artifact.imports if not each.startswith("from "))
    own = [each for each in artifact.imports if each.startswith("from ")]
    standard = [each for each in modules if each == "json"]
    others = sorted({*modules, "numpy"} - {*standard})
    lines = [
        *(f"import {each}" for each in standard),
        *([""] if standard else []),
        *("import numpy as np" if each == "numpy" else f"import {each}" for each in others),
        *own,
        "from PIL import Image",
        "",
        *preparation(preset),
        artifact.code,
        "print(classes[int(logits[0].argmax())])",
    ]
    code = "\n".join(lines)
    packages = [{"PIL": "pillow"}.get(each, each) for each in ("PIL", *others)]
    install = f"```sh\npip install {' '.join(sorted(packages))}\n```"
    return [f"## {next(iter(artifact.files))}", install, f"```python\n{code}\n```", *artifact.remarks]


def preparation(preset: Preset, file: str = EXAMPLE) -> list[str]:
    """Return Python that reads an image as ``images``, uint8 ``(1, 3, S, S)``, with Pillow and numpy.

    The pixels are those of kdpipe's plain view, up to 1 in 255 where Pillow rounds otherwise.
    """
    size, kernel = preset.size, f"Image.Resampling.{preset.interpolation.upper()}"
    return [
        f'image = Image.open("{file}").convert("RGB")',
        f"image = image.resize([{preset.resize} * side // min(image.size) for side in image.size], {kernel})",
        f"left, top = (round((side - {size}) / 2) for side in image.size)",
        f"image = image.crop((left, top, left + {size}, top + {size}))",
        f"images = np.array(image).transpose(2, 0, 1)[None]  # uint8 (1, 3, {size}, {size})",
    ]


def _code(text: object) -> str:
    """Return foreign text as code in Markdown."""
    return f"`{printable(text).replace('`', chr(39))}`"
