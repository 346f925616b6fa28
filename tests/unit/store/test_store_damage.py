"""A damaged store is refused, and never answers with other numbers."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.errors import CorruptStoreError, KdpipeError, StoreError
from kdpipe.store import arrays
from kdpipe.store import manifest as manifests
from kdpipe.store.inspect import summary
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_files
from kdpipe.testing import stores
from kdpipe.testing.stores import contents

FLIPS = 1000


def everything(store: Path, splits: Iterable[str] = ("train", "test")) -> list[Any]:
    """Read all that a store holds."""
    found: list[Any] = []
    for split in splits:
        opened = open_store(store, split=split)
        for view in range(opened.num_views + 1):
            plane = opened.codes(view)
            found += [plane.codes.numpy().tobytes(), plane.row_max.numpy().tobytes()]
        small = (opened.labels, opened.sample_ids, opened.content_digests, opened.probe_rows, opened.probe_hashes)
        found += [array.tobytes() for array in small]
        found += [opened.classes, opened.manifest]
    return found


def test_every_flipped_bit_is_detected(sealed: Path) -> None:
    """Verify reports each one; reading the split that it is in raises, or gives what it gave before."""
    files = contents(sealed)
    places = [(name, byte) for name, content in files.items() for byte in range(len(content))]
    random = np.random.default_rng(11)
    whole = {split: everything(sealed, [split]) for split in ("train", "test")}
    for name, byte in (places[index] for index in random.choice(len(places), FLIPS, replace=False)):
        flipped = bytearray(files[name])
        flipped[byte] ^= 1 << random.integers(8)
        (sealed / name).write_bytes(flipped)
        try:
            detected = bool(verify_files(sealed))
        except KdpipeError:
            detected = True
        assert detected, (name, byte)
        split = name.split("/")[0] if "/" in name else "test"
        with contextlib.suppress(KdpipeError):
            assert everything(sealed, [split]) == whole[split], (name, byte)
        (sealed / name).write_bytes(files[name])
    assert verify_files(sealed) == []


def test_every_flipped_bit_of_a_chunk_is_detected_by_reading(sealed: Path) -> None:
    """Each bit of a shard of codes in turn, read past the digests: checksums, header and index leave no gap."""
    path = sealed / "test/codes/c/0/0/0"
    content = path.read_bytes()
    out = np.empty((open_store(sealed, split="test").chunk_rows, stores.CLASSES), dtype=np.float16)
    for number in (0, 1):
        arrays.read_chunk(path, number, 2, out)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError):  # noqa: PT012
            for number in (0, 1):
                arrays.read_chunk(path, number, 2, out)


@pytest.mark.parametrize("part", ["codes/c", "row_max/c", "labels/c", "sample_id/c", "content_digest/c", "probe_"])
def test_flipped_labels_are_an_error_that_names_the_store(sealed: Path, part: str) -> None:
    """Each data file in turn, in its middle: the checksum of its chunk fails."""
    for path in sealed.glob("train/**/*"):
        if not path.is_file() or path.name == "zarr.json" or f"train/{part}" not in path.as_posix():
            continue
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 16
        path.write_bytes(flipped)
        with pytest.raises(CorruptStoreError, match=r"small\.zarr"):
            everything(sealed)
        assert verify_files(sealed) == [f"{path.relative_to(sealed).as_posix()} does not match its digest"]
        path.write_bytes(content)


def test_the_error_names_the_rows(sealed: Path) -> None:
    path = sealed / "train/codes/c/1/1/0"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"view 1 of 'train', rows 8 to 11: .*checksum.*kdpipe verify"):
        open_store(sealed).plane(1)
    assert open_store(sealed).plane(0).shape == (20, 5)


def swap_shards(store: Path) -> None:
    first, second = store / "train/codes/c/0/0/0", store / "train/codes/c/0/1/0"
    one, other = first.read_bytes(), second.read_bytes()
    assert len(one) == len(other)
    first.write_bytes(other)
    second.write_bytes(one)


def test_swapped_shards_are_found(sealed: Path) -> None:
    """Each is whole and fits its checksums: only the digests of the manifest tell them apart."""
    swap_shards(sealed)
    for read in (lambda store: store.plane(0), lambda store: store.rows(0, 2, 3), lambda store: store.logits([9])):
        with pytest.raises(CorruptStoreError, match=r"train/codes/c/0/[01]/0 does not match its digest"):
            read(open_store(sealed))
    assert verify_files(sealed) == [f"train/codes/c/0/{shard}/0 does not match its digest" for shard in (0, 1)]


def remove(path: Path) -> None:
    path.unlink()


def add(path: Path) -> None:
    path.with_name("stranger").write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("damage", "words"),
    [(remove, "is missing"), (add, "does not belong"), (truncate, "bytes, expected"), (lengthen, "bytes, expected")],
)
@pytest.mark.parametrize(
    "name", ["train/codes/c/0/1/0", "test/row_max/c/0/0", "train/labels/c/0", "train/codes/zarr.json", "test/zarr.json"]
)
def test_missing_extra_and_resized_files(sealed: Path, name: str, damage: Callable[[Path], None], words: str) -> None:
    damage(sealed / name)
    for split in ("train", "test"):
        with pytest.raises(CorruptStoreError, match=f"{words}.*Run: kdpipe verify"):
            open_store(sealed, split=split)
    faults = verify_files(sealed)
    assert faults
    assert words in faults[0]


def test_faults_are_counted(sealed: Path) -> None:
    for path in sealed.glob("train/codes/c/*/*/0"):
        path.unlink()
    with pytest.raises(CorruptStoreError, match=r"train/codes/c/0/0/0 is missing \(6 faults in all\)"):
        open_store(sealed)
    assert len(verify_files(sealed)) == 6


def edited(store: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and write it in its canonical form."""
    root = json.loads((store / "zarr.json").read_bytes())
    edit(root["attributes"]["kdpipe"])
    text = json.dumps(root, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (store / "zarr.json").write_bytes(text.encode())


def test_rewriting_the_manifest_as_it_is_changes_nothing(sealed: Path) -> None:
    before = contents(sealed)
    edited(sealed, lambda manifest: None)
    assert contents(sealed) == before


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "class": lambda manifest: manifest["classes"].__setitem__(1, "cat"),
    "class order": lambda manifest: manifest["classes"].reverse(),
    "about": lambda manifest: manifest["about"].update(made="by me"),
    "teacher": lambda manifest: manifest["fingerprint"]["teacher"].update(name="better"),
    "digest": lambda manifest: manifest.update(digest="0" * 32),
    "checksum": lambda manifest: manifest.update(checksum="0" * 32),
    "no checksum": lambda manifest: manifest.update(checksum=None),
    "file digest": lambda manifest: manifest["files"]["train/labels/c/0"].update(digest="0" * 32),
    "file gone": lambda manifest: manifest["files"].pop("train/labels/c/0"),
    "unknown key": lambda manifest: manifest.update(trust="me"),
    "missing key": lambda manifest: manifest.pop("classes"),
    "format 2": lambda manifest: manifest.update(format=2),
    "text for a number": lambda manifest: manifest["splits"]["train"].update(samples="20"),
    "truth for a number": lambda manifest: manifest["splits"]["train"].update(planes=True),
    "a huge number": lambda manifest: manifest["splits"]["train"].update(samples=10**400),
    "not a number": lambda manifest: manifest.update(teacher_probe=[float("nan")]),
    "infinity": lambda manifest: manifest["about"].update(seconds=float("inf")),
    "text": lambda manifest: manifest.update(splits="all"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_refused(sealed: Path, edit: str) -> None:
    edited(sealed, EDITS[edit])
    for read in (open_store, verify_files, summary):
        with pytest.raises(CorruptStoreError, match=r"zarr\.json"):
            read(sealed)


def test_a_manifest_in_another_form_is_refused(sealed: Path) -> None:
    root = sealed / "zarr.json"
    root.write_text(json.dumps(json.loads(root.read_bytes())))
    with pytest.raises(CorruptStoreError, match="canonical form"):
        open_store(sealed)


def test_a_manifest_with_a_key_given_twice_is_refused(sealed: Path) -> None:
    root = sealed / "zarr.json"
    root.write_text(root.read_text().replace('"format": 1,', '"format": 1,\n   "format": 1,'))
    with pytest.raises(CorruptStoreError, match="a key is given twice"):
        open_store(sealed)


@pytest.mark.parametrize("depth", [100, 200, 300, 500, 900, 5000, 200_000])
def test_deep_nesting_is_refused(sealed: Path, depth: int) -> None:
    text = (sealed / "zarr.json").read_text()
    (sealed / "zarr.json").write_text(text.replace('"for a test"', "[" * depth + "]" * depth))
    with pytest.raises(KdpipeError):
        open_store(sealed)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b'"x"', b'{"attributes": null}', b"\xff\xfe{}", b"\0" * 50, b"1" * 9999]
)
def test_what_is_no_manifest_is_refused(sealed: Path, content: bytes) -> None:
    (sealed / "zarr.json").write_bytes(content)
    for read in (open_store, verify_files, summary):
        with pytest.raises(
            CorruptStoreError, match=r"zarr\.json (holds no manifest of kdpipe|is damaged: it is not JSON)"
        ):
            read(sealed)


