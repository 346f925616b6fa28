"""ONNX models as teachers: what a file says, what must be given, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe import models
from kdpipe.errors import ModelError
from kdpipe.models.interface import Interface, logarithms

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'kdpipe[deploy]'")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'kdpipe[deploy]'")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

SIDE, CLASSES = 4, 5
ONES = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def weights(values: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((values, CLASSES)).astype(np.float32)


def save(
    path: Path,
    shape: Sequence[int | str],
    *,
    values: int = 3 * SIDE * SIDE,
    kind: int = TensorProto.FLOAT,
    outputs: Sequence[tuple[str, int]] = (("scores", CLASSES),),
    metadata: dict[str, str] | None = None,
    tail: Sequence[Any] = (),
) -> Path:
    """Write a linear network of the flattened input, whose further outputs are parts of the first."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], [outputs[0][0]]),
    ]
    constants = [numpy_helper.from_array(weights(values), "weight")]
    for name, width in outputs[1:]:
        nodes.append(helper.make_node("Gather", [outputs[0][0], f"{name}_at"], [name], axis=1))
        constants.append(numpy_helper.from_array(np.arange(width), f"{name}_at"))
    graph = helper.make_graph(
        [*nodes, *tail],
        "network",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def load(path: Path, *, given: Interface | None = None, size: int | None = None, num_classes: int = CLASSES) -> Any:
    return models.load(
        f"file:{path}",
        num_classes=num_classes,
        mean=ONES[0],
        std=ONES[1],
        size=size,
        fallback_statistics=None,
        fallback_size=None,
        interface=given or Interface(),
    )


def images(count: int = 3, side: int = SIDE) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


NCHW, NHWC = ["n", 3, SIDE, SIDE], ["n", SIDE, SIDE, 3]
FREE = ["n", "a", "b", "c"]
FLAT = ["n", 3 * SIDE * SIDE]


@pytest.mark.parametrize(
    ("shape", "given", "last"),
    [
        (NCHW, None, False),
        (NHWC, None, True),
        (FREE, "nchw", False),
        (FREE, "nhwc", True),
        (FLAT, "nchw", False),
        (FLAT, "nhwc", True),
    ],
)
def test_images_are_given_in_the_layout_of_the_file(
    shape: list[int | str], given: Any, last: bool, tmp_path: Path
) -> None:
    asked = Interface() if given is None else Interface(layout=given)
    model = load(save(tmp_path / "m.onnx", shape), given=asked, size=SIDE)
    flat = (images().movedim(1, 3) if last else images()).flatten(1).double().numpy()
    assert np.allclose(model.module(images()).numpy(), flat @ weights(3 * SIDE * SIDE), atol=1e-5)
    assert model.interface.layout == ("nhwc" if last else "nchw")
    assert model.preset.size == SIDE
    assert model.parameters == 3 * SIDE * SIDE * CLASSES


@pytest.mark.parametrize("shape", [["n", 1, SIDE, SIDE], ["n", SIDE, SIDE, 1], ["n", SIDE, SIDE], ["n", SIDE * SIDE]])
def test_networks_of_gray_images_are_given_brightness(shape: list[int | str], tmp_path: Path) -> None:
    model = load(save(tmp_path / "m.onnx", shape, values=SIDE * SIDE))
    gray = np.tensordot([0.299, 0.587, 0.114], images().double().numpy(), axes=(0, 1)).reshape(3, -1)
    assert np.allclose(model.module(images()).numpy(), gray @ weights(SIDE * SIDE), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_a_fixed_batch_size_serves_any_number_of_images(count: int, tmp_path: Path) -> None:
    fixed = load(save(tmp_path / "m.onnx", [4, 3, SIDE, SIDE]))
    free = load(save(tmp_path / "n.onnx", NCHW))
    assert torch.allclose(fixed.module(images(count)), free.module(images(count)), atol=1e-6)


def test_sides_that_are_free_need_a_size(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", ["n", 3, "h", "w"])
    with pytest.raises(ModelError, match=r"nothing says which size of images"):
        load(path)
    assert load(path, size=SIDE).preset.size == SIDE


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT])
def test_images_are_converted_to_the_type_of_the_input(kind: int, tmp_path: Path) -> None:
    model = load(save(tmp_path / "m.onnx", NCHW, kind=kind))
    expected = images().flatten(1).double().numpy() @ weights(3 * SIDE * SIDE)
    assert np.allclose(model.module(images()).numpy(), expected, atol=1e-2)


def test_a_network_of_pixels_is_given_them_as_they_are(tmp_path: Path) -> None:
    model = load(save(tmp_path / "m.onnx", NCHW, kind=TensorProto.UINT8))
    pixels = torch.arange(2 * 3 * SIDE * SIDE, dtype=torch.uint8).view(2, 3, SIDE, SIDE)
    expected = pixels.flatten(1).double().numpy() @ weights(3 * SIDE * SIDE)
    assert np.allclose(model.module(model.preset.normalize(pixels)).numpy(), expected, rtol=1e-5, atol=1e-3)


def test_the_preset_and_the_classes_of_the_metadata_are_taken(tmp_path: Path) -> None:
    said = {"mean": "0.1,0.2,0.3", "std": "0.4,0.5,0.6", "classes": '["a", "b", "c", "d", "e"]', "layout": "nhwc"}
    path = save(tmp_path / "m.onnx", FREE, metadata={**said, "input_size": str(SIDE)})
    model = models.load(f"file:{path}", num_classes=CLASSES, fallback_statistics=None, fallback_size=None)
    assert (model.preset.mean, model.preset.std, model.preset.size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), SIDE)
    assert model.classes == ("a", "b", "c", "d", "e")
    assert model.interface.layout == "nhwc"


