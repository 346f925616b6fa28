"""The manifest: the description of a store, in the attributes of its root group under ``kdpipe``.

It is strict JSON: parsing and writing it again gives the same bytes, unknown keys are refused, and a checksum covers
all of a sealed store's manifest.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdpipe import durable
from kdpipe.encoding.fidelity import TEMPERATURES, Fidelity
from kdpipe.errors import CorruptStoreError, StoreNotFoundError
from kdpipe.reading import hashed, parse_json, read_bytes, validated
from kdpipe.store import partial, tree
from kdpipe.store.partial import Absent, Supply
from kdpipe.store.sections import (
    MAX_GROUPS,
    PENULTIMATE,
    Choice,
    DerivedFrom,
    Digest,
    File,
    FileName,
    Fingerprint,
    Modest,
    Rendering,
    RowOrder,
    Shape,
    Signals,
    Split,
)
from kdpipe.store.settings import Provenance

MAX_MANIFEST_BYTES = 64 * 1024**2

_DIGESTED = ("format", "fingerprint", "classes", "encoding", "splits", "features", "signals", "files", "planes")
"""The parts that a store's digest covers: results and ingredients, without times, host and measured figures."""
_ABSENT_WHEN_EMPTY = (
    *("features", "signals", "provenance", "choice", "fidelity", "rendering", "order", "unread", "derived_from"),
)


