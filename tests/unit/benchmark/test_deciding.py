"""Which student to ship, against an independent implementation of the rule with scipy's tests."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from kdpipe.benchmark.deciding import Candidate, decide, samples_needed, verdict
from kdpipe.benchmark.results import average
from kdpipe.benchmark.settings import DecisionSettings
from kdpipe.benchmark.timing import Cost, Latency
from kdpipe.metrics.significance import accuracy_interval, paired
from tests.reports import result, right, student

RULES = DecisionSettings()


def _candidate(
    name: str, correct: np.ndarray | None, ms: tuple[float, float, float] | float | None = 1.0, **other: float
) -> Candidate:
    measured = ms if isinstance(ms, tuple) or ms is None else (ms, ms, ms)
    share = None if correct is None else float(correct.mean())
    return Candidate(
        name=name,
        accuracy=share,
        interval=None if share is None or correct is None else accuracy_interval(share, correct.shape[-1]),
        correct=correct,
        top1=share,
        latency=None if measured is None else Latency(*measured),
        **other,
    )


def _flipped(correct: np.ndarray, losses: int, gains: int = 0) -> np.ndarray:
    """Return the correctness with some right answers turned wrong and some wrong ones right."""
    changed = correct.copy()
    changed[np.flatnonzero(correct)[:losses]] = False
    changed[np.flatnonzero(~correct)[:gains]] = True
    return changed


BASE = right(0.9, 1000)


def test_the_fastest_that_is_not_significantly_worse_is_shipped() -> None:
    found = decide(
        [
            _candidate("best", BASE, 9.0),
            _candidate("near", _flipped(BASE, 5), 4.0),  # 5 of 5 discordant samples: p = 2 / 2^5 = 0.0625
            _candidate("far", _flipped(BASE, 6), 1.0),  # p = 2 / 2^6 = 0.03125
        ],
        RULES,
    )
    assert (found.chosen, found.runner_up) == ("near", "best")
    assert "near reaches a top-1 of 89.50 % (95 % interval 87.45 to 91.25) at 4 ms per image" in found.reason
    assert "the 2 students that are not significantly less accurate than the best, best with 90.00 %" in found.reason
    assert found.margin is not None
    assert (found.margin.difference, found.margin.p_value) == pytest.approx((-0.005, 0.0625))
    assert "Runner-up: best. Margin: −0.50 percentage points in accuracy" in found.margin_text
    assert "it takes 2.25 times as long" in found.margin_text


def test_the_most_accurate_is_shipped_where_no_equal_is_faster() -> None:
    found = decide([_candidate("a", right(0.5, 1000), 0.1), _candidate("b", right(0.9, 1000), 2.5)], RULES)
    assert (found.chosen, found.runner_up, found.undecided) == ("b", "a", "")
    assert "the most accurate, and no student that is as accurate within the noise is faster" in found.reason


def test_of_equal_cost_the_most_accurate_is_shipped_then_the_first_name() -> None:
    names = [("c", BASE), ("b", BASE), ("a", _flipped(BASE, 1))]
    found = decide([_candidate(name, correct) for name, correct in names], RULES)
    assert (found.chosen, found.equals) == ("b", ("c",))
    assert "equal cost" in found.margin_text


def test_latencies_whose_intervals_overlap_are_equal_cost() -> None:
    better, worse = _flipped(BASE, 0, gains=2), BASE
    apart = decide([_candidate("better", better, (2.0, 1.9, 2.1)), _candidate("worse", worse, (1.7, 1.6, 1.8))], RULES)
    noisy = decide([_candidate("better", better, (2.0, 1.7, 2.3)), _candidate("worse", worse, (1.7, 1.6, 1.8))], RULES)
    assert (apart.chosen, noisy.chosen) == ("worse", "better")


def test_latencies_of_the_same_rounds_are_compared_within_each() -> None:
    """A machine that doubles its pace in half of the rounds hides no difference that every round shows."""
    pace = [1.0, 2.0] * 10
    jitter = np.random.default_rng(0).uniform(0.97, 1.03, size=(2, 20))
    slow, fast = (
        Latency(float(np.median(rounds)), min(rounds), max(rounds), tuple(rounds))
        for rounds in (factor * np.multiply(pace, noise) for factor, noise in zip((1.2, 1.0), jitter, strict=True))
    )
    assert slow.low < fast.high
    assert fast.faster_than(slow)
    assert not slow.faster_than(fast)
    shifted = replace(slow, rounds=slow.rounds[1:] + slow.rounds[:1])
    assert shifted.equals(fast)
    assert slow.equals(slow)
    # Five rounds do not suffice for an interval of 95 %: the ranges of the two must be apart.
    few = [replace(each, rounds=each.rounds[:5]) for each in (slow, fast)]
    assert few[0].equals(few[1])
    candidates = [replace(_candidate("better", _flipped(BASE, 0, gains=2)), latency=slow)]
    candidates.append(replace(_candidate("worse", BASE), latency=fast))
    found = decide(candidates, RULES)
    assert found.chosen == "worse"
    assert "times as long" in found.margin_text


@given(st.lists(st.sampled_from([0.5, 0.9, 1.0, 1.1, 2.0]), min_size=6, max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_latency_is_lower_where_the_sign_test_says_so(ratios: list[float]) -> None:
    """The interval of a median lies below 0.98 just where a two-sided sign test of the ratios against it does."""
    base = np.random.default_rng(0).uniform(0.5, 8, size=len(ratios))
    first, second = Latency(1, 0, 9, tuple(base * ratios)), Latency(1, 0, 9, tuple(base))
    for one, other, found in ((first, second, ratios), (second, first, [1 / each for each in ratios])):
        below = sum(each < 0.98 for each in found)
        significant = below > len(found) / 2 and binomtest(below, len(found)).pvalue <= 0.05
        assert one.faster_than(other) == significant


@pytest.mark.parametrize(
    ("rules", "broken"),
    [
        ({"max_ms": 2}, "latency 2.5 ms, expected at most 2 ms"),
        ({"max_mb": "0.3"}, "file 0.32 MB, expected at most 0.3 MB"),
        ({"max_macs": "20M"}, "MACs 41 M, expected at most 20 M"),
        ({"min_top1": 0.95}, "top-1 90.00 %, expected at least 95.00 %"),
    ],
)
def test_a_student_that_breaks_a_constraint_is_dropped_with_its_value(rules: dict[str, object], broken: str) -> None:
    big = _candidate("big", BASE, 2.5, megabytes=0.32, macs=41e6)
    small = _candidate("small", right(0.96, 1000), 1.0, megabytes=0.1, macs=1e6)
    found = decide([big, small], DecisionSettings.model_validate(rules))
    assert found.chosen == "small"
    assert [str(each) for each in found.dropped] == [f"big: {broken}"]
    assert f"Left out: big: {broken}." in found.sentences
    assert [check.met for check in found.checks] == [True]
    alone = decide([big], DecisionSettings.model_validate(rules))
    assert (alone.chosen, alone.reason) == (None, "No student meets the constraints.")


def test_what_was_not_measured_meets_no_constraint() -> None:
    found = decide([_candidate("a", BASE, None)], DecisionSettings(max_ms=2, max_macs=1e6))
    assert str(found.dropped[0]) == (
        "a: latency is unknown, expected at most 2 ms; MACs is unknown, expected at most 1 M"
    )


def test_a_bound_within_the_interval_is_said() -> None:
    found = decide([_candidate("a", BASE, (1.9, 1.7, 2.2))], DecisionSettings(max_ms=2, min_top1=0.8))
    assert found.chosen == "a"
    assert "Close to its bound: latency 1.9 ms (1.7 ms to 2.2 ms), expected at most 2 ms." in found.sentences
    assert sum("Close" in line for line in found.sentences) == 1


def test_noise_that_decides_is_said_with_the_images_that_would_settle_it() -> None:
    slow = right(0.9, 300)
    fast = _flipped(slow, 12, gains=6)  # 2 points behind, by 18 discordant samples
    found = decide([_candidate("slow", slow, 9.0), _candidate("fast", fast, 1.0)], RULES)
    assert found.chosen == "fast"
    difference = paired(fast, slow)
    assert difference.p_value == pytest.approx(binomtest(6, 18).pvalue)
    # Connor (1987) for d = 0.02 and q = 0.06, at 5 % with a power of 80 %.
    needed = ((1.959964 * math.sqrt(0.06) + 0.841621 * math.sqrt(0.06 - 0.0004)) / 0.02) ** 2
    assert found.more_images == math.ceil(needed) - 300
    assert found.undecided.startswith(
        "Undecided between fast and slow: their difference of −2.00 percentage points (95 % interval "
    )
    assert found.undecided.endswith(
        f"is within the noise of 300 test images; about {found.more_images:,} more test images would be needed."
    )


def test_with_the_images_that_it_asks_for_the_decision_stands() -> None:
    """In about four of five draws: so is the power of the test, of which the exact form has 77 %."""
    draw = np.random.default_rng(0)
    slow, fast = right(0.9, 300), _flipped(right(0.9, 300), 12, gains=6)
    more = decide([_candidate("slow", slow, 9.0), _candidate("fast", fast, 1.0)], RULES).more_images
    assert more is not None
    stands = 0
    for _ in range(60):
        kind = draw.choice(3, size=300 + more, p=[12 / 300, 6 / 300, 282 / 300])
        correct = draw.random(300 + more) < 0.9
        pair = [np.where(kind == 0, True, np.where(kind == 1, False, correct)), np.where(kind == 0, False, kind == 1)]
        pair[1] |= (kind == 2) & correct
        stands += not decide([_candidate("slow", pair[0], 9.0), _candidate("fast", pair[1], 1.0)], RULES).undecided
    assert stands >= 34  # 46 are expected, and 34 are nearly four deviations fewer


def test_noise_that_does_not_matter_leaves_the_decision_standing() -> None:
    slow = right(0.9, 100_000)
    fast = _flipped(slow, 110, gains=100)  # 0.01 points behind, and surely less than half a point
    found = decide([_candidate("slow", slow, 9.0), _candidate("fast", fast, 1.0)], RULES)
    assert (found.chosen, found.undecided, found.more_images) == ("fast", "", None)
    assert samples_needed(paired(fast, slow)) < 100_000


def test_figures_that_are_missing() -> None:
    assert decide([_candidate("a", BASE, None), _candidate("b", _flipped(BASE, 3), 3.0)], RULES).chosen == "b"
    untimed = decide([_candidate("a", _flipped(BASE, 1), None), _candidate("b", BASE, None)], RULES)
    assert untimed.chosen == "b"
    assert "latency at batch size 1 was not measured" in untimed.reason
    unlabeled = decide([_candidate("a", None, 2.0), _candidate("b", None, 1.0)], RULES)
    assert unlabeled.chosen == "b"
    assert "No student has a known accuracy" in unlabeled.reason
    assert decide([_candidate("b", None, None), _candidate("a", None, None)], RULES).chosen == "a"
    alone = decide([_candidate("a", BASE)], RULES)
    assert (alone.runner_up, alone.margin) == (None, None)
    assert "No other student is left" in alone.reason


def _mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    better, worse = int((first & ~second).sum()), int((second & ~first).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _reference(candidates: list[Candidate]) -> str:
    """The rule in a few lines, with scipy's binomial test and Wilson interval."""

    def lower(each: Candidate) -> float:
        assert each.correct is not None
        hits = int(each.correct.sum())
        return float(binomtest(hits, each.correct.size).proportion_ci(method="wilson").low)

    def cost(each: Candidate) -> Latency:
        assert each.latency is not None
        return each.latency

    leader = min(candidates, key=lambda each: (-round(lower(each), 9), cost(each).ms, each.name))
    level = []
    for each in candidates:
        assert each.correct is not None
        assert leader.correct is not None
        if each.correct.sum() >= leader.correct.sum() or _mcnemar(each.correct, leader.correct) >= 0.05:
            level.append(each)
    fastest = min(level, key=lambda each: (cost(each).ms, -round(lower(each), 9), each.name))
    equal = [each for each in level if cost(each).low <= cost(fastest).high and cost(fastest).low <= cost(each).high]
    return min(equal, key=lambda each: (-round(lower(each), 9), cost(each).ms, each.name)).name


