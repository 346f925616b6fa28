"""Stage `cache-teacher`: run the teacher once over every view and keep its logits in a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from kdpipe.dataset import Dataset
from kdpipe.dataset.learning import is_unread
from kdpipe.encoding.registry import get_encoding
from kdpipe.errors import ModelError, ParamsError, StoreError, UnreadError
from kdpipe.models import parse_preset
from kdpipe.stages import once
from kdpipe.stages.console import aloud, progress, quiet, say
from kdpipe.stages.growth import Continued, begun, describe, finish_growth
from kdpipe.stages.ranks import launched
from kdpipe.stages.settings.storing import CacheTeacher
from kdpipe.stages.sources import load_split, load_test
from kdpipe.stages.storing import about, check_top1, ordered, report, settle
from kdpipe.stages.teachers import Normalization, frozen, load_all
from kdpipe.store.manifest import read
from kdpipe.store.plan import Plan
from kdpipe.store.sections import RowOrder
from kdpipe.store.settings import Part
from kdpipe.store.tree import segment_of
from kdpipe.store.writer import Builder, build, build_together
from kdpipe.teacher.cache import cache_plane, pilot, plan
from kdpipe.teacher.forward import FrozenTeacher, digest_of
from kdpipe.teacher.recompute import refuse_unfit
from kdpipe.teacher.settings import brings_weights
from kdpipe.views import Geometry, Recipe, Renderer


@dataclass(frozen=True)
class _Pass:
    """A teacher pass over the splits of a dataset, by this process alone or as one of several."""

    params: CacheTeacher
    datasets: Mapping[str, Dataset]
    order: RowOrder | None
    """Order of their samples."""
    recipe: Recipe
    forward: FrozenTeacher
    part: Part | None
    unread: bool = False
    """Whether the content of the images is learned in the pass."""

    @property
    def out(self) -> Path:
        return self.params.output.out

    def plan(self, datasets: Mapping[str, Dataset], *, views: int, replaces: Mapping[str, int] | None = None) -> Plan:
        """Plan a store of these datasets, by segment."""
        return plan(
            self.forward,
            datasets,
            recipe=self.recipe,
            seed=self.params.view.seed,
            views=views,
            encoding=get_encoding(self.params.encoding.encoding),
            batch_size=self.params.teacher.batch_size,
            replaces=replaces,
            order=self.order,
            pixel_digests=True,
            unread=self.unread,
        )

    def build(self, wanted: Plan, datasets: Mapping[str, Dataset]) -> None:
        """Build, resume or confirm the store of a plan for ``datasets``, by segment."""
        with self._builder(lambda: self._settled(wanted)) as builder:
            if builder.sealed:
                say(f"{self.out} is sealed and holds exactly this: nothing to do.")
            else:
                _fill(builder, datasets, self.recipe, params=self.params, forward=self.forward)

    def read_once(self) -> int:
        """Build or resume a store whose images are read once; return the number of images that it still lacks."""
        with once.kept(self.params):
            reading = once.Once.of(self.params, self.datasets)
            work = replace(self, datasets=reading.datasets)
            wanted = work.plan(reading.datasets, views=self.params.view.augmented)
            with work._builder(lambda: work._settled(wanted)) as builder:
                reading.check_finished(builder)
                _fill(builder, reading.datasets, self.recipe, params=self.params, forward=self.forward, reading=reading)
        return reading.further

    def grow(self, store: Continued) -> None:
        """Compute the samples that a sealed store lacks, as further segments."""
        with store.building(self.plan, self.params, part=self.part) as builder:
            if not builder.sealed:
                _fill(builder, store.fresh, self.recipe, params=self.params, forward=self.forward, grown=store)

    def _builder(self, wanted: Callable[[], Plan]) -> AbstractContextManager[Builder]:
        overwrite = self.params.output.overwrite
        if self.part is None:
            return build(self.out, wanted(), overwrite=overwrite)
        return build_together(self.out, wanted, self.part, overwrite=overwrite)

    def _settled(self, wanted: Plan) -> Plan:
        # Of several ranks, any may be the first, which alone computes the pilot.
        with aloud():
            return settle(
                wanted,
                self.params,
                pilot=lambda rows: _pilot(
                    self.datasets["train"], self.recipe, params=self.params, forward=self.forward, rows=rows
                ),
            )


def run(params: CacheTeacher) -> None:
    """Build, resume, grow or confirm the store at ``params.output.out``, alone or as one of several processes."""
    part = _part(params)
    unread = once.may_read_once(params, part)
    try:
        _run(params, part, unread=unread)
    except UnreadError:
        _run(params, part, unread=False)


def _run(params: CacheTeacher, part: Part | None, *, unread: bool) -> None:
    train = load_split(params.dataset, "train", unread=unread)
    test = load_test(params.dataset, train, unread=unread)
    get_encoding(params.encoding.encoding).width(len(train.classes))
    forward = _teacher(params, train)
    recipe, view, geometry = params.view.recipe, params.view, Geometry.of(forward.preset)
    plain = Renderer(train, recipe, seed=view.seed, geometry=geometry, device=forward.device)
    refuse_unfit(forward, plain, name=forward.identity.name)
    datasets = {"train": train} if test is None else {"train": train, "test": test}
    datasets, order = ordered(datasets, params, seed=view.seed)
    if unread and (once.begun(params) is not None or any(map(is_unread, datasets.values()))):
        if _Pass(params, datasets, order, recipe, forward, part, unread=True).read_once():
            _run(params, part, unread=False)
        else:
            report(params)
        return
    work = _Pass(params, datasets, order, recipe, forward, part)
    finish_growth(work.out, part=part)
    wanted = work.plan(datasets, views=view.augmented)
    unfinished = begun(params, wanted, datasets)
    if unfinished is not None:
        work.build(work.plan(unfinished.images, views=view.augmented, replaces=unfinished.replaces), unfinished.images)
    store = Continued.of(params, wanted, datasets)
    if store is None:
        work.build(wanted, datasets)
    else:
        _continue(work, store, wanted)
    report(params)


def _continue(work: _Pass, store: Continued, wanted: Plan) -> None:
    """Compute the samples and the views that a sealed store lacks."""
    views = work.params.view.augmented
    store.say_changes()
    grows = bool(store.fresh)
    if grows:
        began = time.perf_counter()
        work.grow(store)
        store = store.again(work.datasets)
        say(f"{work.out} has grown after {time.perf_counter() - began:.1f} s, digest {store.found.digest}.")
    segments = store.segments
    if segments is None or (grows and store.views == views):
        describe(work.out, work.params.provenance, part=work.part)
        say(f"{work.out} is sealed and has all of these samples.")
    elif all(segments[name] is work.datasets.get(name) for name in segments):
        work.build(wanted, work.datasets)
    else:
        work.build(store.whole(work.plan, segments, views=views), segments)


def _part(params: CacheTeacher) -> Part | None:
    """Return the part of the work of this process; ``None`` where it is the only one."""
    ranks = launched()
    if ranks is None:
        return params.output.part
    if params.output.part is not None:
        raise ParamsError(
            "--part is for processes without torchrun, which deals the shards to its ranks: leave it out."
        )
    ranks.claim(params.teacher.device)
    if ranks.rank > 0:
        quiet()
    return ranks.part


def _teacher(params: CacheTeacher, train: Dataset) -> FrozenTeacher:
    """Load the teacher, or all of them as one that averages."""
    settings = params.teacher
    loaded = load_all(settings, train, _normalizations(params), trust_code=params.code.trust_code)
    bare = [name for name, weights in settings.with_weights if weights is None and not brings_weights(name)]
    if bare:
        say(f"warning: no --weights; {', '.join(bare)} is randomly initialized unless it loads its own weights.")
    return frozen(loaded, settings, channels_last=_memory_format(params, digest_of([each.model for each in loaded])))


def _memory_format(params: CacheTeacher, digest: str) -> bool | None:
    """Return whether to compute in channels-last; a store of the same teacher keeps torch's default, if it has it."""
    wish = params.teacher.channels_last
    with suppress(StoreError):
        recorded = read(params.output.out).fingerprint
        if wish is None and recorded.teacher.digest == digest and recorded.memory_format is None:
            return False
    return wish


