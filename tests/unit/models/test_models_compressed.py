"""Names of compressed networks: what they build, and what is refused of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from kdpipe import models
from kdpipe.errors import ModelError, UntrustedCodeError
from kdpipe.models.compressed import Shape, factors, parse, replace, shape_of

HALF = (0.5, 0.5, 0.5)
NARROW = "compressed:resnet8,widths=-12.12.12-.-.-12"
"""resnet8 with 12 channels in the stem and the first block, as far as they are told; not a working network."""

NUMBERS = st.none() | st.integers(1, 9_999_999)
PAIRS = st.tuples(NUMBERS, NUMBERS)


def _outputs(name: str, classes: int = 10) -> list[int]:
    return [part.out_channels for part in models.create(name, classes).modules() if isinstance(part, nn.Conv2d)]


@given(st.lists(PAIRS, max_size=20), st.lists(NUMBERS, max_size=20))
@settings(deadline=None)
def test_a_name_reads_back_to_its_shape(widths: list[tuple[int | None, int | None]], ranks: list[int | None]) -> None:
    """But for what is empty at the end, which a name leaves out."""
    for base in ("resnet8", "torchvision:resnet18", "package.module:function"):
        read = parse(str(Shape(base, tuple(widths), tuple(ranks))))
        assert read.base == base
        assert [*read.widths, *[(None, None)] * (len(widths) - len(read.widths))] == widths
        assert [*read.ranks, *[None] * (len(ranks) - len(read.ranks))] == ranks


def test_widths_and_ranks_are_those_of_the_layers() -> None:
    network = models.create("compressed:resnet8,widths=-12.12,ranks=.5.7", 10)
    first, block = network.get_submodule("conv1"), network.get_submodule("layer1.0")
    assert tuple(first.weight.shape) == (12, 3, 3, 3)  # type: ignore[arg-type]
    assert network.get_submodule("bn1").num_features == 12
    shapes = [tuple(parameter.shape) for name, parameter in block.named_parameters() if "conv" in name]
    assert shapes == [(5, 16, 3, 3), (16, 5, 1, 1), (7, 16, 3, 3), (16, 7, 1, 1)]


def test_a_shape_is_that_of_any_number_of_classes() -> None:
    name = "compressed:vgg8,widths=-8.8.8-"
    assert _outputs(name, 10) == _outputs(name, 100) == [8, 128, 256, 512, 512]
    assert models.create(name, 100).get_submodule("classifier").out_features == 100


def test_the_model_before_compression_and_a_short_name() -> None:
    assert models.base_of(NARROW) == "resnet8"
    assert models.base_of("torchvision:resnet18") == "torchvision:resnet18"
    assert models.short_name("resnet8") == "resnet8"
    assert models.short_name(NARROW).startswith("resnet8 compressed ")
    assert models.short_name(NARROW) != models.short_name(f"{NARROW}.-11")


def test_a_network_is_named_by_its_shape() -> None:
    network = models.create("resnet8", 10)
    replace(network, "layer1.0.conv1", factors(network.get_submodule("layer1.0.conv1"), 3))  # type: ignore[arg-type]
    assert str(shape_of(network, base="resnet8", num_classes=10)) == "compressed:resnet8,ranks=.3"
    assert str(shape_of(models.create("resnet8", 10), base="resnet8", num_classes=10)) == "resnet8"


def test_a_network_of_other_layers_has_no_name() -> None:
    network = models.create("resnet8", 10)
    network.extra = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"extra\.weight has the shape \(2, 2\), which no width describes"):
        shape_of(network, base="resnet8", num_classes=10)
    network = models.create("resnet8", 10)
    replace(network, "fc", nn.Identity())
    with pytest.raises(ModelError, match="fc is a Identity, expected a Linear"):
        shape_of(network, base="resnet8", num_classes=10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("compressed:resnet8,widths=-17", "conv1 has 3-17 channels, expected at most 3-16"),
        ("compressed:resnet8,widths=4", "conv1 has 4-4 channels, expected at most 3-16"),
        ("compressed:resnet8,widths=.8-9", "bn1 has 8-9 channels, expected one number"),
        ("compressed:resnet8,ranks=17", "conv1 has rank 17, expected at most 16"),
        (f"compressed:resnet8,widths={'8.' * 30}8", "31 widths are given for 19 layers"),
        (f"compressed:resnet8,ranks={'1.' * 30}1", "31 ranks are given for 10 layers"),
        ("compressed:resnet8,widths=0", "expected a number of channels, found '0'"),
        ("compressed:resnet8,widths=-12x", "found '12x'"),
        ("compressed:resnet8,widths=99999999", "found '99999999'"),
        ("compressed:resnet8,ranks=-3", "found '-3'"),
        ("compressed:resnet8,depths=3", "expected compressed:MODEL,widths=...,ranks=..."),
        ("compressed:resnet8+vgg8", "expected compressed:MODEL"),
        ("compressed:widths=3", "expected compressed:MODEL"),
        ("compressed:(compressed:resnet8,ranks=2)", "its model is a compressed one"),
        ("compressed:resnet9,ranks=2", "unknown model 'resnet9'; did you mean 'resnet8'"),
        ("compressed:run:nowhere,ranks=2", "carries its own weights"),
        ("compressed:ShuffleV1,widths=" + "." * 6 + "-211", "3 groups do not divide"),
        (f"compressed:resnet8,widths={'.' * 5000}", "expected at most 4,096"),
    ],
    ids=lambda text: text[:40],
)
def test_a_name_out_of_bounds_is_one_line(name: str, reason: str) -> None:
    with pytest.raises(ModelError) as refused:
        models.create(name, 10)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_widths_that_do_not_fit_together_are_refused_when_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(models.create(NARROW, 10).state_dict(), path, {"architecture": NARROW})
    with pytest.raises(ModelError, match=r"'resnet8 compressed [0-9a-f]{6}' does not take images of 3x32x32"):
        models.load(NARROW, num_classes=10, weights=path, fallback_statistics=lambda: (HALF, HALF))


def test_code_behind_a_compressed_name_is_not_run(tmp_path: Path) -> None:
    name = "compressed:tests.networks:small,ranks=2"
    assert models.runs_code(name)
    assert not models.runs_code("compressed:torchvision:resnet18,ranks=2")
    assert models.is_foreign(name)
    assert not models.is_foreign(NARROW)
    run = tmp_path / "run"
    run.mkdir()
    save_file({"w": torch.zeros(1)}, run / "model.safetensors", {"architecture": name})
    (run / "metrics.json").write_text("{}")
    with pytest.raises(UntrustedCodeError, match="trust-code"):
        models.load(f"run:{run}", num_classes=10, fallback_statistics=None)