@given(
    st.lists(
        st.tuples(st.integers(0, 14), st.integers(0, 6), st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=5
    )
)
@settings(max_examples=40, deadline=None)
def test_the_choice_is_that_of_an_independent_implementation(drawn: list[tuple[int, int, int, int]]) -> None:
    base = right(0.8, 100)
    candidates = [
        _candidate(f"s{place}", _flipped(base, losses, gains), (float(ms), ms - half / 2, ms + half / 2))
        for place, (losses, gains, ms, half) in enumerate(drawn)
    ]
    assert decide(candidates, RULES).chosen == _reference(candidates)


def test_copies_of_one_network_among_others_are_decided_by_their_accuracy() -> None:
    """Four candidates, two of them copies, however noisy the machine is: copies share one timing."""
    for spread in (0.0, 0.3, 0.9):
        found = result(
            student("copy-a", top1=0.900, ms=1.0, spread=spread, shift=3),
            student("copy-b", top1=0.912, ms=1.0, spread=spread, shift=3),
            student("large", top1=0.9124, ms=9.0, spread=spread, shift=3, architecture="resnet110"),
            student("small", top1=0.700, ms=0.05, spread=spread, shift=3, architecture="tiny"),
        )
        decided = verdict(found)
        assert decided.chosen == "copy-b"
        front = {each.name for each in found.students if each.on_front}
        assert "copy-b" in front
        assert "copy-a" not in front
    same = result(student("copy-a", top1=0.9, ms=1.0, spread=0.3), student("copy-b", top1=0.9, ms=1.0, spread=0.3))
    assert [each.on_front for each in same.students] == [True, True]
    assert (verdict(same).chosen, verdict(same).equals) == ("copy-a", ("copy-b",))


def test_the_engine_to_ship_decides() -> None:
    """MobileNetV2 is slower than resnet8 in eager mode, and here faster with ONNX Runtime."""
    pair = [
        student("mobile", top1=0.90, ms={("eager", "fp32"): 4.0, ("onnx", "fp32"): 0.4}, architecture="mobilenetv2"),
        student("resnet", top1=0.90, ms={("eager", "fp32"): 1.0, ("onnx", "fp32"): 0.6}),
    ]
    assert verdict(result(*pair)).chosen == "resnet"
    shipped = verdict(result(*(replace(each, ship_engine="onnx") for each in pair)))
    assert shipped.chosen == "mobile"
    assert "0.4 ms per image (onnx, batch size 1, median)" in shipped.reason


def test_the_file_of_the_engine_to_ship_counts() -> None:
    cost = Cost(parameters=1, macs=1, format_bytes={"onnx": 900_000, "onnx int8": 300_000})
    ms = {("eager", "fp32"): 4.0, ("onnx", "int8"): 0.4}
    one = student("a", top1=0.9, ms=ms, cost=cost, file_bytes=800_000)
    values = [
        verdict(result(replace(one, ship_engine=engine), rules=DecisionSettings(max_mb=0.5))).dropped
        for engine in ("eager", "onnx")
    ]
    assert [[str(each) for each in dropped] for dropped in values] == [["a: file 0.8 MB, expected at most 0.5 MB"], []]


def test_several_seeds_are_decided_by_their_mean_and_the_first_is_shipped() -> None:
    runs = [student(f"lucky/seed-{seed}", top1=share, ms=1.0, seed=seed) for seed, share in ((3, 0.8), (4, 0.99))]
    lucky = average(runs, name="lucky", path=runs[0].path.parent / "lucky")
    steady = verdict(result(lucky, student("steady", top1=0.91, ms=2.0, architecture="other")))
    assert (steady.chosen, steady.run_text) == ("steady", "")
    found = verdict(result(lucky, student("slow", top1=0.87, ms=2.0, architecture="other")))
    assert found.chosen == "lucky"
    assert "89.50 % (95 % interval 88.88 to 90.09; 2 seeds, ± 13.44)" in found.reason
    assert "runs/lucky-seed-3, the first seed: selecting" in found.run_text
    assert found.run_text in found.sentences
    one = verdict(result(average(runs[:1], name="one", path=runs[0].path.parent / "one")))
    assert one.run_text == "The run to ship is runs/lucky-seed-3."


def test_other_goals_are_decided_by_their_own_samples() -> None:
    robust = student("robust", top1=0.80, ms=1.0, attacked=right(0.5, 500))
    plain = student("plain", top1=0.90, ms=1.0, attacked=right(0.1, 500))
    figures = [{**each.figures, "adversarial_top1": share} for each, share in ((robust, 0.5), (plain, 0.1))]
    pair = [replace(each, figures=given) for each, given in zip((robust, plain), figures, strict=True)]
    assert verdict(result(*pair)).chosen == "plain"
    found = verdict(result(*pair, rules=DecisionSettings(goal="adversarial_top1")))
    assert found.chosen == "robust"
    assert "top-1 under attack of 50.00 %" in found.reason
    fifth = verdict(result(*pair, rules=DecisionSettings(goal="top5")))
    assert "top-5 of 99.00 %" in fifth.reason