def _normalizations(params: CacheTeacher) -> list[Normalization]:
    """Return what is known of each teacher's images, with the statistics that a store of the same teacher records."""
    settings, out = params.teacher, params.output.out
    given = Normalization.asked(settings, params.network)
    recorded: list[dict[str, Any]] = []
    if given.of_data and not params.output.overwrite:
        with suppress(StoreError):
            preset = read(out).fingerprint.teacher.preset
            recorded = cast(list[dict[str, Any]], preset.get("members", [preset]))
    if len(recorded) != len(settings.teacher):
        return [given] * len(settings.teacher)
    return [replace(given, recorded=parse_preset(each), recorded_in=out) for each in recorded]


def _pilot(train: Dataset, recipe: Recipe, *, params: CacheTeacher, forward: FrozenTeacher, rows: int) -> torch.Tensor:
    geometry = Geometry.of(forward.preset)
    renderer = Renderer(train, recipe, seed=params.view.seed, geometry=geometry, device=forward.device)
    return pilot(
        forward,
        renderer,
        views=params.view.augmented,
        seed=params.view.seed,
        batch_size=params.teacher.batch_size,
        rows=rows,
    )


def _fill(
    builder: Builder,
    datasets: Mapping[str, Dataset],
    recipe: Recipe,
    *,
    params: CacheTeacher,
    forward: FrozenTeacher,
    grown: Continued | None = None,
    reading: once.Once | None = None,
) -> None:
    """Compute what is missing and seal the store; ``grown`` is that whose further segments these are.

    ``reading`` learns of the images in the plain view.
    """
    began = time.perf_counter()
    builder.memory_limit = params.output.memory_bytes
    scored = "test" if "test" in datasets else "train"
    say(f"{forward.identity.name} on {forward.device}: the plain {scored} view first.")
    scores: dict[str, float | None] = {} if grown is not None else {"teacher_test_top1": None}
    for split in sorted(datasets):
        _cache_split(builder, split, datasets[split], recipe, params=params, forward=forward, reading=reading)
        if segment_of(split) == ("test", 0):
            test, logits = datasets["test"], builder.plane("test", 0)
        elif segment_of(split)[0] == "test" and grown is not None:
            test, logits = grown.standings["test"].dataset, grown.test_logits(builder)
        else:
            continue
        scores["teacher_test_top1"] = check_top1(logits, test, min_top1=params.teacher.min_top1)
    if reading is not None:
        reading.settle(builder)
    seconds = time.perf_counter() - began
    sealed = builder.seal(about(builder.work(), scores))
    if grown is None:
        say(f"{builder.path} sealed after {seconds:.1f} s, digest {sealed.digest}.")


