"""Load time and peak memory of a network, in a process of its own.

    python -m kdpipe.benchmark.starts    reads a request from standard input and prints what it measured, both as JSON

The process imports what the engine needs, opens the file, passes one image to the network, and then batches of each
size, in ascending order. Resident memory is read from /proc on Linux, else it is the maximum that getrusage reports.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from kdpipe.benchmark.timing import Start
from kdpipe.dataset.forms import Form
from kdpipe.errors import KdpipeError, ModelError
from kdpipe.models.inputs import InputSize
from kdpipe.printable import printable

PASSES = 3
TIMEOUT = 600.0
"""Seconds after which the process is stopped."""
STATUS = Path("/proc/self/status")


class Request(BaseModel):
    """The network to load and its settings; the interface between the two processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    function: str
    """``module:function`` that takes ``source``, ``threads`` and ``batch_size``, and returns one from images to
    logits."""
    packages: tuple[str, ...]
    """Packages to import before the file is opened."""
    file: Path | None = None
    """File whose bytes are the source."""
    origin: dict[str, Any] | None = None
    """The source where there is no file: arguments of ``models.load``."""
    threads: int
    batch_sizes: tuple[int, ...]
    size: int = 0
    """Side of the images in pixels."""
    form: list[Any] | None = None
    """The form of tensors, as ``Form.describe`` returns it."""
    static: bool
    """Whether the network is loaded anew for each batch size."""


class _Measured(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    load_ms: float
    libraries_bytes: int
    peak_bytes: dict[int, int]


def measure_start(
    function: str,
    source: bytes | dict[str, Any],
    *,
    packages: Sequence[str],
    threads: int,
    batch_sizes: Sequence[int],
    size: InputSize,
    static: bool,
    timeout: float = TIMEOUT,
) -> dict[int, Start]:
    """Start a process that loads ``source``, and return what it measured by batch size.

    Raises:
        ModelError: the process fails, or takes longer than ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model"
        if isinstance(source, bytes):
            file.write_bytes(source)
        request = Request(
            function=function,
            packages=tuple(packages),
            file=file if isinstance(source, bytes) else None,
            origin=None if isinstance(source, bytes) else source,
            threads=threads,
            batch_sizes=tuple(sorted(set(batch_sizes))),
            size=size if isinstance(size, int) else 0,
            form=None if isinstance(size, int) else size.describe(),
            static=static,
        )
        command = [sys.executable, "-m", "kdpipe.benchmark.starts"]
        environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        try:
            done = subprocess.run(
                command,
                input=request.model_dump_json(),
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise ModelError(f"it did not start within {timeout:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    try:
        measured = _Measured.model_validate_json(lines[-1] if lines and not done.returncode else "")
    except ValidationError:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(f"the process that loads it failed: {printable(said)[:200]}") from None
    return {
        batch: Start(load_ms=measured.load_ms, libraries_bytes=measured.libraries_bytes, peak_bytes=peak)
        for batch, peak in measured.peak_bytes.items()
    }


def run(request: Request) -> dict[str, Any]:
    """Measure in this process."""
    module, _, name = request.function.partition(":")
    load = getattr(importlib.import_module(module), name)
    for package in request.packages:
        importlib.import_module(package)
    count = max(1, *request.batch_sizes)
    if request.form is None:
        images = np.random.default_rng(0).integers(0, 256, (count, 3, request.size, request.size), dtype=np.uint8)
    else:
        images = np.stack([Form.parse(request.form).blank()] * count)
    libraries = _resident()
    begin = time.perf_counter()
    network = load(_source(request), threads=request.threads, batch_size=1)
    network(images[:1])
    load_ms = (time.perf_counter() - begin) * 1e3
    peaks = {}
    for batch in request.batch_sizes:
        if request.static and batch != 1:
            del network
            network = load(_source(request), threads=request.threads, batch_size=batch)
        for _ in range(PASSES):
            network(images[:batch])
        peaks[batch] = _peak()
    return {"load_ms": load_ms, "libraries_bytes": libraries, "peak_bytes": peaks}


def _source(request: Request) -> Any:
    return request.origin if request.file is None else request.file.read_bytes()


def _resident() -> int:
    return _status("VmRSS") or _highest()


def _peak() -> int:
    return _status("VmHWM") or _highest()


def _status(key: str) -> int | None:
    """Return a number of bytes from this process's status; None except on Linux."""
    if not STATUS.exists():
        return None
    lines = dict(line.partition(":")[::2] for line in STATUS.read_text().splitlines())
    found = lines.get(key, "").split()
    return int(found[0]) * 1024 if found else None


def _highest() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, which a signal may have killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Read a request, measure, and print the result; on an error print its line and exit with 1."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        measured = run(Request.model_validate_json(sys.stdin.read()))
    except KdpipeError as error:
        sys.exit(printable(error))
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
