"""Real servers for tests, each in processes of its own on a free port: nginx, an S3 server, sshd.

Tests that need one are skipped where its program is missing; ``.ci/run`` installs them.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Place:
    """A server with a folder that it serves."""

    url: str
    env: Mapping[str, str] = field(default_factory=dict)
    """The environment that clients need."""
    folder: Path | None = None
    """Where its files lie; ``None`` where they are in a bucket."""


def program(name: str) -> str:
    """Return the path of a program; skip the test where it is missing."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"the program {name} is not installed")
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def nginx(base: Path, *, writable: bool = False, rate: str = "0", port: int | None = None) -> Iterator[Place]:
    """Serve a folder by nginx; ``writable`` by WebDAV, each connection at a ``rate`` in bytes per second, as ``9k``."""
    server, port = program("nginx"), port or free_port()
    served, temporary = base / "served", base / "nginx"
    for folder in (served, temporary):
        folder.mkdir(parents=True, exist_ok=True)
    dav = "dav_methods PUT DELETE MKCOL COPY MOVE; create_full_put_path on; client_max_body_size 0;"
    spools = "\n".join(
        f"{kind}_temp_path {temporary}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    settings = temporary / "nginx.conf"
    user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""
    settings.write_text(
        f"{user} daemon off; worker_processes 2; pid {temporary}/pid; error_log {temporary}/error.log;\n"
        f"events {{ worker_connections 256; }}\nhttp {{ access_log {temporary}/access.log; {spools}\n"
        f"server {{ listen 127.0.0.1:{port}; root {served}; limit_rate {rate}; {dav if writable else ''} }} }}\n"
    )
    with _running([server, "-c", str(settings), "-p", str(temporary)], port, temporary / "log"):
        yield Place(f"http://127.0.0.1:{port}", folder=served)


@contextmanager
def s3(base: Path) -> Iterator[Place]:
    """Serve buckets by moto's S3 server, in memory, with an empty bucket ``stores``."""
    pytest.importorskip("moto.server", reason="moto is not installed")
    port = free_port()
    base.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port, base / "log"):
        from http.client import HTTPConnection

        connection = HTTPConnection("127.0.0.1", port)
        connection.request("PUT", "/stores")
        assert connection.getresponse().status == 200
        connection.close()
        yield Place(
            "s3://stores/shared",
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "tester",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
            },
        )


@contextmanager
def sshd(base: Path) -> Iterator[Place]:
    """Serve a folder by sshd, with host and user keys of its own."""
    server, keygen, client = program("sshd"), program("ssh-keygen"), program("ssh")
    sftp = next(
        (path for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server") if Path(path).exists()),
        "internal-sftp",
    )
    served, keys, port = base / "served", base / "ssh", free_port()
    for folder in (served, keys):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("host", "user"):
        if not (keys / name).exists():
            subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True)
    (keys / "authorized").write_bytes((keys / "user.pub").read_bytes())
    (keys / "authorized").chmod(0o600)
    (keys / "known").write_text(f"[127.0.0.1]:{port} {(keys / 'host.pub').read_text()}")
    (keys / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/authorized\n"
        f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile {keys}/pid\nSubsystem sftp {sftp}\n"
        "PermitRootLogin yes\n"
    )
    if os.getuid() == 0:
        with contextlib.suppress(OSError):
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    command = [server, "-D", "-e", "-f", str(keys / "sshd_config")]
    with _running(command, port, keys / "log"):
        options = ["-F", "none", "-i", keys / "user", "-o", f"UserKnownHostsFile={keys / 'known'}"]
        options += ["-o", "IdentitiesOnly=yes"]
        yield Place(
            f"ssh://{getpass.getuser()}@127.0.0.1:{port}{served}",
            {"KDPIPE_SSH": shlex.join(map(str, [client, *options]))},
            served,
        )


@contextmanager
def environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Set the environment that clients of a server need."""
    with monkeypatch.context() as patched:
        for name, value in place.env.items():
            patched.setenv(name, value)
        yield place


@contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as written:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=written, stderr=written)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{command[0]} did not start: {log.read_text()}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
