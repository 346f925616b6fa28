"""Recipes as text: canonical forms, versions, the order of operations, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from enum import IntEnum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.errors import RecipeError
from kdpipe.registry import Parameter
from kdpipe.views import OPERATIONS, PHASES, Recipe, augment, erase, geometry, mixing
from kdpipe.views.recipe import Step, claim

EXAMPLES = {
    "none": "none/1",
    "crop-flip": "crop-flip/2",
    "rrc-flip": "rrc-flip/1",
    "rrc-flip:0.25": "rrc-flip/1",
    "rrc-flip:0.25,0.9,0.5,2": "rrc-flip/1",
    "color": "color/1",
    "color:0.8,0.8,0.8,0.2": "color/1",
    "trivial": "trivial/1",
    "randaug:2,9": "randaug/1",
    "erase": "erase/1",
    "erase:0.25": "erase/1",
    "mask:0.4": "mask/1",
    "mixup:0.2": "mixup/1",
    "cutmix:1": "cutmix/1",
    "rrc-flip+color+trivial+erase+mixup:0.2+cutmix:1": "rrc-flip/1+color/1+trivial/1+erase/1+mixup/1+cutmix/1",
}


@pytest.mark.parametrize(("text", "version"), EXAMPLES.items())
def test_canonical_recipes_round_trip(text: str, version: str) -> None:
    recipe = Recipe.parse(text)
    assert str(recipe) == text
    assert recipe.version == version
    assert recipe == Recipe.parse(str(recipe))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" crop-flip ", "crop-flip"),
        ("rrc-flip:0.08,1", "rrc-flip"),
        ("rrc-flip:0.250,1.0", "rrc-flip:0.25"),
        ("rrc-flip: 0.25 + color", "rrc-flip:0.25+color"),
        ("randaug:2.0,9", "randaug:2,9"),
        ("mixup:2e-1", "mixup:0.2"),
        ("color:0.4,0.4,0.4,0", "color:0.4,0.4,0.4,0"),
    ],
)
def test_other_spellings_become_canonical(text: str, canonical: str) -> None:
    assert str(Recipe.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("rrc-flip:scale_min=0.25+color+randaug:steps=2,level=9", "rrc-flip:0.25+color+randaug:2,9"),
        ("rrc-flip:scale_max=1,scale_min=0.25", "rrc-flip:0.25"),
        ("crop-flip+mixup:alpha=0.2", "crop-flip+mixup:0.2"),
        ("rrc-flip:ratio_min=1,ratio_max=1+erase:probability=0.1", "rrc-flip:0.08,1,1,1+erase:0.1"),
        ("rrc-flip:0.25,ratio_max=2", "rrc-flip:0.25,1,0.75,2"),
        ("randaug:2,level=9", "randaug:2,9"),
        ("rrc-flip:1/4", "rrc-flip:0.25"),
        ("rrc-flip:ratio_min=3/4,ratio_max=4/3", "rrc-flip"),
    ],
)
def test_values_by_key_are_those_by_position(text: str, canonical: str) -> None:
    assert str(Recipe.parse(text)) == canonical
    assert Recipe.parse(text) == Recipe.parse(canonical)


def test_augmenting_and_mixing() -> None:
    assert not Recipe.parse("none").augments
    assert Recipe.parse("color").augments
    assert not Recipe.parse("rrc-flip+color+erase").mixes
    assert Recipe.parse("rrc-flip+cutmix:1").mixes


def test_a_mixing_recipe_has_a_table_for_each_operation() -> None:
    recipe = Recipe.parse("mixup:1+cutmix:0.3")
    assert set(recipe.thresholds) == {"mixup", "cutmix"}
    assert recipe.thresholds["mixup"][127] == 2**31 - 2**23
    assert Recipe.parse("crop-flip").thresholds == {}


def test_a_stored_table_is_taken_as_it_is() -> None:
    table = tuple(range(256))
    assert Recipe.parse("mixup:0.2", thresholds={"mixup": table}).thresholds == {"mixup": table}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("crop-filp", "did you mean 'crop-flip'"),
        ("cropflip", "did you mean 'crop-flip'"),
        ("crop_flip", "did you mean 'crop-flip'"),
        ("Crop-Flip", "did you mean 'crop-flip'"),
        ("rcc-flip", "did you mean 'rrc-flip'"),
        ("rrc-flip+colour", "did you mean 'color'"),
        ("crop-flip+mix-up:0.2", "did you mean 'mixup'"),
        ("triviall", "did you mean 'trivial'"),
        ("rrc-flip:scal_min=0.5", "did you mean 'scale_min'"),
        ("mixup:alpa=0.5", "did you mean 'alpha'"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        Recipe.parse(text)


def test_an_unknown_operation_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=f"Known: {', '.join(OPERATIONS.names)}"):
        Recipe.parse("qqqq")


def test_operations_are_listed_in_the_order_in_which_an_image_is_made() -> None:
    """Whichever of their files were imported first."""
    phases = [Step(name).operation.phase for name in OPERATIONS.names if name not in ("crop-flip", "rrc-flip")]
    assert phases == sorted(phases, key=PHASES.index)
    assert all(entry.help.endswith(".") for entry in OPERATIONS)


def test_settings_can_name_recipes_without_torch() -> None:
    code = "import sys, kdpipe.views.settings, kdpipe.views.recipe; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("text", ["", " ", "crop-flip+", "+", ":2"])
def test_a_missing_name_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="has a name missing: write NAME:VALUE"):
        Recipe.parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mixup", "lacks alpha: write mixup:ALPHA"),
        ("randaug:2", "lacks level: write randaug:STEPS,LEVEL"),
        ("randaug:2,31", "cannot take level=31, expected a whole number, 0 to 30"),
        ("randaug:1.5,9", "cannot take steps=1.5, expected a whole number"),
        ("mask:1.5", "cannot take ratio=1.5, expected a number, 0 to 1"),
        ("mixup:0", "cannot take alpha=0, expected a number, 0.01 to 100"),
        ("mixup:nan", "cannot take alpha=nan"),
        ("mixup:a", "cannot take alpha=a"),
        ("mixup:", "cannot take alpha="),
        ("mixup:0.2,alpha=0.2", "has alpha twice"),
        ("mixup:alpha=0.2,alpha=0.2", "has alpha twice"),
        ("crop-flip:4", "takes no values without a key, found 1"),
        ("rrc-flip:0.5,0.2", "has the scale 0.5 to 0.2; swap them"),
        ("rrc-flip:ratio_max=0.5", "has the ratio 0.75 to 0.5; swap them"),
        ("rrc-flip:scale_max=true", "cannot take scale_max=true, expected a number"),
        ("crop-flip+rrc-flip", "crops twice, by crop-flip and rrc-flip"),
        ("color+color", "has 'color' twice"),
        ("none+crop-flip", "joins 'none' with other operations"),
        ("mixup:0.2+crop-flip", "Write 'crop-flip\\+mixup:0.2'"),
        ("erase+trivial+rrc-flip:0.5", "Write 'rrc-flip:0.5\\+trivial\\+erase'"),
        ("crop-flip+flip", "has 'flip' twice"),
        ("rrc+crop", "crops twice, by rrc and crop"),
        ("flip+crop", "Write 'crop\\+flip'"),
        ("[crop-flip, color]", "unknown operation '\\[crop-flip, color\\]'"),
        ("- crop-flip", "unknown operation '- crop-flip'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint) as caught:
        Recipe.parse(text)
    assert "\n" not in str(caught.value)


def test_no_two_parameters_share_a_stream() -> None:
    streams = [stream for module in (geometry, augment, erase, mixing) for stream in module.Stream]
    most = next(parameter for parameter in OPERATIONS["randaug"].parameters if parameter.name == "steps")
    assert most.range is not None
    assert 16 in most.range
    assert 17 not in most.range
    last = augment.Stream.RANDAUG + 2 * 16 - 1
    assert len(set(streams)) == len(streams)
    assert all(not augment.Stream.RANDAUG < stream <= last for stream in streams)
    assert max(*streams, last) < 2**31


@pytest.mark.parametrize("number", [3, 97, 140])
def test_a_stream_that_is_taken_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"stream {number} belongs to kdpipe.views"):
        claim(IntEnum("Stream", {"NEW": number}))


def test_pairs_are_two_operations_in_one_name() -> None:
    assert Recipe.parse("rrc-flip:0.25+color").of("box", "flip") == Recipe.parse("rrc:0.25+flip").steps
    assert Recipe.parse("crop-flip+mixup:1").of("box", "flip") == Recipe.parse("crop+flip").steps
    assert Recipe.parse("crop-flip") != Recipe.parse("crop+flip")


def numbers(parameter: Parameter) -> st.SearchStrategy[float]:
    """Return values in a parameter's range, which its description gives as ``LOW to HIGH``."""
    assert parameter.range is not None
    low, high = map(float, re.findall(r"[\d.]+", parameter.range.description)[:2])
    if parameter.type is int:
        return st.integers(int(low), int(high))
    drawn = st.floats(low, high)
    return drawn.map(lambda value: value if value in parameter.range else max(low, round(2 * value) / 2))


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """Any recipe that is allowed, with any values."""
    steps = {entry.name: Step(entry.name) for entry in OPERATIONS if entry.name != "none"}
    parts: list[str] = []
    used: set[str] = set()
    for phase in PHASES:
        known = [name for name, step in steps.items() if step.operation.phase == phase]
        most = 1 if phase == "box" else len(known)
        for name in draw(st.lists(st.sampled_from(known), max_size=most, unique=True)):
            if name in used:
                continue
            used |= {part.name for part in steps[name].parts}
            values = {each.name: draw(numbers(each)) for each in OPERATIONS[name].parameters}
            for low in [each for each in values if each.endswith("_min")]:
                high = low.replace("_min", "_max")
                values[low], values[high] = sorted((values[low], values[high]))
            by_key = draw(st.booleans())
            listed = ",".join(f"{key}={value!r}" if by_key else repr(value) for key, value in values.items())
            parts.append(f"{name}:{listed}" if listed else name)
    return "+".join(parts) or "none"


@given(recipes())
@settings(max_examples=200, deadline=None)
def test_the_canonical_form_is_read_back_as_the_same(text: str) -> None:
    recipe = Recipe.parse(text)
    assert Recipe.parse(str(recipe)) == recipe
    assert str(Recipe.parse(str(recipe))) == str(recipe)