def test_a_huge_manifest_is_not_read(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(CorruptStoreError, match="larger than 100 bytes"):
        open_store(sealed)


def signed(store: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as somebody could who computes its digests anew."""
    found = manifests.read(store).to_json()
    edit(found)
    covered = ("format", "fingerprint", "classes", "encoding", "splits", "features", "signals", "files", "planes")
    found["digest"] = manifests.digest_json({key: found[key] for key in covered if key in found})
    del found["checksum"]
    found["checksum"] = manifests.digest_json(found)
    root = {"zarr_format": 3, "node_type": "group", "attributes": {"kdpipe": found}}
    (store / "zarr.json").write_text(json.dumps(root, indent=1, sort_keys=True) + "\n")


SIGNED: dict[str, Callable[[dict[str, Any]], object]] = {
    "more samples": lambda manifest: manifest["splits"]["train"].update(samples=2**39),
    "fewer samples": lambda manifest: manifest["splits"]["train"].update(samples=19),
    "more planes": lambda manifest: manifest["splits"]["train"].update(planes=3),
    "other chunks": lambda manifest: manifest["splits"]["train"].update(chunk_rows=8),
    "other shards": lambda manifest: manifest["splits"]["train"].update(shard_rows=16),
    "more classes": lambda manifest: manifest["classes"].append("another"),
    "unknown encoding": lambda manifest: manifest["fingerprint"].update(encoding="magic"),
    "a file elsewhere": lambda manifest: manifest["files"].update({"../a": {"size": 0, "digest": "0" * 32}}),
}


def test_signing_anew_is_believed(sealed: Path) -> None:
    whole = everything(sealed)
    signed(sealed, lambda manifest: None)
    assert everything(sealed) == whole
    signed(sealed, lambda manifest: manifest["about"].update(made="by me"))
    assert open_store(sealed).manifest.about["made"] == "by me"


@pytest.mark.parametrize("edit", SIGNED)
def test_a_manifest_that_does_not_fit_its_arrays_is_refused(sealed: Path, edit: str) -> None:
    signed(sealed, SIGNED[edit])
    with pytest.raises(KdpipeError):
        open_store(sealed)


def test_a_split_that_is_not_there_is_refused(sealed: Path) -> None:
    signed(sealed, lambda manifest: manifest["splits"].update(val=manifest["splits"]["test"]))
    with pytest.raises(KdpipeError):
        open_store(sealed, split="val")


@pytest.mark.parametrize("edit", ["more samples of test", "no train", "no splits"])
def test_summary_of_a_store_that_promises_too_much(sealed: Path, edit: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        if edit == "no train":
            del manifest["splits"]["train"]
        elif edit == "no splits":
            manifest["splits"] = {}
        else:
            manifest["splits"]["test"].update(samples=2**39, shard_rows=1, chunk_rows=1)

    signed(sealed, change)
    tracemalloc.start()
    try:
        summary(sealed)
    except StoreError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 16 * 1024**2


def rewritten(store: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the metadata of an array and sign the manifest anew."""
    path = store / name
    metadata = json.loads(path.read_bytes())
    edit(metadata)
    path.write_text(json.dumps(metadata))
    file = {"size": path.stat().st_size, "digest": manifests.digest_file(path)}
    signed(store, lambda manifest: manifest["files"].update({name: file}))


def sharded(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    codecs: list[dict[str, Any]] = metadata["codecs"][0]["configuration"]["codecs"]
    return codecs


METADATA: dict[str, Callable[[dict[str, Any]], object]] = {
    "outer compression": lambda metadata: metadata["codecs"].append(
        {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    ),
    "inner transpose": lambda metadata: sharded(metadata).insert(
        0, {"name": "transpose", "configuration": {"order": [0, 2, 1]}}
    ),
    "big endian": lambda metadata: sharded(metadata)[0]["configuration"].update(endian="big"),
    "no checksum": lambda metadata: sharded(metadata).pop(),
    "index without checksum": lambda metadata: metadata["codecs"][0]["configuration"]["index_codecs"].pop(),
    "another type": lambda metadata: metadata.update(data_type="float32"),
    "other paths": lambda metadata: metadata["chunk_key_encoding"]["configuration"].update(separator="."),
    "a group": lambda metadata: metadata.update(node_type="group"),
    "unknown codec": lambda metadata: metadata["codecs"].append({"name": "magic"}),
    "no codecs": lambda metadata: metadata.pop("codecs"),
}


@pytest.mark.parametrize("edit", METADATA)
def test_metadata_of_another_kind_is_refused(sealed: Path, edit: str) -> None:
    rewritten(sealed, "train/codes/zarr.json", METADATA[edit])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KdpipeError):
            everything(sealed)


@pytest.mark.parametrize("probes", [10**6, 2**40])
def test_side_arrays_do_not_grow_without_limit(sealed: Path, probes: int) -> None:
    def grow(metadata: dict[str, Any]) -> None:
        metadata["shape"] = [probes]
        metadata["chunk_grid"]["configuration"]["chunk_shape"] = [probes]

    rewritten(sealed, "train/probe_row/zarr.json", grow)
    with pytest.raises(KdpipeError):
        open_store(sealed)