class Manifest(BaseModel):
    """The manifest of a store."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    state: Literal["building", "sealed"]
    fingerprint: Fingerprint
    classes: tuple[Annotated[str, Field(max_length=4096)], ...] = Field(min_length=1, max_length=2**20, strict=False)
    encoding: Modest
    splits: dict[Annotated[str, Field(pattern=rf"^{tree.SPLIT}$")], Split] = Field(max_length=MAX_GROUPS)
    """Splits, and under ``train.1`` and so on the further segments of a store that has grown."""
    dataset: str = Field(max_length=4096)
    """The dataset's name, for people; its identity is in the fingerprint."""
    teacher_probe: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(max_length=4096, strict=False)
    """The teacher's first logits for a fixed input."""
    features: int | None = Field(None, gt=0, lt=2**20)
    """Length of the penultimate features beside the logits."""
    signals: Signals = {}
    """Shapes of the other signals beside the logits, by name; see ``kdpipe.models.signals``."""
    provenance: Provenance = Provenance()
    choice: Choice | None = None
    """The budget and table that the encoding was chosen by."""
    fidelity: dict[str, Modest] = {}
    """Loss of encoding over all rows of each sealed split; see ``kdpipe.encoding.fidelity``."""
    rendering: Rendering | None = None
    """Decoder and trial of the rendered pixels."""
    order: RowOrder | None = None
    """Order of the rows of each segment; ``None`` for that of the dataset."""
    unread: bool = False
    """Whether a store under construction learns the content of its images in the pass; its dataset's digests are then
    those of the names alone."""
    derived_from: DerivedFrom | None = None
    """The store that this one was derived from by withholding a part; not part of the digest."""
    files: dict[FileName, File] = {}
    """Every file but the root ``zarr.json``, once sealed."""
    planes: Annotated[dict[Annotated[str, Field(max_length=128)], Digest], Field(max_length=2**21)] = {}
    """Digest of each plane's files, by ``split/view``, once sealed; kept while views are added."""
    digest: Digest | None = None
    """Digest over fingerprint, decoding and files: equal work, equal digest."""
    about: Modest = {}
    """Times, versions, host and measured figures; not part of the digest."""
    checksum: Digest | None = None
    """Digest over everything above, once sealed."""

    @model_validator(mode="after")
    def _has_train(self) -> Self:
        withheld = self.derived_from is not None and "splits" in self.derived_from.withheld
        if "train" not in self.splits and not self.is_part and not withheld:
            raise ValueError("there is no split 'train'")
        return self

    @model_validator(mode="after")
    def _sealed_is_read(self) -> Self:
        if self.unread and self.state == "sealed":
            raise ValueError("it is sealed, and does not have the content of its images")
        return self

    @model_validator(mode="after")
    def _segments_follow(self) -> Self:
        for split in self.names:
            groups = self.segments(split)
            numbers = [tree.segment_of(group)[1] for group in groups]
            if numbers != list(range(numbers[0] if self.is_part else 0, numbers[0] + len(numbers))):
                raise ValueError(f"the segments of '{split}' are {', '.join(groups)}: some are missing")
            if len({self.splits[group].planes for group in groups}) > 1:
                raise ValueError(f"the segments of '{split}' have different numbers of planes")
            earlier = 0
            for group in groups:
                cut = self.splits[group]
                if cut.replaces > cut.samples or (cut.replaces > earlier and not self.is_part):
                    raise ValueError(f"'{group}' replaces {cut.replaces} rows, more than there are")
                earlier += cut.samples - cut.replaces
        return self

    @model_validator(mode="after")
    def _classes_are_mapped(self) -> Self:
        for each in self.fingerprint.teacher.class_maps:
            if len(each) != len(self.classes):
                raise ValueError(f"a class map has {len(each)} classes, there are {len(self.classes)}")
        return self

    @model_validator(mode="after")
    def _figures_fit(self) -> Self:
        for split, value in self.fidelity.items():
            if split not in self.splits:
                raise ValueError(f"fidelity is of a split '{split}', which there is not")
            try:
                measured, cut = Fidelity.from_json(value), self.splits[split]
            except CorruptStoreError as error:
                raise ValueError(f"'{split}': {error}") from None
            if measured.temperatures != self.temperatures or not 0 < measured.rows <= cut.samples * cut.planes:
                raise ValueError(f"fidelity of '{split}' is of other rows or temperatures than the store's")
        for split, hashes in ({} if self.rendering is None else self.rendering.sources).items():
            if split not in self.splits or len(hashes) != self.splits[split].probes:
                raise ValueError(f"rendering has {len(hashes)} images of '{split}', not one for each probe")
        return self

    @property
    def is_part(self) -> bool:
        """Whether it describes further segments alone, which are still to be put into their store."""
        return bool(self.splits) and all("." in group for group in self.splits)

    @property
    def hides_names(self) -> bool:
        """Whether ids are keyed by a secret of the store's publisher, so that no image can be matched with a row."""
        return self.derived_from is not None and "names" in self.derived_from.withheld

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(dict.fromkeys(tree.segment_of(group)[0] for group in self.splits))

    def segments(self, split: str) -> tuple[str, ...]:
        """Return the groups of a split's segments, the oldest first."""
        numbers = sorted(number for name, number in map(tree.segment_of, self.splits) if name == split)
        return tuple(tree.group_name(split, number) for number in numbers)

    def samples(self, split: str) -> int:
        """Return the number of samples of a split; each counts once, though several segments may have it."""
        cuts = [self.splits[group] for group in self.segments(split)]
        return sum(cut.samples - cut.replaces for cut in cuts)

    def fidelity_of(self, split: str) -> Fidelity | None:
        """Return the loss of encoding over all rows of a split; ``None`` where it is not known of all segments."""
        total = None
        for group in self.segments(split):
            if group not in self.fidelity:
                return None
            measured = Fidelity.from_json(self.fidelity[group])
            total = measured if total is None else total + measured
        return total

    @property
    def kept(self) -> dict[str, Shape]:
        """Shapes of all signals beside the logits, by name: the penultimate features first, the others sorted."""
        first = {} if self.features is None else {PENULTIMATE: (self.features,)}
        return first | dict(sorted(self.signals.items()))

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures at which fidelity is measured: the usual ones and those of the budget."""
        budget = () if self.choice is None else self.choice.temperatures
        return tuple(sorted({*TEMPERATURES, *budget}))

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values, without optional entries that are empty."""
        whole = self.model_dump(mode="json")
        whole["provenance"] = self.provenance.model_dump(exclude_none=True)
        if not self.fingerprint.recipe.thresholds:
            del whole["fingerprint"]["recipe"]["thresholds"]
        if not self.fingerprint.teacher.class_maps:
            del whole["fingerprint"]["teacher"]["class_maps"]
        if self.fingerprint.memory_format is None:
            del whole["fingerprint"]["memory_format"]
        for group, cut in self.splits.items():
            if not cut.replaces:
                del whole["splits"][group]["replaces"]
            if not cut.pixel_digests:
                del whole["splits"][group]["pixel_digests"]
        for key in _ABSENT_WHEN_EMPTY:
            if not whole[key]:
                del whole[key]
        return whole

    def content_digest(self) -> Digest:
        """Compute ``digest`` from the parts that it covers."""
        return digest_json({key: value for key, value in self.to_json().items() if key in _DIGESTED})

    def own_checksum(self) -> Digest:
        """Compute ``checksum`` from all other fields."""
        return digest_json({key: value for key, value in self.to_json().items() if key != "checksum"})

    def sealed(self) -> Manifest:
        """Return the manifest of the sealed store, with digest and checksum."""
        digested = self.model_copy(update={"state": "sealed", "digest": self.content_digest()})
        return digested.model_copy(update={"checksum": digested.own_checksum()})


