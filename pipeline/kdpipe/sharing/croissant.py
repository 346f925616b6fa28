"""Metadata of a published version in Croissant, JSON-LD that dataset catalogs read.

Akhtar et al. 2024, "Croissant: A Metadata Format for ML-Ready Datasets"; version 1.0 of the specification.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from kdpipe.printable import printable
from kdpipe.sharing.address import version_order
from kdpipe.sharing.catalog import Row
from kdpipe.store import manifest
from kdpipe.store.manifest import Manifest

_TERMS = (
    *("citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet", "format"),
    *("includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex"),
    *("repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
)
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS},
}
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?=T|$)")


def croissant(found: Manifest, row: Row) -> str:
    """Return the metadata of a sealed store's manifest as JSON; ``row`` is its row in the catalog."""
    root = manifest.document(found)
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": row.name,
        "alternateName": printable(found.provenance.title or row.name),
        "description": _description(row),
        "license": _license(row.license),
        "version": _version(row.version),
        "identifier": row.digest,
        "keywords": ["knowledge distillation", "logits", "image classification"],
        **_dated(found),
        **({"citeAs": printable(found.provenance.citation)} if found.provenance.citation else {}),
        **({"usageInfo": printable(found.provenance.allowed_use)} if found.provenance.allowed_use else {}),
        **({"creator": {"@type": "sc:Organization", "name": printable(row.contact)}} if row.contact else {}),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "manifest",
                "name": "manifest",
                "description": "The manifest: root of a Zarr v3 group, with size and digest of every file.",
                "contentUrl": "zarr.json",
                "contentSize": f"{len(root)} B",
                "encodingFormat": "application/json",
                "sha256": hashlib.sha256(root).hexdigest(),
            },
            *(_split(split, samples) for split, samples in row.samples.items()),
        ],
    }
    return json.dumps(described, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _description(row: Row) -> str:
    top1 = "" if row.teacher.top1 is None else f" (test top-1 {row.teacher.top1:.2%})"
    return (
        f"Logits of the teacher {printable(row.teacher.name)}{top1} for {sum(row.samples.values()):,} images of "
        f"{row.classes.count:,} classes: the plain view and {row.views:,} augmented ones, encoded as {row.encoding}."
    )


def _split(split: str, samples: int) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"files-{split}",
        "name": f"files-{split}",
        "description": f"Arrays of Zarr v3 for the {samples:,} samples of '{split}': logits, ids, labels and digests.",
        "containedIn": {"@id": "manifest"},
        "encodingFormat": "application/octet-stream",
        "includes": f"{split}*/**",
    }


def _license(name: str) -> str:
    simple = re.fullmatch(r"[A-Za-z0-9.+-]+", name) and not name.startswith("LicenseRef-")
    return f"https://spdx.org/licenses/{name}" if simple else printable(name)


def _version(version: str) -> str:
    """Return a version in the form that the format recommends: ``2.0.0`` for ``v2``; words stay as they are."""
    counted, number, word = version_order(version)
    return f"{number}.0.0" if counted else word


def _dated(found: Manifest) -> dict[str, str]:
    """Return the date on which the store was made, if it is known."""
    created = found.about.get("created")
    date = _DATE.match(created) if isinstance(created, str) else None
    return {} if date is None else {"datePublished": date.group()}
