"""Load a model: the network with its weights, its preset and its digest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn

from kdpipe.dataset.forms import Form
from kdpipe.errors import ClassMismatchError, ModelError, ParamsError
from kdpipe.models import registry
from kdpipe.models.compressed import short_name
from kdpipe.models.inputs import AnyPreset, InputSize, TensorPreset, adapt, blank, example, form_in_header
from kdpipe.models.inspection import Penultimate, count_parameters, device_of, find_penultimate
from kdpipe.models.interface import Interface, take_logarithms
from kdpipe.models.preset import Known, Size, Statistics, choose, from_flags, from_header
from kdpipe.models.program import ExportedModel
from kdpipe.models.registry import Loaded, refuse_code, runs_code
from kdpipe.models.runtime import refuse_statistics
from kdpipe.models.saved import RUN, resolve_run
from kdpipe.models.weights import COUNTER, class_mismatch, fit, read_weights, refuse_broken, tensor_bytes
from kdpipe.printable import first_line


@dataclass(frozen=True)
class Model:
    """A network with its weights, preset and digest."""

    name: str
    """The name given to ``load``; for ``run:DIR`` that of the architecture."""
    module: nn.Module
    """Maps normalized float32 ``(n, 3, S, S)`` to logits ``(n, classes)``; in evaluation mode, on the CPU.

    One of tensors takes a tensor or a dictionary of them, as its preset makes."""
    preset: AnyPreset
    """The preset of its evaluation view."""
    preset_source: str
    """Source of the normalization: ``flags``, ``weights``, ``program``, ``torchvision <enum>``, ``timm``, ``ImageNet``
    or ``dataset``; ``tensors`` where there is none."""
    classes: tuple[str, ...] | None
    """Class names in the order of the logits, where recorded with the weights."""
    digest: str
    """Hex BLAKE3-128 of the architecture and the weights; of the file for a program."""
    remarks: tuple[str, ...] = ()
    """Lines that the user is to read: whose code was run, and how it computes."""
    interface: Interface = field(default_factory=Interface)
    """The layout of its images, and what it returns."""

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return count_parameters(self.module)

    @property
    def penultimate(self) -> Penultimate | None:
        """Its last layer, found by running it; ``None`` where it has none."""
        return find_penultimate(self.module, self.preset.size)


def load(
    name: str,
    *,
    num_classes: int,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
    interpolation: str | None = None,
    fallback_statistics: Statistics | None,
    fallback_size: Size = 32,
    form: Form | None = None,
    trust_code: bool = False,
    interface: Interface = Interface(),  # noqa: B008 (it is frozen)
) -> Model:
    """Build the network ``name``, give it its weights, and choose its preset.

    ``weights`` is a ``.safetensors``, ``.pt`` or ``.pth`` file, or ``run:DIR`` for those of a finished run, for
    ``torchvision:NAME`` also a member of its weights enum such as ``IMAGENET1K_V2``, and for ``timm:NAME`` also
    ``DEFAULT``. ``run:DIR`` as a name is the architecture that its weights name, with these weights. Without weights
    the network is initialized from torch's global generator. Mean and std, and size, come from the arguments,
    else the weights' header, else the model's package, else ``fallback_statistics()`` and ``fallback_size``; without a
    fallback they are required. A network of another type than float32 is converted. Code that a file names, or that is
    in a ``.pt2``, is run only with ``trust_code``. ``interface`` has what an ONNX file does not say, and whether the
    network returns probabilities, of which it then returns logarithms.

    With a ``form``, or where the weights record one, the network is one of tensors, and has no other preset.

    Raises:
        ModelError: the model is unknown, or its weights are missing, damaged or do not fit it, or nothing says what
            images it takes.
        UntrustedCodeError: a file would run code, and is not trusted.
        ParamsError: an argument is out of range.
    """
    flags = from_flags(mean, std, size=size, interpolation=interpolation)
    asked = name
    name, weights = resolve_run(name, weights)
    remarks = [] if name == asked else _allowed(name, asked, trust_code=trust_code)
    _refuse_images(name, form)
    loaded = load_module(name, weights, num_classes=num_classes, trust_code=trust_code, interface=interface)
    interface = _settled(interface, loaded.interface, name=name)
    loaded.module.eval()
    refuse_broken(loaded.module, origin=weights or name)
    remarks += [*loaded.remarks, *converted(name, loaded.module)]
    if isinstance(loaded.module, ExportedModel) and loaded.module.takes_pixels and flags.mean is not None:
        flags = replace(flags, mean=None, std=None)
        remarks.append(f"{name} takes uint8 images and normalizes them itself: mean and std are not used.")
    shown = name if weights is None else f"{name} with {weights}"
    preset: AnyPreset
    if form is None and loaded.form is None:
        preset, source = choose(
            (flags, *loaded.presets), fallback_statistics=fallback_statistics, fallback_size=fallback_size, name=shown
        )
        refuse_statistics(loaded.module, preset.mean, preset.std, name=name)
    else:
        preset, source = _of_tensors(form, loaded, flags, name=shown), "tensors"
        adapt(loaded.module)
    _check_classes(name, loaded, size=preset.size, num_classes=num_classes, origin=weights or name)
    digest = identify(name, loaded.module)
    if interface.outputs == "probabilities":
        take_logarithms(loaded.module)
    return Model(name, loaded.module, preset, source, loaded.classes, digest, tuple(remarks), interface)


def _allowed(name: str, run: str, *, trust_code: bool) -> list[str]:
    """Return a remark where the model ``name`` that a run records is made by code.

    Raises:
        UntrustedCodeError: it is, and the code is not trusted.
    """
    refuse_code(name, origin=run.removeprefix(RUN), trust_code=trust_code)
    return [f"{run} is made by {name}, whose code was run (--trust-code)."] if runs_code(name) else []


def _refuse_images(name: str, form: Form | None) -> None:
    """Check that a model may take tensors, if the dataset has them.

    Raises:
        ModelError: its architecture is one of images.
    """
    if form is not None and not runs_code(name):
        raise ModelError(
            f"'{name}' takes images, the dataset has tensors ({form}): name a function of yours that returns a network "
            "for them, package.module:function."
        )


def _check_classes(name: str, loaded: Loaded, *, size: InputSize, num_classes: int, origin: object) -> None:
    """Check the output of a network of the user's, and the number of the class names that are recorded.

    Raises:
        ModelError: the network does not return logits of ``num_classes``, or there are more or fewer names.
    """
    if registry.resolve(name)[0].foreign:
        check_output(short_name(name), loaded.module, size=size, num_classes=num_classes)
    if loaded.classes is not None and len(loaded.classes) != num_classes:
        raise class_mismatch(origin, len(loaded.classes), num_classes)


def _settled(asked: Interface, found: Interface, *, name: str) -> Interface:
    """Return the interface of a loaded network; only that of an ONNX file has a layout and an output.

    Raises:
        ModelError: one is asked for of another network.
    """
    if found.output is None and (asked.layout, asked.output) != (None, None):
        raise ModelError(f"{name} is no ONNX model: leave out --layout and --output")
    return found.over(asked)


def _of_tensors(form: Form | None, loaded: Loaded, flags: Known, *, name: str) -> TensorPreset:
    """Return the preset of a network of tensors, of the form that is given or recorded.

    Raises:
        ModelError: these are not the same.
        ParamsError: a part of the preset of images is given.
    """
    if flags != Known("flags"):
        raise ParamsError(f"{name} takes tensors as they are: leave out mean, std, input size and interpolation.")
    if form is not None and loaded.form not in (None, form):
        raise ModelError(f"{name} takes tensors of another form: expected {form}, found {loaded.form}")
    found = form or loaded.form
    assert found is not None
    return TensorPreset(found)


def converted(name: str, module: nn.Module) -> list[str]:
    """Convert a network's weights to float32; return a remark where that changed something.

    A program keeps its types, and converts its images.
    """
    if isinstance(module, ExportedModel):
        found = {module.dtype} - {torch.float32, torch.uint8}
        doing = "its images are converted, its logits are stored as float32"
    else:
        tensors = (*module.parameters(), *module.buffers())
        found = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {torch.float32}
        doing = "they are converted, and it computes in float32 (--precision for autocast)"
        if found:
            module.float()
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
    return [f"{name} has weights in {names}: {doing}."] if found else []


def load_module(
    name: str,
    weights: str | Path | None,
    *,
    num_classes: int,
    trust_code: bool,
    interface: Interface,
) -> Loaded:
    """Build the network and give it its weights, as its kind of name requires."""
    kind, rest = registry.resolve(name)
    published = kind.load(rest, weights, num_classes, trust_code=trust_code, interface=interface)
    if published is not None:
        return published
    module = registry.create(name, num_classes)
    preset = kind.preset(rest, module)
    if weights is None:
        return Loaded(module, () if preset is None else (preset,))
    file = read_weights(Path(weights))
    if file.classes is not None and len(file.classes) != num_classes:
        raise class_mismatch(file.path, len(file.classes), num_classes)
    fit(module, file, num_classes=num_classes)
    of_tensors = form_in_header(file.metadata, file.path)
    sources = (from_header(file.metadata, file.path), kind.published(rest, module) or preset)
    presets = tuple(each for each in sources if each is not None)
    return Loaded(module, presets, file.classes, of_tensors, remarks=file.remarks)


def check_output(name: str, module: nn.Module, *, size: InputSize, num_classes: int) -> None:
    """Pass two blank images or items to the network and check the shape of its output.

    Raises:
        ModelError: it does not take them, or does not return ``(2, num_classes)``.
    """
    wanted = f"images of 3x{size}x{size}" if isinstance(size, int) else f"the dataset's tensors ({size})"
    try:
        with torch.no_grad():
            output: Any = module(blank(size, 2, device_of(module)))
    except (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelError(f"'{name}' does not take {wanted}: {first_line(error)}") from error
    if not isinstance(output, torch.Tensor):
        raise ModelError(f"'{name}' returns a {type(output).__name__}, expected one tensor of logits")
    if output.ndim == 2 and output.shape[0] == 2 and output.shape[1] != num_classes:
        raise ClassMismatchError(
            f"'{name}': the model has {output.shape[1]} outputs, the dataset has {num_classes} classes",
            found=output.shape[1],
        )
    if tuple(output.shape) != (2, num_classes):
        raise ModelError(f"'{name}' returns {tuple(output.shape)} for two samples, expected {(2, num_classes)}")


def identify(name: str, module: nn.Module) -> str:
    """Return the BLAKE3-128 of architecture and weights, in hex; a program is identified by its file.

    Covers the name, ``repr(module)`` and every tensor's key, type, shape and bytes, except batch norm's step
    counters.
    """
    if isinstance(module, ExportedModel):
        return module.source_digest
    digest = blake3()
    digest.update(json.dumps([name, repr(module)]).encode())
    state = module.state_dict()
    for key in sorted(key for key in state if not key.endswith(COUNTER)):
        tensor = state[key]
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest(length=16)


def probe(*models: Model, num: int = 8) -> list[float]:
    """Return the first ``num`` logits of one fixed synthetic image or item, to 4 significant digits.

    The image is uint8 at the preset's size, from a closed formula. The logits distinguish models whatever their file
    formats. Those of several models of one size are averaged. Runs on each module's device.
    """
    with torch.no_grad():
        outputs = [model.module(_fixed(model))[0] for model in models]
    logits = torch.stack([each.float().cpu() for each in outputs]).mean(dim=0)
    return [float(f"{value:.4g}") for value in logits[:num].tolist()]


def _fixed(model: Model) -> Any:
    """Return the synthetic input of ``probe`` on the module's device."""
    preset, device = model.preset, device_of(model.module)
    if isinstance(preset, TensorPreset):
        return example(preset.form, device)
    side = torch.arange(preset.size, dtype=torch.int64)
    y, x, channel = (
        side.view(1, -1, 1),
        side.view(1, 1, -1),
        torch.arange(3, dtype=torch.int64).view(-1, 1, 1),
    )
    pixels = ((x * x + 3 * y * y + 7 * x * y + 11 * x + 5 * y + 85 * channel) % 256).to(torch.uint8).unsqueeze(0)
    return preset.normalize(pixels.to(device))
