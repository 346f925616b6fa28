"""Commands in processes of their own that start at once: forks of a process that has imported what they need.

``python -m tests.processes SOCKET`` serves requests. Each request is a command line, a directory, an environment and
three file descriptors; a forked process runs it and exits as ``python -m kdpipe`` does, and can be killed likewise.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent
_REQUEST_BYTES = 1_000_000
_MEMORY = "TESTS_MEMORY"
"""Name of the variable with the bytes of addresses that a command may allocate."""


class Server:
    """A running server, started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "commands"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: object, cwd: Path = ROOT, memory: int | None = None) -> Started:
        """Start a command in this process's environment; it may allocate ``memory`` bytes of addresses."""
        self._run()
        env = os.environ if memory is None else {**os.environ, _MEMORY: str(memory)}
        return Started(self.socket, list(map(str, arguments)), cwd, env)

    def shim(self) -> Path:
        """Return a folder with a program ``kdpipe`` that runs its arguments on this server, for ``PATH``."""
        self._run()
        program = self._folder / "bin" / "kdpipe"
        if not program.exists():
            program.parent.mkdir()
            program.write_text(
                f"#!/usr/bin/env -S {sys.executable} -S -E\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
                f"from tests.processes import relay\nsys.exit(relay({str(self.socket)!r}))\n"
            )
            program.chmod(0o755)
        return program.parent

    def stop(self) -> None:
        """End the server; commands that it has started go on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _run(self) -> None:
        if self._process is not None:
            return
        command = [sys.executable, "-m", "tests.processes", str(self.socket)]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not self.socket.exists():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "the server of commands did not start"
            time.sleep(0.01)


class Started:
    """A command that was started: the part of ``subprocess.Popen`` that tests use."""

    def __init__(self, server: Path, arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        with Path(os.devnull).open("rb") as nothing:
            files = (nothing.fileno(), self._out.fileno(), self._err.fileno())
            self._connection = _request(server, arguments, cwd, env, files)
        self.pid = int(_line(self._connection))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative where a signal ended it; ``None`` while it runs."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """Wait for the end, and return the exit code."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self.returncode = int(_line(self._connection))
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for the end, and return what was printed on stdout and stderr."""
        self.wait(timeout)
        printed = []
        for stream in (self._out, self._err):
            stream.seek(0)
            printed.append(stream.read().decode())
        return printed[0], printed[1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        for each in (self._out, self._err, self._connection):
            each.close()


def relay(server: str) -> int:
    """Run this process's arguments on a server, in this directory and with these files; return the exit code."""
    connection = _request(Path(server), sys.argv[1:], Path.cwd(), os.environ, (0, 1, 2))
    _line(connection)
    return int(_line(connection)) % 256


def _request(
    server: Path, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], files: Sequence[int]
) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(server))
    request = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}).encode()
    socket.send_fds(connection, [f"{len(request)}\n".encode()], list(files))
    connection.sendall(request)
    return connection


def _line(connection: socket.socket) -> str:
    received = b""
    while not received.endswith(b"\n"):
        received += connection.recv(1) or b"\n"
    return received.decode().strip()


def _serve(path: str) -> list[str]:
    """Serve requests; return in each forked process, with the arguments of its command."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{path}.new")
    listener.listen()
    Path(f"{path}.new").rename(path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getppid()
    while os.getppid() == parent:
        if not select.select([listener], [], [], 1)[0]:
            continue
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        arguments = _in_a_fork(connection)
        if arguments is None:
            os._exit(0)
        return arguments
    os._exit(0)


def _in_a_fork(connection: socket.socket) -> list[str] | None:
    """Fork once more; return the arguments there, and here, when that process has ended and was reported, ``None``."""
    header, files, _, _ = socket.recv_fds(connection, 1, 3)
    while not header.endswith(b"\n"):
        header += connection.recv(1)
    content = b""
    while len(content) < int(header):
        content += connection.recv(_REQUEST_BYTES)
    request = json.loads(content)
    worker = os.fork()
    if worker:
        connection.sendall(f"{worker}\n".encode())
        _, status = os.waitpid(worker, 0)
        code = os.waitstatus_to_exitcode(status)
        connection.sendall(f"{code}\n".encode())
        return None
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    memory = os.environ.pop(_MEMORY, None)
    if memory is not None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + int(memory), resource.RLIM_INFINITY))
    arguments: list[str] = request["arguments"]
    sys.argv = ["kdpipe", *arguments]
    return arguments


def _end(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> NoReturn:
    """Run a command, and end this process as Python does, without a third of a second to take modules apart."""
    code: object = 0
    try:
        main(arguments)
    except SystemExit as done:
        code = done.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    import gc

    import torch
    import torch._dynamo  # which the first step of an optimizer would import in each process

    from kdpipe.stages import benchmark, cache_teacher, import_logits, train_student, train_teacher  # noqa: F401
    from kdpipe.stages.cli import main

    torch.set_num_threads(1)
    gc.freeze()  # so that a fork does not look through, and so copy, what was imported
    _end(main, _serve(sys.argv[1]))
