"""SSH signatures of manifests, by ``ssh-keygen``: with the keys that people have for git.

The signed text is the manifest's checksum, which covers everything about a store; the namespace is ``kdpipe``. A signer
is known by the fingerprint of the key. The first one that is seen of a store at a place is remembered.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from kdpipe.errors import ParamsError, UntrustedStoreError
from kdpipe.printable import printable
from kdpipe.reading import read_bytes
from kdpipe.sharing import remembered

NAMESPACE = "kdpipe"
FILE = "manifest.sig"
MAX_SIGNATURE_BYTES = 16_384

_SECONDS = 60
_GOOD = re.compile(r'Good "kdpipe" signature (?:for .* )?with \S+ key (SHA256:[A-Za-z0-9+/=]{20,64})')


def sign(checksum: str, key: Path) -> bytes:
    """Return the signature over a manifest's checksum; a key with a passphrase asks for it, or the agent has it.

    Raises:
        ParamsError: there is no such key, or ``ssh-keygen`` cannot use it.
    """
    if not key.expanduser().is_file():
        raise ParamsError(f"--sign {key}: there is no such key. Make one with: ssh-keygen -t ed25519 -f {key}")
    command = ["-Y", "sign", "-n", NAMESPACE, "-f", str(key.expanduser())]
    done = _ssh_keygen(command, content=checksum, seconds=None)
    if done.returncode:
        raise ParamsError(f"--sign {key}: ssh-keygen cannot sign with it ({_reason(done)}).")
    return done.stdout.encode()


def signer_of(checksum: str, signature: bytes) -> str:
    """Return the fingerprint of the key that signed a manifest's checksum, such as ``SHA256:...``.

    Raises:
        UntrustedStoreError: the signature is damaged, or of another manifest.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = _written(signature, Path(folder))
        done = _ssh_keygen(["-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(file)], content=checksum)
    good = _GOOD.search(done.stdout)
    if done.returncode or good is None:
        raise UntrustedStoreError(
            f"{FILE} is no signature of this manifest ({_reason(done)}): the manifest was changed after it was signed, "
            "or the signature is damaged. Ask the publisher."
        )
    return good[1]


def signer_in(store: Path, checksum: str) -> str | None:
    """Return the fingerprint of the key that signed the manifest of a store on this machine, ``None`` if unsigned.

    Raises:
        UntrustedStoreError: its signature is damaged, or of another manifest.
    """
    file = store / FILE
    if not os.path.lexists(file):
        return None
    return signer_of(checksum, read_bytes(file, limit=MAX_SIGNATURE_BYTES, error=UntrustedStoreError))


def check(
    checksum: str,
    signature: bytes | None,
    *,
    place: str,
    name: str,
    signer: str | None = None,
    allowed_signers: Path | None = None,
) -> str | None:
    """Check the signature of the store ``name`` at ``place``; return its key's fingerprint, ``None`` if unsigned.

    The first signer that is seen is remembered, and another one is refused afterwards. ``signer`` is the fingerprint of
    the key that it must be, or a name in the file ``allowed_signers`` (by default that of git's configuration).

    Raises:
        UntrustedStoreError: the signature is wrong, or of another signer.
        ParamsError: ``signer`` is a name, and there is no such file.
    """
    if signature is None:
        if signer is not None:
            raise UntrustedStoreError(f"{place}/{name} is not signed, and --signer asks for {printable(signer)}.")
        remembered.refuse_another_signer(place, name, None)
        return None
    found = signer_of(checksum, signature)
    if signer is not None:
        _refuse_others(checksum, signature, found, signer, allowed_signers, of=f"{place}/{name}")
    remembered.pin(place, name, found)
    return found


def _refuse_others(
    checksum: str, signature: bytes, found: str, signer: str, allowed_signers: Path | None, *, of: str
) -> None:
    if signer.startswith("SHA256:"):
        if signer != found:
            raise UntrustedStoreError(f"{of} is signed by {found}, and --signer asks for {printable(signer)}.")
        return
    file = allowed_signers or _git_allowed_signers()
    if file is None or not file.is_file():
        where = "git config gpg.ssh.allowedSignersFile names none" if file is None else f"{file} does not exist"
        raise ParamsError(
            f"--signer {signer} is a name in a file of allowed signers, and {where}. Give the key's fingerprint "
            f"instead: this store is signed by {found}."
        )
    with tempfile.TemporaryDirectory() as folder:
        written = _written(signature, Path(folder))
        command = ["-Y", "verify", "-n", NAMESPACE, "-f", str(file), "-I", signer, "-s", str(written)]
        done = _ssh_keygen(command, content=checksum)
    if done.returncode or _GOOD.search(done.stdout) is None:
        raise UntrustedStoreError(
            f"{of} is signed by {found}, which is not a key of {printable(signer)} in {file} ({_reason(done)})."
        )


def _git_allowed_signers() -> Path | None:
    """Return the file that git compares signers with, ``None`` if it is not configured."""
    if shutil.which("git") is None:
        return None
    command = ["git", "config", "--type=path", "gpg.ssh.allowedSignersFile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    return Path(done.stdout.strip()) if done.returncode == 0 and done.stdout.strip() else None


def _written(signature: bytes, folder: Path) -> Path:
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise UntrustedStoreError(f"{FILE} is larger than {MAX_SIGNATURE_BYTES:,} bytes, which no signature is.")
    path = folder / FILE
    path.write_bytes(signature)
    return path


def _ssh_keygen(
    arguments: list[str], *, content: str, seconds: float | None = _SECONDS
) -> subprocess.CompletedProcess[str]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise ParamsError("signatures need the program ssh-keygen of OpenSSH 8.1 or later, which is not installed.")
    try:
        return subprocess.run(
            [program, *arguments],
            input=content,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise UntrustedStoreError(f"ssh-keygen took more than {_SECONDS} seconds.") from None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return printable(lines[-1].strip().rstrip(".\r"))[:200] if lines else f"exit code {done.returncode}"
