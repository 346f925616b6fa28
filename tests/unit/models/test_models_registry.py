"""Names of models, hints for wrong ones, and what is listed about them."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdpipe import models
from kdpipe.errors import ModelError
from kdpipe.models.packages import torchvision_names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnett20", "did you mean 'resnet20'?"),
        ("resnet18", "did you mean 'ResNet18' or 'torchvision:resnet18'?"),
        ("mobilenetv2", "did you mean 'MobileNetV2'?"),
        ("torchvision:resnet81", "did you mean 'resnet18'?"),
        ("torchvison:resnet18", "did you mean 'torchvision:resnet18'?"),
        ("torchvision:", "or use torchvision:NAME"),
        ("json:load", "'json:load' failed when called with 10"),
        ("json:lods", "did you mean 'loads'?"),
        ("json:dumps", "returned a str, expected a torch.nn.Module"),
        ("file:model.pt2", "carries its own weights"),
    ],
)
def test_a_wrong_name_is_one_line_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        models.create(name, 10)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torchvision_lists_classifiers_only() -> None:
    assert "resnet18" in torchvision_names()
    assert not {"fasterrcnn_resnet50_fpn", "fcn_resnet50", "quantized_resnet18"} & set(torchvision_names())


def test_torchvision_has_the_wanted_classes() -> None:
    network = models.create("torchvision:squeezenet1_1", 10).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_timm_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'kdpipe\[timm\]'"):
        models.create("timm:resnet18", 10)


def test_timm_models_are_made_by_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = SimpleNamespace(
        is_model=lambda name: name == "tiny",
        list_models=lambda: ["tiny"],
        create_model=lambda name, *, pretrained, num_classes: nn.Linear(3, num_classes),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert models.count_parameters(models.create("timm:tiny", 5)) == 20
    with pytest.raises(ModelError, match="timm has no model 'tinny'; did you mean 'tiny'"):
        models.create("timm:tinny", 5)


def test_own_code_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_networks.py").write_text(
        "from torch import nn\n\n\ndef small(num_classes):\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert models.count_parameters(models.create("our_networks:small", 10)) == 40


def test_names_are_unique_and_creatable() -> None:
    assert len(set(models.names())) == len(models.names()) == 24


def test_every_architecture_has_a_line_of_help_and_a_source() -> None:
    assert [each.name for each in models.architectures()] == models.names()
    for each in models.architectures():
        assert each.help.endswith(".")
        assert "\n" not in each.help
        assert "https://arxiv.org/abs/" in each.source
    assert [each.name for each in models.architectures() if each.imagenet] == ["MobileNetV1"]


def test_every_kind_has_a_form_and_a_line_of_help() -> None:
    assert [kind.usage for kind in models.all_kinds()] == [
        "torchvision:NAME",
        "timm:NAME",
        "run:DIR",
        "file:PATH",
        "compressed:MODEL,widths=...,ranks=...",
        "package.module:function",
    ]
    for kind in models.all_kinds():
        assert kind.help.endswith(".")
        assert "\n" not in kind.help


def test_names_are_listed_without_torch() -> None:
    program = (
        "import sys; from kdpipe import models; models.architectures(); models.all_kinds();"
        " models.parse_signals('features:layer3'); models.Preset(32, 32, 'bilinear', (0.5,) * 3, (0.5,) * 3);"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


REGISTERED = """
from torch import nn

from kdpipe import models
from kdpipe.models.registry import family, register


@family({"flat4": {"side": 4}, "flat8": {"side": 8}}, source="https://arxiv.org/abs/0")
def flat(num_classes: int, *, side: int) -> nn.Module:
    '''One linear layer.'''
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(3 * side**2, num_classes))


register(models.Kind("linear:SIDE", "One linear layer.", lambda side, classes: flat(classes, side=int(side))))

assert models.names()[-2:] == ["flat4", "flat8"]
assert models.architectures()[-1].help == "One linear layer."
assert "linear:SIDE" in [kind.usage for kind in models.all_kinds()]
statistics = ((0.5,) * 3, (0.5,) * 3)
for name in ("flat8", "linear:8"):
    model = models.load(name, num_classes=2, fallback_statistics=lambda: statistics)
    assert model.parameters == 2 * 3 * 64 + 2
    assert len(models.probe(model)) == 2
"""


def test_registered_names_are_listed_and_loaded() -> None:
    """In a process of its own, so that the names are not there in other tests."""
    subprocess.run([sys.executable, "-c", REGISTERED], check=True)
