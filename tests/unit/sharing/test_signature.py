"""Signatures of manifests by real keys, and what is remembered of shared places."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kdpipe.errors import ParamsError, StoreError, UntrustedStoreError
from kdpipe.sharing import remembered, signature
from kdpipe.sharing.catalog import Catalog
from tests.unit.sharing.test_catalog import row

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="there is no ssh-keygen")

CHECKSUM, OTHER = "0123456789abcdef" * 2, "fedcba9876543210" * 2
PLACE = "https://host/stores"


@pytest.fixture(autouse=True)
def _own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_CONFIG", str(tmp_path / "config"))


def key(folder: Path, name: str, kind: str = "ed25519") -> tuple[Path, str]:
    """Make a key, and return its path and fingerprint."""
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", name, "-f", path], check=True)
    listed = subprocess.run(["ssh-keygen", "-l", "-f", path], check=True, capture_output=True, text=True).stdout
    return path, listed.split()[1]


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_the_signer_is_the_key_that_signed(tmp_path: Path, kind: str) -> None:
    path, fingerprint = key(tmp_path, "a", kind)
    signed = signature.sign(CHECKSUM, path)
    assert signed.startswith(b"-----BEGIN SSH SIGNATURE-----")
    assert signature.signer_of(CHECKSUM, signed) == fingerprint


def test_another_manifest_or_a_damaged_signature_is_refused(tmp_path: Path) -> None:
    path, _ = key(tmp_path, "a")
    signed = signature.sign(CHECKSUM, path)
    for checksum, content in (
        (OTHER, signed),
        (CHECKSUM, signed[:60] + signed[70:]),
        (CHECKSUM, b"?"),
        (CHECKSUM, b""),
    ):
        with pytest.raises(UntrustedStoreError, match="no signature of this manifest"):
            signature.signer_of(checksum, content)
    with pytest.raises(UntrustedStoreError, match="larger than"):
        signature.signer_of(CHECKSUM, signed + b" " * 20_000)


def test_a_signature_for_another_purpose_is_refused(tmp_path: Path) -> None:
    path, _ = key(tmp_path, "a")
    command = ["ssh-keygen", "-Y", "sign", "-n", "git", "-f", str(path)]
    signed = subprocess.run(command, input=CHECKSUM.encode(), capture_output=True, check=True).stdout
    with pytest.raises(UntrustedStoreError):
        signature.signer_of(CHECKSUM, signed)


def test_the_first_signer_is_pinned_and_a_change_refused(tmp_path: Path) -> None:
    (mine, fingerprint), (other, _) = key(tmp_path, "a"), key(tmp_path, "b")
    assert signature.check(CHECKSUM, None, place=PLACE, name="cars") is None
    for checksum in (CHECKSUM, OTHER):
        signed = signature.sign(checksum, mine)
        assert signature.check(checksum, signed, place=PLACE, name="cars") == fingerprint
    with pytest.raises(UntrustedStoreError, match=re.escape(f"was signed by {fingerprint} when it was seen first")):
        signature.check(CHECKSUM, signature.sign(CHECKSUM, other), place=PLACE, name="cars")
    with pytest.raises(UntrustedStoreError, match="is not signed, and was signed by"):
        signature.check(CHECKSUM, None, place=PLACE, name="cars")
    for place, name in ((PLACE, "flowers"), ("https://elsewhere", "cars")):
        assert signature.check(CHECKSUM, signature.sign(CHECKSUM, other), place=place, name=name)
    kept = json.loads(remembered.file_of(PLACE).read_text())
    del kept["signers"]["cars"]  # as the refusal tells
    remembered.file_of(PLACE).write_text(json.dumps(kept))
    assert signature.check(CHECKSUM, signature.sign(CHECKSUM, other), place=PLACE, name="cars")


def test_a_signer_can_be_asked_for_by_fingerprint_or_by_name(tmp_path: Path) -> None:
    (mine, fingerprint), (other, another) = key(tmp_path, "a"), key(tmp_path, "b")
    signed = signature.sign(CHECKSUM, mine)
    assert signature.check(CHECKSUM, signed, place=PLACE, name="cars", signer=fingerprint) == fingerprint
    with pytest.raises(
        UntrustedStoreError, match=re.escape(f"is signed by {fingerprint}, and --signer asks for {another}")
    ):
        signature.check(CHECKSUM, signed, place=PLACE, name="cars", signer=another)
    with pytest.raises(UntrustedStoreError, match="is not signed"):
        signature.check(CHECKSUM, None, place="https://new", name="cars", signer=fingerprint)
    allowed = tmp_path / "allowed_signers"
    allowed.write_text(
        f"a@b.example {mine.with_suffix('.pub').read_text()}c@d.example {other.with_suffix('.pub').read_text()}"
    )
    named = {"place": PLACE, "name": "cars", "allowed_signers": allowed}
    assert signature.check(CHECKSUM, signed, signer="a@b.example", **named) == fingerprint  # type: ignore[arg-type]
    with pytest.raises(UntrustedStoreError, match=r"not a key of c@d\.example"):
        signature.check(CHECKSUM, signed, signer="c@d.example", **named)  # type: ignore[arg-type]
    with pytest.raises(ParamsError, match="Give the key's fingerprint"):
        signature.check(CHECKSUM, signed, place=PLACE, name="cars", signer="a", allowed_signers=tmp_path / "none")


def test_a_missing_or_useless_key_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="there is no such key"):
        signature.sign(CHECKSUM, tmp_path / "none")
    (tmp_path / "bad").write_text("?")
    with pytest.raises(ParamsError, match="cannot sign") as refused:
        signature.sign(CHECKSUM, tmp_path / "bad")
    assert "\n" not in str(refused.value)


def test_an_older_catalog_and_a_changed_version_are_noticed(tmp_path: Path) -> None:
    first, second = row(tmp_path, "v1"), row(tmp_path, "v2", views=2)
    old, new = Catalog().with_row(first), Catalog().with_row(first).with_row(second)
    assert remembered.notice(PLACE, old) == []
    assert remembered.notice(PLACE, new) == []
    (line,) = remembered.notice(PLACE, old)
    assert "lacks flowers@v2, seen there before" in line
    assert remembered.notice("https://elsewhere", old) == []
    swapped = second.model_copy(update={"version": "v1"})
    with pytest.raises(UntrustedStoreError, match="flowers@v1 has another manifest than when it was seen first"):
        remembered.notice(PLACE, Catalog().with_row(swapped))
    remembered.file_of(PLACE).unlink()
    assert remembered.notice(PLACE, old) == []


def test_what_is_remembered_is_the_users_own_and_damage_is_told(tmp_path: Path) -> None:
    remembered.pin(PLACE, "cars", "SHA256:x")
    path = remembered.file_of(PLACE)
    assert path.is_relative_to(tmp_path / "config")
    assert path.parent.stat().st_mode & 0o077 == 0
    path.write_text("{")
    with pytest.raises(StoreError, match="not JSON"):
        remembered.refuse_another_signer(PLACE, "cars", None)
