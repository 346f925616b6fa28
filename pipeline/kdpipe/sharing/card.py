"""The card of a published version, ``README.md``: Markdown for people, with a YAML head as dataset hubs read it.

It is made from the manifest alone. Foreign text is escaped: it adds no markup, no links and no entries of YAML.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping

import yaml

from kdpipe.encoding.registry import restore_encoding
from kdpipe.printable import printable
from kdpipe.sharing.catalog import Row
from kdpipe.store.manifest import Manifest

_HUB_LICENSES = (
    *("apache-2.0", "mit", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "isc"),
    *(f"cc-by{kind}-{number}" for kind in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd") for number in ("3.0", "4.0")),
    *("bsd-2-clause", "bsd-3-clause", "mpl-2.0", "epl-2.0", "eupl-1.2", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0"),
)
"""Identifiers of licenses that dataset hubs know; others are ``other`` with a name."""
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_SIZES_ABOVE = ((10**8, "10M<n<100M"), (10**9, "100M<n<1B"))
_SHOWN_CLASSES = 20
_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")

WITHHELD = {
    "views": "Augmented views: it has fewer than the store that it was derived from. Students see fewer different "
    "augmentations.",
    "splits": "Splits: it lacks some. Without `train`, no student is trained with it; without `test`, predictions are "
    "not compared with the teacher's.",
    "encoding": "Precision: the logits were encoded again, with the loss given above.",
    "signals": "Features and attention maps: losses that need them are refused.",
    "labels": "Hard labels: training takes those of your own dataset. A teacher's most likely class often equals the "
    "label, so this hides little of them.",
    "names": "Names and images: ids are keyed by a secret of the publisher, rows are in the order of these ids, and "
    "there are no digests of files or pixels. **Without the secret, rows cannot be matched with images**: not by name, "
    "by content, by pixels or by order. So nobody else can train a student of images with it, `verify --data` cannot "
    "compare, and replay probes cannot tell other pixels. Names of classes stay, and so do logits: with the teacher "
    "itself, its logits for an image can be recognized.",
}
"""The consequences of each part that is withheld, in Markdown."""


def card(found: Manifest, row: Row) -> str:
    """Return the card of a sealed store's manifest; ``row`` is its row in the catalog."""
    title = found.provenance.title or row.name
    lines = [f"# {escaped(title)}", "", _lead(found, row), ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(found, row).items()), ""]
    if found.derived_from is not None:
        lines += ["## Withheld", "", f"Derived without the teacher from the store `{found.derived_from.digest}`.", ""]
        lines += [f"- {WITHHELD[each]}" for each in found.derived_from.withheld] + [""]
    lines += _use(found, row)
    for heading, text in (
        ("Allowed use", found.provenance.allowed_use),
        ("Citation", found.provenance.citation),
        ("Notes", found.provenance.notes),
    ):
        if text:
            lines += [f"## {heading}", "", *_quoted(text), ""]
    classes = ", ".join(escaped(name) for name in found.classes[:_SHOWN_CLASSES])
    more = len(found.classes) - _SHOWN_CLASSES
    lines += ["## Classes", "", classes + (f" and {more:,} more." if more > 0 else "."), ""]
    return f"---\n{_head(found, row)}---\n\n" + "\n".join(lines)


def _head(found: Manifest, row: Row) -> str:
    """Return the YAML head: only plain values, each on one line."""
    head = {
        "pretty_name": printable(found.provenance.title or row.name)[:200],
        **_license(row.license),
        "task_categories": ["image-classification"],
        "tags": ["knowledge-distillation", "logits", "kdpipe", "zarr"],
        "size_categories": [_size(sum(row.samples.values()))],
    }
    text: str = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=10**6)
    return text


