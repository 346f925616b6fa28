"""Fixtures of all tests: a cache directory, one thread, and the command line in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kdpipe.store.plan import Limits
from tests import servers
from tests.processes import Server
from tests.servers import Place

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.err.strip().splitlines()[-1]


def refused(outcome: Outcome, *parts: str) -> None:
    """Assert that a command ended with one line for the user that has all these parts."""
    assert outcome.code == 1
    lines = outcome.err.strip().splitlines()
    assert len([line for line in lines if line.startswith("kdpipe: ")]) == 1
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in lines[-1]


os.environ["OMP_NUM_THREADS"] = "1"
"""For the commands that tests start: threads of several that run at once would wait for each other."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDPIPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("KDPIPE_CONFIG", str(tmp_path_factory.mktemp("config")))
        torch.set_num_threads(1)
        yield


def run_command(capsys: pytest.CaptureFixture[str] | None, *arguments: object) -> Outcome:
    from kdpipe.stages.cli import main

    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    code = stopped.value.code
    assert code is None or isinstance(code, int)
    printed = capsys.readouterr() if capsys is not None else None
    return Outcome(code or 0, printed.out if printed else "", printed.err if printed else "")


@pytest.fixture(scope="session")
def commands(_own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts kdpipe commands in processes of their own, to be killed, stopped, or run by DVC."""
    server = Server(tmp_path_factory.mktemp("commands"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def programs(commands: Server) -> Iterator[None]:
    """Puts ``kdpipe``, as a program that starts at once, and ``dvc`` into ``PATH``."""
    with pytest.MonkeyPatch.context() as patch:
        folders = (commands.shim(), Path(sys.executable).parent, os.environ["PATH"])
        patch.setenv("PATH", os.pathsep.join(map(str, folders)))
        yield


@pytest.fixture
def kdpipe(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a kdpipe command in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        return run_command(capsys, *arguments)

    return run


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """Returns the server of a kind, which is started when it is first needed."""
    started: dict[str, Place] = {}
    with ExitStack() as stack:

        def place(kind: str) -> Place:
            if kind not in started:
                base = tmp_path_factory.mktemp(kind.replace(" ", "-"))
                start: dict[str, Callable[[Path], AbstractContextManager[Place]]] = {
                    "web": lambda base: servers.nginx(base, writable=True),
                    "read-only web": servers.nginx,
                    "bucket": servers.s3,
                    "host": servers.sshd,
                }
                if kind == "disk":
                    started[kind] = Place(str(base), folder=base)
                else:
                    started[kind] = stack.enter_context(start[kind](base))
            return started[kind]

        yield place


LIMITS = ("--data", "digits", "--limit-train", 200, "--limit-test", 60)


@dataclass(frozen=True)
class Built:
    """A small teacher on digits and its sealed store."""

    weights: Path
    store: Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A teacher trained for a moment, and its store of 200 + 60 digits with two augmented views."""
    folder = tmp_path_factory.mktemp("built")
    trained = run_command(
        None,
        "train-teacher",
        *LIMITS,
        "--model",
        "resnet8",
        "--out",
        folder / "teacher",
        "--epochs",
        2,
        "--device",
        "cpu",
    )
    assert trained.code == 0
    built = Built(weights=folder / "teacher" / "model.safetensors", store=folder / "logits.zarr")
    cached = run_command(
        *(None, "cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights),
        *("--out", built.store, "--views", 2, "--device", "cpu"),
    )
    assert cached.code == 0
    return built


TIGHT = 5 * 2 * 240
"""A memory limit in bytes that holds half of a plane of ``chunked``: windows of five chunks, one being decoded."""


@pytest.fixture(scope="session")
def chunked(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of ``built`` in chunks of 10 samples, 240 bytes each."""
    path = tmp_path_factory.mktemp("chunked") / "chunked.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpipe.store.plan.LIMITS", Limits(chunk_bytes=200))
        cached = run_command(
            *(None, "cache-teacher", *LIMITS, "--teacher", "resnet8", "--weights", built.weights),
            *("--out", path, "--views", 2, "--device", "cpu"),
        )
    assert cached.code == 0
    return path
