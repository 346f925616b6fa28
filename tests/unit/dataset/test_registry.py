"""Kinds of datasets by name, their forms, and adding one; settings; what importing the room costs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from pydantic import ValidationError

from kdpipe.dataset import all_kinds
from kdpipe.dataset.registry import resolve
from kdpipe.dataset.settings import DatasetSettings
from kdpipe.errors import DatasetError


def test_every_kind_has_a_form_and_a_line_of_help() -> None:
    assert [kind.usage for kind in all_kinds()] == [
        "digits",
        "folder:PATH",
        "hf:PATH_OR_NAME",
        "npz:FILE",
        "parquet:GLOB",
        "cifar10:PATH",
        "cifar100:PATH",
        "torchvision:NAME:PATH",
        "webdataset:GLOB",
        "package.module:function",
    ]
    for kind in all_kinds():
        assert kind.help.endswith(".")
        assert "\n" not in kind.help
        assert kind.source == "" or kind.source.startswith("https://")


@pytest.mark.parametrize(
    ("spec", "name", "values"),
    [
        ("digits", "digits", ()),
        ("folder:a:b,c+d=(e", "folder", ("a:b,c+d=(e",)),
        ("torchvision:MNIST:/x:y", "torchvision", ("MNIST", "/x:y")),
        ("cifar10:~/c", "cifar10", ("~/c",)),
        ("digits:build", "package.module:function", ("digits:build",)),
        ("a.b_1.c:d", "package.module:function", ("a.b_1.c:d",)),
    ],
)
def test_a_spec_is_divided_at_the_colons_of_its_form(spec: str, name: str, values: tuple[str, ...]) -> None:
    kind, found = resolve(spec)
    assert (kind.name, found) == (name, values)


@pytest.mark.parametrize(
    ("spec", "lacking"),
    [("folder", "PATH"), ("torchvision", "NAME"), ("torchvision::/x", "NAME"), ("torchvision:MNIST:", "PATH")],
)
def test_a_missing_value_is_named_with_the_form(spec: str, lacking: str) -> None:
    with pytest.raises(DatasetError, match=f"^dataset '{spec}' lacks {lacking}, expected {spec.split(':')[0]}:"):
        resolve(spec)


def test_an_unknown_name_lists_the_forms() -> None:
    with pytest.raises(DatasetError, match=r"expected one of digits, folder:PATH, .*; did you mean 'digits'\?$"):
        resolve("digits!")
    for path, kind in (("a/b.npz", "npz"), ("train.parquet", "parquet"), ("*.tar", "webdataset")):
        with pytest.raises(DatasetError, match=re.escape(f"; did you mean '{kind}:{path}'?")):
            resolve(path)


STRIPES = '''
import numpy as np

from kdpipe.dataset import Listing, Request, all_kinds, load, register
from kdpipe.dataset.items import ItemSource


@register("stripes:COUNT", source="https://example.org")
def list_stripes(request: Request, count: str) -> Listing:
    """Black and white images."""
    items = [(np.full((2, 2), 255 * (index % 2), dtype=np.uint8), index % 2) for index in range(int(count))]
    labels = np.array([label for _, label in items], dtype=np.int32)
    keys = tuple(f"stripes/{request.split}/{index}" for index in range(len(items)))
    return Listing("stripes", ("black", "white"), keys, labels, ItemSource("stripes", lambda: items))


(kind,) = [kind for kind in all_kinds() if kind.name == "stripes"]
assert (kind.usage, kind.values, kind.help) == ("stripes:COUNT", ("COUNT",), "Black and white images.")
assert kind.source == "https://example.org"
found = load("stripes:6", "train", 4)
assert sorted(found.labels.tolist()) == [0, 0, 1, 1]
assert [image.unique().tolist() for image in found.images(range(4))] == [[255 * label] for label in found.labels]
try:
    register("stripes:PATH")(list_stripes)
except ValueError as error:
    assert "there is a dataset kind 'stripes' already" in str(error)
else:
    raise AssertionError("a name was registered twice")
'''


def test_a_registered_kind_is_listed_and_loaded() -> None:
    """In a process of its own, so that the kind is not there in other tests."""
    subprocess.run([sys.executable, "-c", STRIPES], check=True)


def test_importing_the_room_does_not_import_torch() -> None:
    program = (
        "import sys; from kdpipe import dataset; from kdpipe.dataset import settings; dataset.all_kinds();"
        " sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_settings_are_checked_and_documented() -> None:
    settings = DatasetSettings(data="digits", limit_train=5)
    assert (settings.limit_test, settings.labels_per_class, settings.download, settings.loading) == (
        None,
        None,
        False,
        "auto",
    )
    for wrong in (
        {},
        {"data": "digits", "limit_train": 0},
        {"data": "d", "loading": "disk"},
        {"data": "d", "workers": 0},
        {"data": "d", "x": 1},
    ):
        with pytest.raises(ValidationError):
            DatasetSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        settings.data = "folder:x"  # type: ignore[misc]
    for field in DatasetSettings.model_fields.values():
        assert field.description
        assert field.description.endswith(".")
