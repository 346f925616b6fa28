"""Teachers: a model whose images are prepared as its weights, its family, the user or a store say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdpipe import models
from kdpipe.dataset import Dataset
from kdpipe.errors import ClassMismatchError, ModelError
from kdpipe.models import AnyPreset, Model, Preset
from kdpipe.models.compressed import short_name
from kdpipe.models.interface import Interface
from kdpipe.models.preset import Statistics, Triple
from kdpipe.printable import printable
from kdpipe.stages.console import say
from kdpipe.stages.sources import refuse_another_order, refuse_other_items, side_of
from kdpipe.teacher.classes import (
    HEADING,
    IMAGENET,
    Names,
    OutputMap,
    Outputs,
    by_order,
    find_outputs,
    imagenet,
    is_wordnet,
    read_given,
    read_names,
)
from kdpipe.teacher.forward import Ensemble, Forward, FrozenTeacher
from kdpipe.teacher.settings import TeacherSettings, brings_weights


@dataclass(frozen=True)
class Normalization:
    """The preparation of a teacher's images, where the user gives it or a store records it."""

    mean: Triple | None = None
    std: Triple | None = None
    size: int | None = None
    of_data: bool = False
    """Whether the dataset's statistics are allowed."""
    recorded: AnyPreset | None = None
    """The preset that a store records, which has precedence over the dataset's statistics."""
    recorded_in: Path | None = None
    interface: Interface = field(default_factory=Interface)
    """The layout of its images, and what it returns."""

    @classmethod
    def asked(cls, settings: TeacherSettings, interface: Interface) -> Normalization:
        """Return what the settings of a teacher's pass give."""
        of_data = settings.statistics is not None
        return cls(settings.mean, settings.std, settings.input_size, of_data, interface=interface)


def load_teacher(
    name: str,
    train: Dataset,
    given: Normalization,
    *,
    weights: str | Path | None = None,
    trust_code: bool = False,
    quiet: bool = False,
) -> Model:
    """Load a teacher for a dataset's classes, and report what images it takes unless ``quiet``.

    A teacher with weights is normalized as they or its family say, not by the images at hand, unless the user asks for
    that; the statistics are then those that the store records, once it exists.

    Raises:
        ModelError: the model is unknown, its weights do not fit, they were made for other classes, or nothing says how
            its images are prepared.
        UntrustedCodeError: a file would run code, and is not trusted.
    """
    model = _load(name, train, given, classes=len(train.classes), weights=weights, trust_code=trust_code)
    _say_of(model, name, train, given, quiet=quiet)
    refuse_another_order(model, train, origin=weights or name)
    return model


def _load(
    name: str,
    train: Dataset,
    given: Normalization,
    *,
    classes: int,
    weights: str | Path | None,
    trust_code: bool,
) -> Model:
    """Load a teacher with so many outputs."""
    torch.manual_seed(0)
    recorded = given.recorded if isinstance(given.recorded, Preset) else None
    drawn = weights is None and not brings_weights(name) and not models.is_foreign(name)
    allowed: Statistics | None = train.statistics if given.of_data or drawn else None
    model = models.load(
        name,
        num_classes=classes,
        weights=weights,
        mean=given.mean,
        std=given.std,
        size=given.size,
        fallback_statistics=allowed if recorded is None else lambda: (recorded.mean, recorded.std),
        fallback_size=(lambda: side_of(name, train)) if recorded is None else recorded.size,
        form=train.form,
        trust_code=trust_code,
        interface=given.interface,
    )
    refuse_other_items(model, train, origin=weights or name)
    return model


def _say_of(model: Model, name: str, train: Dataset, given: Normalization, *, quiet: bool) -> None:
    """Report a loaded teacher's remarks, and what images it takes unless ``quiet``."""
    recorded = given.recorded
    for remark in model.remarks:
        say(remark)
    source = {
        "flags": "--mean and --std",
        "weights": "the header of its weights",
        "program": "part of the program",
        "dataset": f"the statistics of {train.spec}" if recorded is None else f"those that {given.recorded_in} records",
    }.get(model.preset_source, f"the published ones of {model.preset_source}")
    if not quiet and isinstance(model.preset, Preset):
        say(f"{name} takes images of {model.preset.size} px; mean and std: {source}.")


@dataclass(frozen=True)
class ClassNames:
    """The names of a teacher's classes that are given besides its weights."""

    class_map: Path | None = None
    """A file with the teacher's classes of those of the dataset."""
    teacher_classes: str | None = None
    """A file with the names of the teacher's classes, or ``imagenet``."""


@dataclass(frozen=True)
class Teacher:
    """A teacher, and its outputs that the classes of a dataset are made of."""

    model: Model
    outputs: Outputs | None = None
    """``None`` where its classes are those of the dataset."""