def test_the_output_of_the_classes_is_found_or_named(tmp_path: Path) -> None:
    features = save(tmp_path / "m.onnx", NCHW, outputs=[("scores", CLASSES), ("features", 2)])
    assert load(features).interface.output == "scores"
    twice = save(tmp_path / "t.onnx", NCHW, outputs=[("scores", CLASSES), ("other", CLASSES)])
    with pytest.raises(ModelError, match=r"several outputs \(scores, other\): name the one of the 5 classes by --out"):
        load(twice)
    assert load(twice, given=Interface(output="other")).interface.output == "other"
    with pytest.raises(ModelError, match=r"has no output 'logits' \(its outputs: scores, other\)"):
        load(twice, given=Interface(output="logits"))


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        (FREE, None, "does not say where its channels are: give --layout nchw or nhwc"),
        (["n", 3, 8, 3], None, "does not say where its channels are"),
        (FLAT, None, "images of 3x4x4 in one row: give their --layout"),
        (NCHW, "nhwc", "is not --layout nhwc with 3 channels or 1"),
        (["n", 3, 4, 5], None, "expected square images"),
        (["n", 4, 4, 4], None, "expected images of 3 channels or 1"),
        (["n", 50], None, "is no flattened square image"),
        (["n", 2, 3, 4, 4], None, "expected images \\(n, 3, S, S\\)"),
    ],
)
def test_an_input_that_is_no_batch_of_images_is_refused(
    shape: list[int | str], given: Any, message: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "m.onnx", shape)
    with pytest.raises(ModelError, match=message):
        load(path, given=Interface() if given is None else Interface(layout=given))


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", NCHW)
    with pytest.raises(ModelError, match=r"the model has 5 outputs, the dataset has 7 classes"):
        load(path, num_classes=7)


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    first = load(save(tmp_path / "m.onnx", NCHW))
    assert load(save(tmp_path / "n.onnx", NCHW)).digest == first.digest
    assert load(save(tmp_path / "o.onnx", NCHW, metadata={"a": "b"})).digest != first.digest


def test_an_onnx_model_has_no_gradients(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no gradients"):
        load(save(tmp_path / "m.onnx", NCHW)).module(images().requires_grad_())


def test_probabilities_become_logarithms_of_at_least_the_floor(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        NCHW,
        outputs=[("scores", CLASSES), ("probabilities", CLASSES)],
        tail=[],
    )
    model = onnx.load(path)
    del model.graph.node[-1]
    model.graph.node.append(helper.make_node("Softmax", ["large"], ["probabilities"], axis=1))
    model.graph.node.append(helper.make_node("Mul", ["scores", "factor"], ["large"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(60), "factor"))
    nodes = sorted(model.graph.node, key=lambda node: node.op_type == "Softmax")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    found = load(path, given=Interface(output="probabilities", outputs="probabilities")).module(images()).numpy()
    scores = 60 * (images().flatten(1).double().numpy() @ weights(3 * SIDE * SIDE))
    expected = scores - scores.max(axis=1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    assert np.allclose(found, np.maximum(expected, np.log(1e-30)), atol=1e-3)
    assert (found == np.float32(np.log(np.float32(1e-30)))).any()


def test_custom_operators_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", NCHW, tail=[helper.make_node("Run", ["scores"], ["x"], domain="my.ops")])
    with pytest.raises(ModelError, match=r"the operator Run of 'my\.ops', which is none of ONNX's: custom operators"):
        load(path)
    path = save(tmp_path / "n.onnx", NCHW, tail=[helper.make_node("EPContext", [], ["x"], domain="com.microsoft")])
    with pytest.raises(ModelError, match=r"the operator EPContext"):
        load(path)


def test_custom_operators_within_others_are_refused(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Run", ["scores"], ["y"], domain="my.ops")],
        "inner",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["condition"], ["x"], then_branch=inner, else_branch=inner)
    with pytest.raises(ModelError, match=r"the operator Run of 'my\.ops'"):
        load(save(tmp_path / "m.onnx", NCHW, tail=[node]))


def outside(path: Path, location: str) -> Path:
    """Move the weight of a network into a file at ``location``."""
    model = onnx.load(path)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
    content = model.graph.initializer[0].raw_data
    file = path.parent / location
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    return file


def test_external_data_in_the_folder_is_read_and_part_of_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "m.onnx", NCHW)
    expected = load(path).module(images())
    file = outside(path, "weights.bin")
    monkeypatch.chdir("/")
    model = load(path)
    assert torch.equal(model.module(images()), expected)
    assert model.parameters == 3 * SIDE * SIDE * CLASSES
    file.write_bytes(file.read_bytes()[:-4] + np.float32(1).tobytes())
    assert load(path).digest != model.digest
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"weights\.bin is shorter than its tensors|ONNX Runtime does not load"):
        load(path)
    file.unlink()
    with pytest.raises(ModelError, match=r"weights\.bin is missing: copy it beside the file"):
        load(path)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "a\\w.bin", ""])
