"""Recipes as text and as YAML."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.errors import RecipeError
from kdpipe.views import OPERATIONS, PHASES, Recipe

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
        ("[rrc-flip: {scale: [0.25, 1]}, color, randaug: {steps: 2, level: 9}]", "rrc-flip:0.25+color+randaug:2,9"),
        ("- crop-flip\n- mixup: 0.2\n", "crop-flip+mixup:0.2"),
        ("- rrc-flip:\n    ratio: [1, 1]\n- erase: {probability: 0.1}\n", "rrc-flip:0.08,1,1,1+erase:0.1"),
        ("{rrc-flip: null, cutmix: {alpha: 1}}", "rrc-flip+cutmix:1"),
        ("- randaug: [1, 5]", "randaug:1,5"),
    ],
)
def test_yaml_says_the_same(text: str, canonical: str) -> None:
    assert str(Recipe.parse(text)) == canonical
    assert Recipe.parse(yaml.safe_load(text)) == Recipe.parse(canonical)


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
        ("[rrc-flip: {scal: [0, 1]}]", "did you mean 'scale"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        Recipe.parse(text)


@pytest.mark.parametrize("text", ["", "qqqq", "crop-flip+", "+"])
def test_an_unknown_recipe_lists_the_known_ones(text: str) -> None:
    with pytest.raises(RecipeError, match="Known: none, crop-flip, rrc-flip, color"):
        Recipe.parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mixup", "lacks alpha: write mixup:ALPHA"),
        ("randaug:2", "lacks level: write randaug:STEPS,LEVEL"),
        ("randaug:2,31", "has level '31', expected a whole number from 0 to 30"),
        ("randaug:1.5,9", "has steps '1.5', expected a whole number"),
        ("mask:1.5", "has ratio '1.5', expected a number from 0 to 1"),
        ("mixup:0", "has alpha '0', expected a number from 0.01 to 100"),
        ("mixup:nan", "has alpha 'nan'"),
        ("mixup:a", "has alpha 'a'"),
        ("mixup:", "has alpha ''"),
        ("crop-flip:4", "takes 0 numbers at most, got 1"),
        ("rrc-flip:0.5,0.2", "has the scale 0.5 to 0.2; swap them"),
        ("[rrc-flip: {scale: [0.5, true]}]", "has scale_max 'True'"),
        ("crop-flip+rrc-flip", "crops twice, by crop-flip and rrc-flip"),
        ("color+color", "has 'color' twice"),
        ("none+crop-flip", "joins 'none' with other operations"),
        ("mixup:0.2+crop-flip", "Write 'crop-flip\\+mixup:0.2'"),
        ("erase+trivial+rrc-flip:0.5", "Write 'rrc-flip:0.5\\+trivial\\+erase'"),
        ("[1, 2]", "has 1, expected the name of an operation"),
        ("[rrc-flip: {scale: [0.5", "not valid YAML"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint) as caught:
        Recipe.parse(text)
    assert "\n" not in str(caught.value)


def test_no_two_parameters_share_a_stream() -> None:
    from kdpipe.views.operations import Stream

    last = Stream.RANDAUG + 2 * int(OPERATIONS["randaug"].parameters[0].high)
    assert len({int(stream) for stream in Stream}) == len(Stream.__members__)
    assert max(stream for stream in Stream if stream != Stream.RANDAUG) < Stream.RANDAUG < last < 2**31


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """Any recipe that is allowed, with any numbers."""
    parts = []
    for phase in PHASES:
        known = [
            operation for operation in OPERATIONS.values() if operation.phase == phase and operation.name != "none"
        ]
        most = 1 if phase == "box" else len(known)
        for operation in draw(st.lists(st.sampled_from(known), max_size=most, unique_by=lambda known: known.name)):
            numbers = {
                parameter.name: draw(
                    st.integers(int(parameter.low), int(parameter.high))
                    if parameter.whole
                    else st.floats(parameter.low, parameter.high)
                )
                for parameter in operation.parameters
            }
            for known_range in operation.ranges:
                low, high = f"{known_range}_min", f"{known_range}_max"
                numbers[low], numbers[high] = sorted((numbers[low], numbers[high]))
            listed = ",".join(map(repr, numbers.values()))
            parts.append(f"{operation.name}:{listed}" if listed else operation.name)
    return "+".join(parts) or "none"


@given(recipes())
@settings(max_examples=200, deadline=None)
def test_the_canonical_form_is_read_back_as_the_same(text: str) -> None:
    recipe = Recipe.parse(text)
    assert Recipe.parse(str(recipe)) == recipe
    assert str(Recipe.parse(str(recipe))) == str(recipe)
