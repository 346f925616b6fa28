"""Outputs of a teacher of other classes: found by name, WordNet id or file, combined exactly, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe.errors import DatasetError
from kdpipe.teacher.classes import Names, OutputMap, combine, find_outputs, imagenet, is_wordnet, read_given, read_names

ANIMALS = Names(("bee", "ant", "great white shark", "wasp", "crane", "crane"))


def found(*classes: str, names: Names | None = ANIMALS, total: int = 6, **given: tuple[str, ...]) -> OutputMap | None:
    return find_outputs(classes, total=total, names=names, given=given, teacher="T", spec="folder:D")


def test_probability_of_a_class_of_several_is_the_sum_of_theirs() -> None:
    logits = np.random.default_rng(0).normal(0, 40, (64, 7)).astype(np.float32)
    logits[0] += 3e4
    logits[1] -= 3e4
    outputs = ((3,), (6, 0, 2), (1, 5))
    got = combine(torch.from_numpy(logits), outputs)
    assert got.dtype == torch.float32
    assert got[:, 0].numpy().tobytes() == logits[:, 3].tobytes()
    wide = np.exp((logits - logits[:, [0, 1, 2, 3, 5, 6]].max(axis=1, keepdims=True)).astype(np.float64))
    kept = np.stack([wide[:, list(each)].sum(axis=1) for each in outputs], axis=1)
    expected = kept / kept.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got.double().softmax(dim=1).numpy()[2:], expected[2:], atol=2e-5)
    np.testing.assert_allclose(got.double().softmax(dim=1).numpy()[:2], expected[:2], atol=5e-3)  # 3e4 in float32
    assert torch.isfinite(got).all()


def test_names_are_found_whatever_their_case_and_underscores() -> None:
    shown = found("Ant", "Great_White-Shark", "bee")
    assert shown is not None
    assert shown.outputs == ((1,), (2,), (0,))
    lines = shown.lines("T", "folder:D")
    assert lines[0] == "The 3 classes of folder:D from the 6 of T: 3 by name, 3 of its outputs are not used."
    assert "  Great_White-Shark  2 great white shark" in lines


@pytest.mark.parametrize(
    ("asked", "output"),
    [("tench", 0), ("Tinca tinca", 0), ("n01440764_tench", 0), ("maillot", 1), ("tank suit", 2), ("cafe\u0301", 3)],
)
def test_names_are_found_among_synonyms_and_in_any_unicode_form(asked: str, output: int) -> None:
    names = Names(("tench, Tinca tinca", "maillot", "maillot, tank suit", "caf\u00e9"))
    shown = found(asked, names=names, total=4)
    assert shown is not None
    assert shown.outputs == ((output,),)


def test_a_file_has_precedence_over_names_and_takes_names_and_indices() -> None:
    shown = found("bee", "insect", bee=("4",), insect=("ant", "0", "wasp"))
    assert shown is not None
    assert shown.outputs == ((4,), (1, 0, 3))
    by_name = found("a", "b", names=Names(("1", "0")), total=2, a=("0",), b=("1",))
    assert by_name is not None
    assert by_name.outputs == ((1,), (0,))


def test_nothing_is_mapped_where_classes_are_the_same_or_nothing_is_known() -> None:
    assert found("a", "b", "c", names=None, total=3) is None
    assert found("0", "1", names=Names(("ant", "bee")), total=2) is None
    assert found("bee", "ant", names=Names(("bee", "ant")), total=2) is None
    other = found("ant", "bee", names=Names(("bee", "ant")), total=2)
    assert other is not None
    assert other.outputs == ((1,), (0,))


@pytest.mark.parametrize(
    ("classes", "given", "parts"),
    [
        (("ant", "moth", "fly"), {}, ("no class of the teacher is 'moth', 'fly'", "--class-map FILE")),
        (("ant", "crane"), {}, ("'crane' may be 4 crane or 5 crane",)),
        (("ant", "Ant"), {}, ("'ant' and 'Ant' would both be its output 1",)),
        (("ant", "b"), {"b": ("1",)}, ("would both be its output 1. Correct --class-map",)),
        (("ant", "b"), {"b": ("crane",)}, ("outputs 4 and 5", "give the index")),
        (("ant", "b"), {"b": ("6",)}, ("the outputs 0 to 5",)),
        (("ant", "b"), {"b": ("beee",)}, ("does not have", "bee")),
        (("ant", "b"), {"c": ("bee",)}, ("names the class 'c', which folder:D does not have",)),
    ],
)
def test_what_is_ambiguous_or_missing_is_refused(
    classes: tuple[str, ...], given: dict[str, tuple[str, ...]], parts: tuple[str, ...]
) -> None:
    with pytest.raises(DatasetError) as refusal:
        found(*classes, **given)
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_a_moved_name_among_as_many_classes_is_refused() -> None:
    with pytest.raises(DatasetError, match="no class of the teacher is 'moth'"):
        found("ant", "bee", "moth", names=Names(("bee", "ant", "fly")), total=3)


def test_a_class_is_missed_also_where_the_name_of_an_ambiguous_one_begins_with_its_own() -> None:
    with pytest.raises(DatasetError, match="'c' d' may be 0 c' d or 1 c' d; no class of the teacher is 'c'"):
        found("ant", "c", "c' d", names=Names(("c' d", "c' d", "ant")), total=3)


def test_imagenet_is_known_by_name_and_wordnet_id() -> None:
    names = imagenet()
    assert len(names.names) == 1000
    assert [each for (each,) in names.aliases] == sorted({each for (each,) in names.aliases})
    shown = found("n02206856", "n01440764_tench", "ant", names=names, total=1000)
    assert shown is not None
    assert shown.outputs == ((309,), (0,), (310,))
    assert is_wordnet(("n01440764", "n02206856_bee"))
    assert not is_wordnet(("n01440764", "bee"))
    assert not is_wordnet(("n00000001",))
    with pytest.raises(DatasetError, match="'crane' may be 134 crane or 517 crane"):
        found("crane", names=names, total=1000)


def test_files_of_maps_and_names(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text('class,teacher_class\nbird,80,"cock, rooster",\nfish,0\nbird,7\n')
    assert read_given(path) == {"bird": ("80", "cock, rooster", "7"), "fish": ("0",)}
    for text, part in (("bird\n", "line 1: expected"), ("bird,1\nbird,1\n", "line 2: the class bird occurs twice")):
        path.write_text(text)
        with pytest.raises(DatasetError, match=part):
            read_given(path)
    path.write_text("ant\nbee\n")
    assert read_names(path).names == ("ant", "bee")
    path.write_text("ant\n\nbee\n")
    with pytest.raises(DatasetError, match="line 2 is empty"):
        read_names(path)