def test_external_data_elsewhere_is_not_read(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(weights(3 * SIDE * SIDE).tobytes())
    path = save(folder / "m.onnx", NCHW)
    outside(path, "w.bin")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"is not in its folder: not read"):
        load(path)


def test_external_data_behind_a_link_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = save(folder / "m.onnx", NCHW)
    file = outside(path, "w.bin")
    file.rename(tmp_path / "w.bin")
    file.symlink_to(tmp_path / "w.bin")
    with pytest.raises(ModelError, match=r"w\.bin is a link, and links are not followed: copy both files .* cp -L"):
        load(path)


def test_a_file_in_the_cache_of_a_hub_names_the_links_and_the_remedy(tmp_path: Path) -> None:
    """Its files are links to others, named by digests in another folder."""
    blobs, snapshot, plain = tmp_path / "blobs", tmp_path / "snapshots" / "3f2a", tmp_path / "plain"
    for folder in (blobs, snapshot, plain):
        folder.mkdir(parents=True)
    data = outside(save(blobs / "made.onnx", NCHW), "m.onnx_data")
    for made, name, blob in ((blobs / "made.onnx", "m.onnx", "1a"), (data, "m.onnx_data", "2b")):
        made.rename(blobs / blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    with pytest.raises(ModelError) as refused:
        load(snapshot / "m.onnx")
    assert str(refused.value) == (
        f"{snapshot}/m.onnx: its data m.onnx_data is not beside {blobs}/1a, to which this link leads out of its "
        "folder: copy both files into one folder with cp -L"
    )
    subprocess.run(["cp", "-L", snapshot / "m.onnx", snapshot / "m.onnx_data", plain], check=True)
    assert load(plain / "m.onnx").module is not None


def test_a_damaged_name_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "m.onnx", (2, 3, SIDE, SIDE))
    path.write_bytes(path.read_bytes().replace(b"MatMul", b"Mat\xf8ul"))
    with pytest.raises(ModelError, match=r"m\.onnx: ONNX Runtime does not load this model: 'utf-8' codec"):
        load(path)
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize("content", [b"", b"ORTM" * 10, b"\x80\x04N.", np.random.default_rng(0).bytes(1000)])
def test_a_file_that_is_no_onnx_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx: not an ONNX file"):
        load(path)
    with pytest.raises(ModelError, match=r"other\.onnx does not exist"):
        load(tmp_path / "other.onnx")


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m.onnx", NCHW)
    for name in ("onnxruntime", "onnx"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            with pytest.raises(ModelError, match=f"needs {name}, which is not installed: pip install 'kdpipe"):
                load(path)


def test_a_layout_of_another_network_is_refused() -> None:
    with pytest.raises(ModelError, match=r"resnet8 is no ONNX model: leave out --layout and --output"):
        models.load("resnet8", num_classes=5, fallback_statistics=lambda: ONES, interface=Interface(layout="nhwc"))


def test_a_gray_network_has_one_mean_and_deviation(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", ["n", 1, SIDE, SIDE], values=SIDE * SIDE)
    with pytest.raises(ModelError, match="takes gray images, which have one mean and one standard deviation"):
        models.load(f"file:{path}", num_classes=CLASSES, mean=(0.4, 0.5, 0.6), std=(0.5,) * 3, fallback_statistics=None)


def test_the_interpolation_of_the_metadata_needs_no_size(tmp_path: Path) -> None:
    said = {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "interpolation": "bicubic"}
    path = save(tmp_path / "m.onnx", ["n", 3, SIDE, SIDE], metadata=said)
    model = models.load(f"file:{path}", num_classes=CLASSES, fallback_statistics=None)
    assert (model.preset.size, model.preset.interpolation) == (SIDE, "bicubic")


@pytest.mark.parametrize("temperature", [1, 4, 8])
def test_the_floor_leaves_soft_targets_of_a_sure_teacher_alone(temperature: float) -> None:
    """Of 1,000 classes, 999 are 40 below the largest, which float32 probabilities hold exactly."""
    logits = torch.full((1, 1000), -40.0, dtype=torch.float64)
    logits[0, 7] = 0
    kept = logarithms(logits.softmax(1).float()).double()
    found, expected = ((each / temperature).softmax(1) for each in (kept, logits))
    assert torch.allclose(found, expected, rtol=1e-4)
