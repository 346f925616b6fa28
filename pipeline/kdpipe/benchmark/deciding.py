"""The decision which student to ship: constraints, accuracy with its noise, cost with its noise, and the runner-up.

Students that break a constraint are dropped. Of the others, the best is the one with the highest lower bound of its
accuracy. The one to ship is the fastest that is not significantly less accurate than the best; of students of equal
cost it is the most accurate. Costs are equal where neither latency is significantly lower, compared round by round:
two runs of one network are timed once, so theirs are equal. Everything is about the samples and the runs at hand: tests
are at the 5 % level, pair by pair, without a correction for the number of students.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdpipe.benchmark.results import BenchmarkResult, StudentResult
from kdpipe.benchmark.settings import DecisionSettings
from kdpipe.benchmark.timing import Latency
from kdpipe.metrics.significance import Z95, Correct, Interval, PairedDifference, paired

MATTERS = 0.005
"""Difference in accuracy that matters: half a percentage point. Noise up to this size leaves a decision standing."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A student, as far as the decision needs it; None for what was not measured."""

    name: str
    accuracy: float | None = None
    """The figure of the goal, the mean of several seeds, 0..1."""
    interval: Interval | None = None
    """Its 95 % interval."""
    correct: Correct | None = None
    """Whether each labeled test sample is right: bool ``(n,)``, or ``(runs, n)`` of several seeds."""
    runs: int = 1
    """Number of seed runs."""
    std: float | None = None
    """Sample standard deviation of the accuracy over the seeds."""
    top1: float | None = None
    latency: Latency | None = None
    """Latency at batch size 1 with the engine to ship."""
    megabytes: float | None = None
    """Size of the file to ship, in units of 1,000,000 bytes."""
    macs: float | None = None
    """Multiply-accumulates of one image."""

    @property
    def rated(self) -> bool:
        """Whether its accuracy is known."""
        return self.accuracy is not None and self.interval is not None and self.correct is not None


@dataclass(frozen=True)
class Check:
    """One constraint, and how a student meets it."""

    what: str
    """The constrained figure."""
    limit: str
    """Its bound, for people."""
    value: str
    """The student's value, for people."""
    met: bool
    close: bool = False
    """Whether the bound lies within the interval of the value."""

    def __str__(self) -> str:
        """Return the figure, the value and the bound."""
        return f"{self.what} {self.value}, {self.limit}"


@dataclass(frozen=True)
class Dropped:
    """A student that breaks a constraint."""

    name: str
    broken: tuple[Check, ...]

    def __str__(self) -> str:
        """Return the name and each broken constraint with the value."""
        return f"{self.name}: {'; '.join(map(str, self.broken))}"


@dataclass(frozen=True)
class Verdict:
    """The student to ship, and all that led to it."""

    chosen: str | None
    """None where every student breaks a constraint."""
    reason: str
    """The reason, with its figures."""
    runner_up: str | None = None
    """The student to ship if the chosen one were not there."""
    margin: PairedDifference | None = None
    """Accuracy of the chosen one minus that of the runner-up; None where one of them is unknown."""
    margin_text: str = ""
    """The margin in accuracy and time, in words; empty without a runner-up."""
    undecided: str = ""
    """The question that noise leaves open, and the test images that it needs; empty where the decision stands."""
    more_images: int | None = None
    """Number of further labeled test images that would settle it; None where the decision stands or none would."""
    checks: tuple[Check, ...] = ()
    """The constraints of the chosen one."""
    dropped: tuple[Dropped, ...] = ()
    run_text: str = ""
    """Which of several seed runs to ship; empty for a single run."""
    equals: tuple[str, ...] = ()
    """Students of equal cost whose predictions are right on just as many samples as those of the chosen one."""

    @property
    def sentences(self) -> list[str]:
        """The verdict in words, line by line: reason, runner-up, what noise leaves open, dropped students."""
        dropped = [f"Left out: {each}." for each in self.dropped]
        close = [f"Close to its bound: {check}." for check in self.checks if check.close]
        return [
            line for line in (self.reason, self.run_text, self.margin_text, self.undecided, *close, *dropped) if line
        ]


def decide(candidates: Sequence[Candidate], rules: DecisionSettings, *, engine: str = "") -> Verdict:
    """Return the verdict on at least one candidate; ``engine`` is the name of the one to ship, for the reason.

    Students whose accuracy is unknown are considered only if no other is left, and those without a latency only if no
    other has one.
    """
    checks = {candidate.name: _checks(candidate, rules) for candidate in candidates}
    dropped = tuple(
        Dropped(name, broken)
        for name, found in checks.items()
        if (broken := tuple(check for check in found if not check.met))
    )
    out = {each.name for each in dropped}
    left = [candidate for candidate in candidates if candidate.name not in out]
    if not left:
        return Verdict(None, "No student meets the constraints.", dropped=dropped)
    chosen, leader, level = _choose(left)
    rest = [candidate for candidate in left if candidate is not chosen]
    runner_up = _choose(rest)[0] if rest else None
    margin = _paired(chosen, runner_up) if runner_up else None
    undecided, more = _noise(chosen, leader, runner_up)
    return Verdict(
        chosen=chosen.name,
        reason=_reason(chosen, leader, level=len(level), alone=not rest, rules=rules, engine=engine),
        runner_up=None if runner_up is None else runner_up.name,
        margin=margin,
        margin_text="" if runner_up is None else _margin_text(chosen, runner_up, margin),
        undecided=undecided,
        more_images=more,
        checks=checks[chosen.name],
        dropped=dropped,
        equals=tuple(
            each.name for each in rest if _equal_cost(chosen, each) and each.rated and each.accuracy == chosen.accuracy
        ),
    )