def _cache_split(
    builder: Builder,
    split: str,
    dataset: Dataset,
    recipe: Recipe,
    *,
    params: CacheTeacher,
    forward: FrozenTeacher,
    reading: once.Once | None,
) -> None:
    """Compute what is missing of a split, until other processes have computed the rest."""
    geometry = Geometry.of(forward.preset)

    def renderer_of(samples: Dataset) -> Renderer:
        return Renderer(samples, recipe, seed=params.view.seed, geometry=geometry, device=forward.device)

    renderer = renderer_of(dataset)
    total = len(dataset) * builder.manifest.splits[split].planes
    with (
        progress(f"caching {split}", total=total, unit=dataset.unit) as advance,
        nullcontext() if reading is None else reading.learning(split) as learn,
    ):
        count = _counted(builder, split, advance)
        count(0)
        while True:
            for view in builder.views(split):
                with _naming_the_remedy(builder.path):
                    cache_plane(
                        builder,
                        split,
                        view,
                        forward=forward,
                        renderer=renderer,
                        batch_size=params.teacher.batch_size,
                        advance=count,
                        learn=learn if view == 0 else None,
                    )
                if reading is not None and view == 0:
                    renderer = renderer_of(reading.learned[split].dataset())
            if builder.complete(split):
                break


@contextmanager
def _naming_the_remedy(path: Path) -> Iterator[None]:
    """Add to an error of the network that the store stays, and is of the same recipe and data only.

    Raises:
        ModelError: the network fails.
    """
    try:
        yield
    except ModelError as error:
        raise ModelError(
            f"{error} {path} keeps what is finished: pass --overwrite with another recipe or other data."
        ) from error


def _counted(builder: Builder, split: str, advance: Callable[[int], None]) -> Callable[[int], None]:
    """Return a function that takes the rows which this process has done, and reports those of other processes, too."""
    reported = own = 0

    def count(rows: int) -> None:
        nonlocal reported, own
        own += rows
        done = own + builder.rows_elsewhere(split)
        advance(done - reported)
        reported = done

    return count