def _license(name: str) -> dict[str, str]:
    if name.lower() in _HUB_LICENSES:
        return {"license": name.lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-") or "unknown"}


def _size(samples: int) -> str:
    return next((name for most, name in (*_SIZES, *_SIZES_ABOVE) if samples < most), "n>1T")


def _lead(found: Manifest, row: Row) -> str:
    images = sum(row.samples.values())
    return (
        f"Logits of the teacher {escaped(row.teacher.name)} for {images:,} images of {len(found.classes):,} classes, "
        "to train students by knowledge distillation without the teacher. There are no images in it: train on your own "
        "copy of them."
    )


def _facts(found: Manifest, row: Row) -> dict[str, str]:
    teacher, origin = found.fingerprint.teacher, found.derived_from
    top1 = "unknown" if row.teacher.top1 is None else f"{row.teacher.top1:.2%}"
    return {
        "Version": f"`{row.address}`",
        "License": escaped(row.license),
        "Contact": escaped(row.contact or "none"),
        "Teacher": f"{escaped(row.teacher.name)}, digest `{teacher.digest}`, test top-1 {top1}",
        **({"Class map": _classes(found)} if teacher.class_maps else {}),
        "Data": f"{escaped(found.dataset)}: "
        + ", ".join(
            f"{count:,} '{escaped(split)}' samples" for split, count in sorted(row.samples.items(), reverse=True)
        ),
        "Views": f"the plain view and {row.views:,} augmented ones, recipe {escaped(row.recipe)}",
        "Encoding": f"`{row.encoding}`, {_serves(found)}",
        "Loss of encoding": _losses(row.kl, "the teacher's logits" if origin is None or not origin.kl else "that store")
        + ("" if origin is None or not origin.kl else f"; that store: {_losses(origin.source_kl, 'the logits')}"),
        "Size": f"{row.size / 1e6:,.1f} MB in {row.files:,} files",
        "Digest": f"`{row.digest}`",
    }


def _classes(found: Manifest) -> str:
    """Return the outputs of the teacher that each class is made of; of several teachers, those of each."""
    maps = found.fingerprint.teacher.class_maps
    parts = [
        f"{escaped(name)} from {' and '.join('+'.join(map(str, each[index])) for each in maps)}"
        for index, name in enumerate(found.classes[:_MAPPED])
    ]
    more = f" and {len(found.classes) - _MAPPED:,} more" if len(found.classes) > _MAPPED else ""
    return f"outputs of the teacher, by index: {', '.join(parts)}{more}"


_MAPPED = 20
"""Classes of a class map that are listed."""


def _serves(found: Manifest) -> str:
    highest = restore_encoding(found.encoding).max_temperature
    return "any temperature" if highest is None else f"temperatures up to {highest:g}"


def _losses(kl: Mapping[str, float] | None, against: str) -> str:
    if not kl:
        return "not measured"
    return f"mean KL against {against} " + ", ".join(f"{mean:.1e} at T={t}" for t, mean in kl.items())


def _use(found: Manifest, row: Row) -> list[str]:
    if found.derived_from is not None and "names" in found.derived_from.withheld:
        return []
    store = f"{row.name.removesuffix('.zarr')}.zarr"
    pull = f"    kdpipe pull URL/{row.address} --data DATA --out {store}"
    train = f"    kdpipe train-student --data DATA --store {store} --student resnet20 --out runs/student"
    return [
        "## Use",
        "",
        "`URL` is where you found this version, and `DATA` your copy of the images:",
        "",
        pull,
        *([train] if "train" in row.samples else []),
        "",
        "`zarr.json` is the manifest: it lists every file with its digest. Any Zarr v3 library reads the arrays.",
        "",
    ]


def escaped(text: str) -> str:
    """Return foreign text on one line of Markdown that is shown as it is: every punctuation character is escaped."""
    return _PUNCTUATION.sub(r"\\\1", " ".join(printable(" ".join(text.split())).split()))


def _quoted(text: str) -> Iterable[str]:
    """Return foreign text of several lines as paragraphs of a quotation."""
    return [f"> {escaped(line)}".rstrip() + ("  " if line.strip() else "") for line in text.splitlines()]