def digest_json(value: Any) -> Digest:
    """Digest the canonical form of a JSON value: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return digest_bytes(text.encode())


def digest_bytes(content: bytes) -> Digest:
    """Return the 128-bit BLAKE3 digest of some bytes as hexadecimal digits."""
    return blake3(content).hexdigest(length=16)


def digest_file(path: Path) -> Digest:
    """Return the 128-bit BLAKE3 digest of a file's content as hexadecimal digits."""
    return hashed(path).hexdigest(length=16)


def write(store: Path, manifest: Manifest) -> None:
    """Write ``manifest`` to the store's root ``zarr.json``, atomically.

    The temporary file stands beside the store, so that a kill leaves no foreign file in it.
    """
    durable.write_bytes(store / "zarr.json", document(manifest), temporary=store.with_name(f".{store.name}.manifest"))


def read(store: Path) -> Manifest:
    """Read and check the manifest of the store at ``store``.

    Raises:
        StoreNotFoundError: there is no Zarr group of format 3 with a kdpipe manifest.
        CorruptStoreError: it is not in canonical form, has unknown or missing keys, or its checksum is wrong.
    """
    root = store / "zarr.json"
    if not os.path.lexists(root):
        older = (store / ".zgroup").exists() or (store / ".zarray").exists()
        what = "is a Zarr v2 store; kdpipe reads format 3 only" if older else "holds no logit store"
        raise StoreNotFoundError(f"{store} {what}. Make one with: kdpipe cache-teacher --out {shlex.quote(str(store))}")
    return parse(read_bytes(root, limit=MAX_MANIFEST_BYTES, error=CorruptStoreError), root=root)


def parse(content: bytes, *, root: Path) -> Manifest:
    """Return the manifest of the bytes of a root ``zarr.json``; see ``read`` for errors, which name ``root``."""
    document = parse_json(content, of=root, error=CorruptStoreError)
    try:
        described = document["attributes"]["kdpipe"]
    except (KeyError, TypeError):
        raise CorruptStoreError(f"{root} holds no manifest of kdpipe: damaged, or made by something else.") from None
    manifest = validated(described, Manifest, of=root, error=CorruptStoreError)
    if not _canonical(manifest, content):
        raise CorruptStoreError(f"{root} is not in canonical form: it was edited or damaged.")
    if manifest.state == "sealed" and (
        manifest.checksum != manifest.own_checksum() or manifest.digest != manifest.content_digest()
    ):
        raise CorruptStoreError(f"{root} does not match its checksum: the manifest was edited or damaged.")
    return manifest


def _canonical(manifest: Manifest, content: bytes) -> bool:
    try:
        return document(manifest) == content
    except ValueError:  # a number beyond float64 was read as infinite
        return False


def document(manifest: Manifest) -> bytes:
    """Return the content of the root ``zarr.json``."""
    node = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"kdpipe": manifest.to_json()},
    }
    return (json.dumps(node, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def missing_or_resized(store: Path, found: Manifest) -> dict[str, list[str]]:
    """Compare names and sizes of a sealed store's files with its manifest.

    The next segment of each split may be there already: it is put in its place just before the manifest lists it.
    A partial store may lack files that its list does not name.

    Returns one line per fault, by their kind: what ``and 12 more ...`` calls them.
    """
    coming = {tree.group_name(split, len(found.segments(split))) for split in found.names} - found.splits.keys()
    entries = [each for each in tree.walk(store) if not (each.own and each.name.split("/")[0] in coming)]
    present = {each.name: each.size for each in entries if each.is_file}
    strange = tree.strangers(entries, found.files.keys() | {"zarr.json", tree.PRESENT, *tree.COMPANIONS})
    here = partial.read(store, found.checksum)
    missing = [name for name in sorted(found.files.keys() - present.keys()) if here is None or here.names(name)]
    return {
        "files are missing": [f"{name} is missing" for name in missing],
        "do not belong to the store": [f"{name} does not belong to the store" for name in strange],
        "files have other sizes": [
            f"{name} has {present[name]} bytes, expected {file.size}"
            for name, file in sorted(found.files.items())
            if name in present and present[name] != file.size
        ],
    }


def absent(store: Path, found: Manifest, *, supply: Supply | None = None) -> Absent:
    """Return the files of a store that are not here, as they need not be; ``supply`` fetches them."""
    here = partial.read(store, found.checksum)
    files = () if here is None else found.files.keys() - file_sizes(store).keys()
    return Absent(store, files, source=None if here is None else here.source, supply=supply)


def file_sizes(store: Path) -> dict[str, int]:
    """Return the size of every regular file by its path in the store; links are not followed."""
    return {each.name: each.size for each in tree.walk(store) if each.is_file}
