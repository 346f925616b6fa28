"""The grammar of named things: what parameters take, and how a thing is written."""

from __future__ import annotations

import pytest

from kdpipe.errors import ParamsError
from kdpipe.registry import Count, Registry, Share


def _registry() -> Registry[tuple[object, ...]]:
    registry: Registry[tuple[object, ...]] = Registry("shape")

    @registry.register("arc")
    def arc(radius: Share, *, every: Count, over: Count | None = None) -> tuple[object, ...]:
        """Part of a circle."""
        return radius, every, over

    return registry


def test_an_optional_number_keeps_its_range() -> None:
    assert _registry().make("arc:1/2,every=3,over=4") == (0.5, 3, 4)
    assert _registry().make("arc:1/2,every=3") == (0.5, 3, None)
    with pytest.raises(ParamsError, match="the shape arc cannot take over=0, expected a whole number, 1 or more"):
        _registry().make("arc:1/2,every=3,over=0")


def test_a_parameter_that_is_given_by_key_is_shown_with_it() -> None:
    assert _registry()["arc"].usage == "arc:RADIUS,every=EVERY,[over=OVER]"
    with pytest.raises(ParamsError, match="the shape arc lacks every: write arc:RADIUS,every=EVERY,"):
        _registry().make("arc:1/2")


def test_a_whole_number_from_python_is_no_float() -> None:
    for wrong in (2.5, 3.0):
        with pytest.raises(ParamsError, match=r"cannot take every=.*, expected a whole number"):
            _registry().make("arc:1/2", every=wrong)
