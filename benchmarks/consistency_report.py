"""Report of ``consistency.py``: figures for each arm, differences in pairs, and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finished import Run, paired, spread
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

DPI, INK = 160, "#333333"
BANDS = {
    "live": ("#D55E00", "-", "live teacher, the student's crop"),
    "fixed": ("#009E73", "--", "fixed label of the plain image"),
    "mismatch": ("#CC79A7", "-.", "cached label of another crop"),
    "none": ("#7A7A7A", ":", "labels only"),
}
"""Color, dashes and label of the arms that do not depend on the number of cached views."""


def summary(runs: Sequence[Run], arms: Sequence[str]) -> dict[str, Any]:
    """Gather finished runs arm by arm, and their top-1 in pairs of equal seed."""
    found = {arm: {run["seed"]: run for run in runs if run["arm"] == arm} for arm in arms}
    found = {arm: dict(sorted(by_seed.items())) for arm, by_seed in found.items() if by_seed}
    caches = [arm for arm in found if arm.startswith("cache-")]
    pairs = {"live": [arm for arm in found if arm != "live"], "fixed": caches, "mismatch": caches}
    return {
        "arms": {arm: _arm(list(by_seed.values())) for arm, by_seed in found.items()},
        "top1_minus": {
            base: {arm: paired(found[arm], found[base]) for arm in others}
            for base, others in pairs.items()
            if base in found
        },
    }


def _arm(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "seeds": [run["seed"] for run in runs],
        "top1": spread([run["top1"] for run in runs]),
        "agreement": spread([run["agreement"] for run in runs]),
        "teacher_passes_per_sample": runs[0]["teacher_passes_per_sample"],
        "plane_bytes": runs[0]["plane_bytes"],
        "seconds": [run["seconds"] for run in runs],
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the top-1 of cached views over their number, between bands of mean and deviation of the other arms."""
    figure = Figure(figsize=(7.2, 4.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(visible=True, axis="y", color="#E6E6E6", linewidth=0.7)
    top1 = {arm: found["top1"] for arm, found in result["arms"].items()}
    for arm, (color, dashes, label) in BANDS.items():
        if arm in top1:
            mean, spread = 100 * top1[arm]["mean"], 100 * (top1[arm]["std"] or 0)
            axes.axhspan(mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
            axes.axhline(mean, color=color, linestyle=dashes, linewidth=1.4, label=label)
    cached = {int(arm.removeprefix("cache-")): found for arm, found in top1.items() if arm.startswith("cache-")}
    if cached:
        axes.errorbar(
            list(cached),
            [100 * found["mean"] for found in cached.values()],
            yerr=[100 * (found["std"] or 0) for found in cached.values()],
            fmt="o-",
            color="#0072B2",
            capsize=4,
            linewidth=1.6,
            label="K cached views, the student's crops",
            zorder=3,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(cached)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0.85, max(cached, default=1) / 0.85)
    axes.set_xlabel("cached views K")
    axes.set_ylabel("test top-1 after the last epoch (%)")
    settings = result["settings"]
    seeds = max((len(found["values"]) for found in top1.values()), default=0)
    axes.set_title(
        f"{settings['student']} from {settings['teacher']}, {settings['samples']:,} images, {settings['recipe']}, "
        f"{settings['epochs']} epochs; mean and standard deviation of {seeds} seeds",
        fontsize=8.5,
        loc="left",
    )
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