def load_mapped(
    name: str,
    train: Dataset,
    given: Normalization,
    *,
    classes: ClassNames = ClassNames(),
    recorded: Outputs | None = None,
    weights: str | Path | None = None,
    trust_code: bool = False,
    quiet: bool = False,
) -> Teacher:
    """Load a teacher whose classes may be other ones, more, or in another order than those of a dataset.

    ``recorded`` are the outputs that a store of it records. Without them, those that a file or names tell are printed.

    Raises:
        DatasetError: it is not known which of the teacher's classes some of the dataset's are.
        ModelError, UntrustedCodeError: as for ``load_teacher``.
    """
    asked = None if classes.teacher_classes is None else _names_of(classes.teacher_classes)
    number = len(train.classes) if asked is None else len(asked.names)
    mismatch: ClassMismatchError | None = None
    try:
        model = _load(name, train, given, classes=number, weights=weights, trust_code=trust_code)
    except ClassMismatchError as error:
        if asked is not None:
            raise ModelError(f"{error}".replace("the dataset has", "--teacher-classes names")) from None
        mismatch, number = error, error.found
        model = _load(name, train, given, classes=number, weights=weights, trust_code=trust_code)
    _say_of(model, name, train, given, quiet=quiet)
    if recorded is not None:
        return Teacher(model, recorded)
    who = short_name(model.name)
    names = asked or _names(model, train, number)
    found = _found(train, classes, total=number, names=names, teacher=who)
    if found is None and number != len(train.classes):
        raise ModelError(
            f"'{name}': the model has {number} outputs, the dataset has {len(train.classes)} classes, and nothing "
            f"tells which are the same: write them to a file of lines {','.join(HEADING)}, with names or indices "
            "of the teacher's classes, and pass --class-map FILE; or name the teacher's classes by --teacher-classes "
            f"FILE or --teacher-classes {IMAGENET}."
        ) from mismatch
    if found is None:
        _say_order(train, names, teacher=who)
    return Teacher(model, None if found is None else _said(found, who, train.spec))


def load_all(
    settings: TeacherSettings, train: Dataset, given: Sequence[Normalization], *, trust_code: bool = False
) -> list[Teacher]:
    """Load the teachers of a pass, each with what is ``given`` of its images; see ``load_mapped``."""
    classes = ClassNames(settings.class_map, settings.teacher_classes)
    return [
        load_mapped(name, train, each, classes=classes, weights=weights, trust_code=trust_code)
        for (name, weights), each in zip(settings.with_weights, given, strict=True)
    ]


def _say_order(train: Dataset, names: Names | None, *, teacher: str) -> None:
    """Warn of classes that are paired with a teacher's by their order, although it has other names for them."""
    unlike = by_order(train.classes, names)
    if names is not None and unlike:
        theirs, ours = printable(names.names[unlike[0]]), printable(train.classes[unlike[0]])
        say(
            f"warning: {teacher} has other names for {len(unlike):,} of the {len(train.classes):,} classes of "
            f"{train.spec}, such as '{theirs}' for '{ours}': they are taken for the same by their order. If they are "
            "not, pass --class-map FILE."
        )


def imported_outputs(train: Dataset, classes: ClassNames, *, total: int, teacher: str) -> Outputs | None:
    """Return the outputs of a teacher of ``total`` classes, whose logits are in files; ``None`` as for ``Teacher``.

    Raises:
        DatasetError: it is not known which of the teacher's classes some of the dataset's are.
        ModelError: the files have another number of classes than ``--teacher-classes`` names.
    """
    names = None if classes.teacher_classes is None else _names_of(classes.teacher_classes)
    if names is not None and len(names.names) != total:
        raise ModelError(f"the logits are of {total:,} classes, --teacher-classes names {len(names.names):,}")
    if names is None and total == len(imagenet().names) and is_wordnet(train.classes):
        names = imagenet()
    found = _found(train, classes, total=total, names=names, teacher=teacher)
    if found is None and total == len(train.classes):
        _say_order(train, names, teacher=teacher)
    return None if found is None else _said(found, teacher, train.spec)


def _found(train: Dataset, classes: ClassNames, *, total: int, names: Names | None, teacher: str) -> OutputMap | None:
    given = None if classes.class_map is None else read_given(classes.class_map)
    return find_outputs(train.classes, total=total, names=names, given=given, teacher=teacher, spec=train.spec)


def _said(found: OutputMap, teacher: str, spec: str) -> Outputs | None:
    """Return the outputs of a map after printing it; ``None`` where the classes are the same."""
    if found.same:
        return None
    for line in found.lines(teacher, spec):
        say(line)
    return found.outputs


def _names_of(asked: str) -> Names:
    """Return the names that ``--teacher-classes`` gives."""
    return imagenet() if asked == IMAGENET else read_names(Path(asked))


def _names(model: Model, train: Dataset, number: int) -> Names | None:
    """Return the names of a teacher's outputs; those of ImageNet for published weights of 1,000 classes.

    A teacher of 1,000 classes without names, for data whose classes are WordNet ids, is taken for one of ImageNet.
    """
    usual = imagenet()
    if number != len(usual.names):
        return None if model.classes is None else Names(model.classes)
    published = model.preset_source.startswith(("torchvision", "timm", "ImageNet"))
    if model.classes is None:
        return usual if published or is_wordnet(train.classes) else None
    return Names(model.classes, usual.aliases if published else ())


def frozen(loaded: Sequence[Teacher], settings: TeacherSettings, *, channels_last: bool | None) -> FrozenTeacher:
    """Return loaded teachers on their device; several as one that averages."""
    device = models.resolve_device(settings.device)
    teachers = [
        Forward(
            each.model,
            device=device,
            precision=settings.precision,
            signals=settings.signals,
            channels_last=channels_last,
            outputs=each.outputs,
        )
        for each in loaded
    ]
    return teachers[0] if len(teachers) == 1 else Ensemble(teachers)