def verdict(result: BenchmarkResult) -> Verdict:
    """Return the verdict on the students of a benchmark, by its rules."""
    found = decide(
        [_candidate(student, result.rules) for student in result.students], result.rules, engine=result.ship_engine
    )
    chosen = next((student for student in result.students if student.name == found.chosen), None)
    return found if chosen is None else replace(found, run_text=_which_run(chosen))


def _file_bytes(student: StudentResult) -> int:
    """Return the size of the file that the engine to ship runs: an ONNX model, or the weights."""
    used = next((each for each in student.timings if student.ship_engine in ("", each.engine)), None)
    if used is None or student.cost is None or used.engine not in _ONNX:
        return student.file_bytes
    name = "onnx" if used.precision == "fp32" else f"onnx {used.precision}"
    return student.cost.format_bytes.get(name, student.file_bytes)


_ONNX = ("onnx", "openvino")
"""Engines that run an ONNX model."""


def _which_run(chosen: StudentResult) -> str:
    """Return a sentence with the seed run to ship, and why it is not the best of them; empty for a single run."""
    if not chosen.seed_runs:
        return ""
    run = f"The run to ship is {chosen.shipped.as_posix()}"
    if len(chosen.seed_runs) == 1:
        return f"{run}."
    return f"{run}, the first seed: selecting a run by its test accuracy would bias that accuracy."


def _candidate(student: StudentResult, rules: DecisionSettings) -> Candidate:
    timing = student.latencies.get(1)
    return Candidate(
        name=student.name,
        accuracy=student.figures.get(rules.goal),
        interval=student.interval(rules.goal),
        correct=student.right(rules.goal),
        runs=len(student.runs),
        std=student.std(rules.goal),
        top1=student.top1,
        latency=None if timing is None else timing.latency,
        megabytes=_file_bytes(student) / 1e6,
        macs=student.macs,
    )


def _choose(candidates: Sequence[Candidate]) -> tuple[Candidate, Candidate, list[Candidate]]:
    """Return the one to ship, the most accurate, and all that are not significantly less accurate than that."""
    rated = [candidate for candidate in candidates if candidate.rated] or list(candidates)
    leader = min(rated, key=lambda each: (-_lower(each), *_by_cost(each)))
    level = [each for each in rated if each is leader or not _worse(each, leader)]
    fastest = min(level, key=_by_cost)
    equal = [each for each in level if _equal_cost(each, fastest)]
    return min(equal, key=lambda each: (-_lower(each), *_by_cost(each))), leader, level


def _worse(candidate: Candidate, leader: Candidate) -> bool:
    found = _paired(candidate, leader)
    return found is not None and found.difference < 0 and found.significant


def _paired(first: Candidate, second: Candidate) -> PairedDifference | None:
    if first.correct is None or second.correct is None:
        return None
    return paired(first.correct, second.correct)


def _equal_cost(first: Candidate, second: Candidate) -> bool:
    if first.latency is None or second.latency is None:
        return first.latency is second.latency
    return first.latency.equals(second.latency)


def _lower(candidate: Candidate) -> float:
    return -math.inf if candidate.interval is None else candidate.interval.low


def _by_cost(candidate: Candidate) -> tuple[float, float, str]:
    return (math.inf if candidate.latency is None else candidate.latency.ms), -_lower(candidate), candidate.name


def _noise(chosen: Candidate, leader: Candidate, runner_up: Candidate | None) -> tuple[str, int | None]:
    """Return what the noise of the test samples leaves open, and the number of further samples that settle it.

    The rival is a student that is measured to be more accurate, or else the runner-up if it costs the same. The
    decision stands where the chosen one is behind it by at most ``MATTERS``, with 95 % confidence.
    """
    rival = leader if leader is not chosen else runner_up
    if rival is None or (rival is runner_up and rival is not leader and not _equal_cost(chosen, rival)):
        return "", None
    found = _paired(chosen, rival)
    if found is None or found.significant or found.low >= -MATTERS:
        return "", None
    needed = samples_needed(found)
    more = max(1, needed - found.samples)
    return (
        f"Undecided between {chosen.name} and {rival.name}: their difference of {points_text(found.difference)} "
        f"percentage points (95 % interval {span_text(found)}) is within the noise of {found.samples:,} test images; "
        f"about {more:,} more test images would be needed."
    ), more


