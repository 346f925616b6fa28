"""Timing of networks by engine, precision, threads and batch size: prepare, compare with eager, then time in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from kdpipe.benchmark.engines import ENGINES, Engine, Subject
from kdpipe.benchmark.rounds import time_rounds, torch_threads
from kdpipe.benchmark.starts import measure_start
from kdpipe.benchmark.timing import Cost, Load, Network, Start, Timing, Workload, warnings
from kdpipe.errors import ModelError, ParamsError
from kdpipe.export.runtimes import Images, Logits, Run
from kdpipe.models import count_parameters, macs
from kdpipe.progress import Progress, silent

TOLERANCE = 1e-3
"""Largest difference of an fp32 engine's logits from those of eager, relative to the largest logit or to 1."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The ways in which every network is timed: each engine with each precision, threads and batch size."""

    engines: tuple[str, ...] = ("eager",)
    precisions: tuple[str, ...] = ("fp32",)
    threads: tuple[int, ...] = (1,)
    batch_sizes: tuple[int, ...] = (1, 64)
    device: str = "cpu"

    def check(self) -> tuple[list[tuple[str, Engine, str]], list[str]]:
        """Return the engines with their precisions, and one sentence for each combination that is left out.

        Raises:
            ParamsError: there is no such engine, or nothing is left.
            ModelError: a package is not installed.
        """
        made = [(name, ENGINES.make(name)) for name in self.engines]
        for name, engine in made:
            try:
                engine.check()
            except ModelError as error:
                raise ModelError(f"the engine {name} cannot run: {error}") from error
        kept, notes = [], []
        for name, engine in made:
            if self.device.partition(":")[0] not in engine.devices:
                notes.append(f"{name} runs on {' and '.join(engine.devices)}, not on {self.device}, and is left out.")
                continue
            for precision in self.precisions:
                if precision in engine.precisions:
                    kept.append((name, engine, precision))
                else:
                    notes.append(f"{name} has no {precision}, and is timed without it.")
        if not kept:
            raise ParamsError(
                f"there is nothing to time: {' '.join(notes)} Add an engine, such as --engines eager,onnx."
            )
        return kept, notes


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Timings and costs of networks, and what is to be said about them."""

    timings: dict[Workload, Timing] = field(default_factory=dict)
    costs: dict[Network, Cost] = field(default_factory=dict)
    load: Load | None = None
    notes: tuple[str, ...] = ()
    """One sentence for each combination that was left out."""
    warnings: tuple[str, ...] = ()
    """One sentence for each reason to doubt the timings."""


def time_networks(
    subjects: Sequence[Subject], grid: Grid, *, rounds: int, cold_starts: bool = False, progress: Progress = silent
) -> Measured:
    """Time every network in every way of the grid.

    First each engine is compared with eager fp32 on the images of the subject: fp32 that differs by more than
    ``TOLERANCE`` is left out, as is what an engine does not take. With ``cold_starts``, load time and peak memory are
    measured in a process for each network, engine and precision.

    Raises:
        ParamsError: nothing of the grid can be timed.
        ModelError: a package is not installed.
    """
    made, notes = grid.check()
    ways = [_Way(subject, *each) for subject in subjects for each in made]
    prepared: dict[Workload, _Prepared] = {}
    with torch_threads(), progress("preparing to time", len(ways), "networks by engine") as advance:
        for way in ways:
            try:
                ready = way.prepare(grid)
                prepared |= ready
            except ModelError as error:
                notes.append(f"{way.title} is not timed: {str(error).rstrip('.')}.")
            else:
                if cold_starts:
                    notes += way.start(grid, ready)
            advance(1)
    if cold_starts and grid.device != "cpu":
        notes.append("Load time and peak memory are measured on the CPU only.")
    timed = time_rounds({each: found.once for each, found in prepared.items()}, rounds=rounds, progress=progress)
    timings = {
        each: replace(timing, difference=found.difference, agreement=found.agreement, start=found.start)
        for (each, timing), found in zip(timed.timings.items(), prepared.values(), strict=True)
    }
    return Measured(
        timings=timings,
        costs={subject.network: cost(subject) for subject in subjects},
        load=timed.load,
        notes=tuple(notes),
        warnings=tuple(warnings(timings, timed.load)),
    )


def cost(subject: Subject) -> Cost:
    """Return parameters, multiply-accumulates, and the sizes of the ONNX models that were made."""
    try:
        counted: int | None = macs(subject.module, subject.preset.size)
    except (RuntimeError, NotImplementedError):
        counted = None
    sizes = {
        f"onnx{'' if precision == 'fp32' else f' {precision}'}": len(made)
        for (_, precision), made in subject.forms.items()
        if isinstance(made, bytes)
    }
    return Cost(parameters=count_parameters(subject.module), macs=counted, format_bytes=sizes)


@dataclass
class _Prepared:
    """A network that is ready to be timed with one batch."""

    run: Run
    batch: Images
    difference: float
    agreement: float
    start: Start | None = None

    def once(self) -> None:
        self.run(self.batch)


@dataclass
class _Way:
    """One network with one engine in one precision."""

    subject: Subject
    name: str
    engine: Engine
    precision: str

    @property
    def title(self) -> str:
        """Its name, for people."""
        return f"{self.subject.network.architecture} with {self.name} {self.precision}"

    def prepare(self, grid: Grid) -> dict[Workload, _Prepared]:
        """Prepare its workloads, and compare their logits with those of eager fp32.

        Raises:
            ModelError: the engine does not take the network, or computes something else.
        """
        source = self.subject.source(self.engine.form, self.precision)
        expected = self.subject.expected(grid.device)
        prepared: dict[Workload, _Prepared] = {}
        difference, agreement = 0.0, 1.0
        for threads in grid.threads:
            torch.set_num_threads(threads)
            run: Run | None = None
            for batch_size in grid.batch_sizes:
                if run is None or self.engine.static:
                    run = self.engine.load(source, threads=threads, batch_size=batch_size, device=grid.device)
                if not prepared:
                    difference, agreement = self._compare(run, self.subject.images, expected, batch_size)
                else:
                    few = slice(min(batch_size, len(expected)))
                    difference = max(
                        difference, self._compare(run, self.subject.images[few], expected[few], batch_size)[0]
                    )
                workload = Workload(
                    network=self.subject.network,
                    engine=self.name,
                    precision=self.precision,
                    threads=threads,
                    batch_size=batch_size,
                    device=grid.device,
                )
                batch = repeated(self.subject.images, batch_size)
                prepared[workload] = _Prepared(run, batch, difference, agreement)
        return prepared

    def _compare(self, run: Run, images: Images, expected: Logits, batch_size: int) -> tuple[float, float]:
        whole = repeated(images, -(-len(images) // batch_size) * batch_size)
        blocks = [run(whole[start : start + batch_size]) for start in range(0, len(whole), batch_size)]
        logits = np.concatenate(blocks)[: len(images)]
        if logits.shape != expected.shape:
            raise ModelError(f"it returns {logits.shape[1:]} for an image, eager {expected.shape[1:]}")
        difference = float(np.abs(logits - expected).max())
        tolerance = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        if self.precision == "fp32" and not difference <= tolerance:
            raise ModelError(f"its logits differ from those of eager by {difference:.2g}, more than {tolerance:.2g}")
        return difference, float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)))

    def start(self, grid: Grid, prepared: dict[Workload, _Prepared]) -> list[str]:
        """Measure load time and peak memory with the first number of threads; return why not, if not."""
        origin = self.subject.origin
        if not self.engine.start or grid.device != "cpu" or (self.engine.form == "module" and origin is None):
            return []
        described = {} if origin is None else {**asdict(origin), "preset": self.subject.preset.describe()}
        source = described if self.engine.form == "module" else self.subject.source(self.engine.form, self.precision)
        try:
            starts = measure_start(
                self.engine.start,
                source,
                packages=(self.engine.package,),
                threads=grid.threads[0],
                batch_sizes=grid.batch_sizes,
                size=self.subject.preset.size,
                static=self.engine.static,
            )
        except ModelError as error:
            return [f"load time and memory of {self.title} were not measured: {str(error).rstrip('.')}."]
        for workload, found in prepared.items():
            found.start = starts[workload.batch_size]
        return []


def repeated(images: Images, count: int) -> Images:
    """Return ``count`` images: the given ones, over and over."""
    return np.ascontiguousarray(images[np.arange(count) % len(images)])
