"""Command `publish`: a version of a store at a shared place."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdpipe import directories, durable
from kdpipe.errors import ParamsError, StoreError, StoreLockedError, UntrustedStoreError
from kdpipe.reading import read_bytes
from kdpipe.sharing import remembered, signature
from kdpipe.sharing.address import Address
from kdpipe.sharing.catalog import Row
from kdpipe.sharing.licensing import spdx
from kdpipe.sharing.publishing import Moved, listed, publish, refuse_undescribed
from kdpipe.sharing.remote import Folder, connect
from kdpipe.sharing.settings import Withholding
from kdpipe.sharing.withholding import Derived, derive
from kdpipe.stages.console import progress, say, show
from kdpipe.stages.describe import changes, with_changes
from kdpipe.stages.flags import as_sentence, in_words
from kdpipe.store import manifest, tree
from kdpipe.store.manifest import Manifest

_KEY = re.compile(rb"[0-9a-f]{64}\s*")


def publish_store(
    store: Path,
    place: str,
    *,
    said: Mapping[str, str | None],
    withheld: Mapping[str, Any],
    key: Path | None = None,
    names_key: Path | None = None,
) -> None:
    """Publish the store at ``store`` as ``place``, ``URL/NAME@VERSION``, and print what was moved.

    ``said`` are statements of its makers in place of those of the store, ``withheld`` settings of ``Withholding``,
    ``key`` an SSH key to sign with, and ``names_key`` the file of the secret that hidden ids are keyed by.

    Raises:
        ParamsError: the address or a setting is malformed, or there is neither license nor contact.
        StoreError: the version is there already with other content, or the store is damaged.
        RemoteError: the place cannot be written.
    """
    address = Address.parse(place)
    asked = _asked(withheld)
    if names_key is not None and not asked.hide_names:
        raise ParamsError("--names-key is for --hide-names: give both, or names and digests are published.")
    if withheld.get("max_kl") is not None and asked.max_temperature is None:
        raise ParamsError("--max-kl is for the encoding of --max-temperature: give both.")
    found = manifest.read(store)
    provenance = with_changes(found.provenance, changes(said))
    refuse_undescribed(found.model_copy(update={"provenance": provenance}), store=store)
    assert provenance.license is not None
    provenance = provenance.model_copy(update={"license": spdx(provenance.license)})
    if key is not None and not key.expanduser().is_file():
        raise ParamsError(f"--sign {key}: there is no such key. Make one with: ssh-keygen -t ed25519 -f {key}")
    folder = connect(address.url, read_only=False)
    there = listed(folder).find(address.name, address.version)
    _refuse_another(there, found, where=folder.describe(address.folder))
    work = store.with_name(f".{store.name}.publish-{_work_name(found, asked, names_key)}")
    with directories.locked(work):
        secret = _secret(names_key) if asked.hide_names else None
        derived = derive(store, work / "derived.zarr", asked, secret=secret, progress=progress)
        if provenance != derived.manifest.provenance:
            derived = Derived(derived.manifest.model_copy(update={"provenance": provenance}).sealed(), derived.files)
        _report_losses(derived.manifest)
        try:
            signed = _sign(derived.manifest, key, folder, address)
            row, moved = publish(derived, store, address, folder, signed=signed, say=say, progress=progress)
        except StoreLockedError:
            raise
        except StoreError:  # which the same command would not get over
            _clear(work)
            raise
        _clear(work)
    if there is not None:
        say(f"{folder.describe(address.folder)} is published already: checksum {row.checksum}.")
    _report(folder, address, row, moved)


def _refuse_another(row: Row | None, found: Manifest, *, where: str) -> None:
    """Refuse a version of another store, before a part of this one is derived for it."""
    if row is not None and found.digest not in (row.digest, row.derived_from):
        raise StoreError(
            f"{where} is published already, with another manifest. A version never changes: publish another."
        )


def _asked(withheld: Mapping[str, Any]) -> Withholding:
    try:
        return Withholding.of({name: value for name, value in withheld.items() if value is not None})
    except ValidationError as error:
        raise ParamsError(as_sentence(in_words(error, Withholding))) from None


def _work_name(found: Manifest, asked: Withholding, names_key: Path | None) -> str:
    """Return a name for what a publication leaves when it is killed: of the store and of what is withheld."""
    return manifest.digest_json([found.digest, asked.dump(), None if names_key is None else str(names_key)])[:12]


def _secret(path: Path | None) -> bytes:
    """Return the secret that ids are keyed by; it is made if the file is missing.

    Raises:
        ParamsError: the file holds something else.
    """
    file = remembered.config_directory() / "names.key" if path is None else path
    if not os.path.lexists(file):
        with durable.writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(f"{secrets.token_hex(32)}\n")
            durable.fsync_file(file)
        say(f"The ids are keyed by a new secret in {file}. Keep it: without it, nobody can match rows with images.")
    content = read_bytes(file, limit=1024, error=ParamsError)
    if _KEY.fullmatch(content) is None:
        raise ParamsError(f"{file} holds no secret of 64 hexadecimal digits. Pass --names-key another file.")
    return bytes.fromhex(content.decode().strip())


def _sign(found: Manifest, key: Path | None, folder: Folder, address: Address) -> bytes | None:
    """Return the signature, if there is to be one; refuse another signer than that of earlier versions."""
    place = remembered.place_of(folder)
    if key is None:
        try:
            remembered.refuse_another_signer(place, address.name, None)
        except UntrustedStoreError as error:
            raise UntrustedStoreError(f"{error} If you are its publisher, pass --sign KEY.") from None
        return None
    assert found.checksum is not None
    signed = signature.sign(found.checksum, key)
    remembered.pin(place, address.name, signature.signer_of(found.checksum, signed))
    return signed


def _clear(work: Path) -> None:
    """Remove what was made for a publication that is complete."""
    if work.is_dir():
        if (work / "derived.zarr").exists():
            tree.remove(work / "derived.zarr")
        shutil.rmtree(work, ignore_errors=True)


def _report_losses(found: Manifest) -> None:
    origin = found.derived_from
    if origin is None:
        return
    say(f"Withheld: {', '.join(origin.withheld)}.")
    if origin.kl:
        lost = ", ".join(f"{mean:.1e} at T={t}" for t, mean in origin.kl.items())
        say(f"{found.fingerprint.encoding} instead of {origin.encoding}: mean KL against the store {lost}.")


def _report(folder: Folder, address: Address, row: Row, moved: Moved) -> None:
    ways = {"uploaded": moved.uploaded, "copied from the last version": moved.copied, "there already": moved.there}
    shown = ", ".join(f"{size / 1e6:,.2f} MB {way}" for way, size in ways.items() if size) or "nothing to move"
    show(f"{folder.describe()}/{row.address}: {shown}.")
    signed = "not signed" if row.signer is None else f"signed by {row.signer}"
    show(f"digest {row.digest}, checksum {row.checksum}, {signed}.")
    data = "" if "names" in row.withheld else " --data DATA"
    say(f"Next: kdpipe pull {shlex.quote(str(address))}{data}")