def samples_needed(found: PairedDifference) -> int:
    """Return the number of test samples that settle a difference, taking what was observed for the truth.

    Either it then is significant (with a power of 80 %), or its 95 % interval lies within ``MATTERS`` of zero,
    whichever takes fewer.
    """
    ways = [found.samples_needed() or math.inf]
    room = MATTERS - abs(found.difference)
    if room > 0:
        ways.append((Z95 / room) ** 2 * max(found.discordant - found.difference**2, 0.0))
    return math.ceil(min(ways))


@dataclass(frozen=True)
class _Bound:
    what: str
    limit: float
    unit: str
    factor: float = 1.0
    above: bool = False
    """Whether values must be above the limit, and not below."""
    digits: str = ".3g"

    def check(self, value: float | None, interval: tuple[float, float] | None = None) -> Check:
        limit = f"expected at {'least' if self.above else 'most'} {self.write(self.limit)}"
        if value is None or not math.isfinite(value):
            return Check(self.what, limit, "is unknown", met=False)
        met = value >= self.limit if self.above else value <= self.limit
        close = interval is not None and interval[0] <= self.limit <= interval[1] and interval[0] < interval[1]
        spread = f" ({self.write(interval[0])} to {self.write(interval[1])})" if interval and close else ""
        return Check(self.what, limit, self.write(value) + spread, met=met, close=close)

    def write(self, value: float) -> str:
        return f"{value * self.factor:{self.digits}} {self.unit}".strip()


def _checks(candidate: Candidate, rules: DecisionSettings) -> tuple[Check, ...]:
    found = []
    if rules.max_ms is not None:
        bound, known = _Bound("latency", rules.max_ms, "ms"), candidate.latency
        found.append(bound.check(None) if known is None else bound.check(known.ms, (known.low, known.high)))
    if rules.max_mb is not None:
        found.append(_Bound("file", rules.max_mb, "MB").check(candidate.megabytes))
    if rules.max_macs is not None:
        found.append(_Bound("MACs", rules.max_macs, "M", factor=1e-6).check(candidate.macs))
    if rules.min_top1 is not None:
        bound = _Bound("top-1", rules.min_top1, "%", factor=100, above=True, digits=".2f")
        found.append(bound.check(candidate.top1, candidate.interval if rules.goal == "top1" else None))
    return tuple(found)


def _reason(
    chosen: Candidate, leader: Candidate, *, level: int, alone: bool, rules: DecisionSettings, engine: str
) -> str:
    pace = "latency at batch size 1 was not measured" if chosen.latency is None else f"{_ms(chosen.latency)} per image"
    if not chosen.rated:
        return f"No student has a known accuracy; {chosen.name} is the fastest: {pace}."
    lead = f"{chosen.name} reaches a {_GOALS[rules.goal]} of {_accuracy(chosen)}"
    lead += f"; {pace}" if chosen.latency is None else f" at {pace} ({engine}, batch size 1, median)"
    if alone:
        return f"{lead}. No other student is left to compare with."
    if chosen is leader:
        return f"{lead}: the most accurate, and no student that is as accurate within the noise is faster."
    best = f"{leader.name} with {_accuracy(leader)}" + ("" if leader.latency is None else f" at {_ms(leader.latency)}")
    return (
        f"{lead}: none of the {level} students that are not significantly less accurate than the best, {best}, is "
        "faster."
    )


_GOALS = {"top1": "top-1", "top5": "top-5", "adversarial_top1": "top-1 under attack"}


def _margin_text(chosen: Candidate, runner_up: Candidate, margin: PairedDifference | None) -> str:
    parts = []
    if margin is not None:
        ahead = f"{points_text(margin.difference)} percentage points in accuracy (95 % interval {span_text(margin)}, "
        parts.append(f"{ahead}McNemar {p_text(margin.p_value)})")
    if chosen.latency is not None and runner_up.latency is not None:
        ratio = runner_up.latency.ms / chosen.latency.ms
        equal = _equal_cost(chosen, runner_up)
        parts.append("equal cost" if equal else f"it takes {ratio:.3g} times as long")
    return f"Runner-up: {runner_up.name}" + (f". Margin: {', '.join(parts)}." if parts else ".")


def _accuracy(candidate: Candidate) -> str:
    assert candidate.accuracy is not None
    assert candidate.interval is not None
    low, high = candidate.interval
    several = "" if candidate.std is None else f"; {candidate.runs} seeds, ± {candidate.std * 100:.2f}"
    return f"{candidate.accuracy * 100:.2f} % (95 % interval {low * 100:.2f} to {high * 100:.2f}{several})"


def _ms(found: Latency) -> str:
    return f"{found.ms:.3g} ms"


def points_text(difference: float) -> str:
    """Return a difference of accuracies for people, in percentage points with its sign."""
    return f"{difference * 100:+.2f}".replace("-", "−")


def span_text(found: PairedDifference) -> str:
    """Return the 95 % interval of a difference for people, in percentage points."""
    return f"{points_text(found.low)} to {points_text(found.high)}"


def p_text(value: float) -> str:
    """Return a p-value for people."""
    return f"p = {value:.2g}" if value >= 1e-4 else "p < 0.0001"
