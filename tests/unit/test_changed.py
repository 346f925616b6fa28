"""Which tests `make quick` runs."""

from __future__ import annotations

import pytest

from tests.changed import tests_of as found_for


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("pipeline/kdpipe/training/loop.py", "tests/unit/training"),
        ("pipeline/kdpipe/registry.py", None),
        ("pipeline/kdpipe/spec.py", "tests/unit/test_spec.py"),
        ("stages/flags.py", "tests/unit/stages"),
        ("tests/unit/views/test_views_color.py", "tests/unit/views/test_views_color.py"),
        ("benchmarks/losses.py", "tests/test_benchmarks.py"),
        ("README.md", None),
    ],
)
def test_a_file_has_the_tests_of_its_room(file: str, tests: str | None) -> None:
    assert found_for([file]) == {"tests/test_structure.py", *([tests] if tests else [])}


def test_a_file_in_a_folder_that_is_tested_is_not_tested_twice() -> None:
    files = ["pipeline/kdpipe/views/color.py", "tests/unit/views/test_views_color.py"]
    assert found_for(files) == {"tests/test_structure.py", "tests/unit/views"}
