"""Stage `export`: write a trained student as files for other runtimes, and test them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

import kdpipe
from kdpipe import directories, models
from kdpipe.dataset import Dataset
from kdpipe.dataset.settings import DatasetSettings
from kdpipe.errors import MissingSplitError, ModelError, RunError
from kdpipe.export import checks, formats, readme
from kdpipe.export.checks import Figures, Tested
from kdpipe.export.images import Pixels, calibration_images
from kdpipe.models import Model, TensorPreset, of_images
from kdpipe.models.saved import digest_of
from kdpipe.reading import MEGABYTE, read_bytes, read_json
from kdpipe.sharing.streaming import known_manifest
from kdpipe.stages.console import progress, say, show
from kdpipe.stages.seed_runs import seed_runs
from kdpipe.stages.settings.export import Export
from kdpipe.stages.sources import load_split
from kdpipe.stages.trust import refuse_code_in
from kdpipe.training.records import FinishedRecord
from kdpipe.training.runs import RunDirectory

_LARGEST_WEIGHTS = 64 * 1024 * MEGABYTE
_LARGEST_REPORT = 64 * MEGABYTE
_RECORDED = 0.001
"""Largest difference of the run's top-1 here from that which it recorded, perhaps on another device."""


class _Report(BaseModel):
    """The part of a report's ``metrics.json`` that names the run to ship."""

    model_config = ConfigDict(extra="ignore", strict=True)

    recommended_run: Annotated[str, Field(max_length=4096)] | None


def run(params: Export) -> None:
    """Export a run, or the one that a report recommends, to ``params.artifact.out``."""
    formats.check(params.artifact.to, int8=params.quantization.quantize is not None)
    out = params.artifact.out
    with directories.held(out, readme.EXPORT):
        if directories.present(out) and not params.artifact.overwrite:
            raise RunError(f"{out} holds an export. Pass --overwrite to replace it, or --out another directory.")
        _export(params, _directory(params))


def _export(params: Export, directory: RunDirectory) -> None:
    record, recorded = directory.record(FinishedRecord), directory.metrics()
    model = _load(directory, record, trust_code=params.code.trust_code)
    if isinstance(model.preset, TensorPreset):
        raise ModelError(
            f"{directory.path} takes tensors ({model.preset.form}), and only networks of images are exported: load it "
            f'from Python, kdpipe.models.load("run:{directory.path}", ...).'
        )
    test, calibration = _images(params, directory, record, model)
    facts = _facts(params, directory, record, model)
    network = formats.Network(
        model,
        weights=read_bytes(directory.weights, limit=_LARGEST_WEIGHTS, error=RunError),
        classes=tuple(record["classes"]),
        metadata=readme.metadata(facts, of_images(model.preset, "export")),
        calibration=calibration,
        threads=params.images.threads or torch.get_num_threads(),
    )
    say(f"Writing {directory.path} as {', '.join(params.artifact.to)}.")
    tested = checks.measure(formats.write(network, params.artifact.to), model, test, progress=progress)
    _refuse_another_accuracy(directory, tested.run, test, record=record, recorded=recorded)
    quantization = params.quantization
    for warning in checks.refuse_losses(tested, max_drop=quantization.max_drop, allow_drop=quantization.allow_drop):
        say(warning)
    images = {
        "test": {"split": test.split, "images": len(test), "fingerprint": test.fingerprint},
        "calibration": None
        if calibration is None
        else {"split": "train", "images": len(calibration), "seed": quantization.calibration_seed},
    }
    content = readme.files(tested, of_images(model.preset, "export"), network.classes, facts=facts, images=images)
    directories.publish(params.artifact.out, content, readme.EXPORT)
    _show(tested, params.artifact.out)


def _directory(params: Export) -> RunDirectory:
    """Return the run to export: of several seeds the first, which is fixed before anything is tested.

    Raises:
        RunError: the report names none, or not all seed runs are there.
    """
    path = params.artifact.run
    if path is None:
        assert params.artifact.report is not None
        report = params.artifact.report / "metrics.json"
        recommended = read_json(report, _Report, limit=_LARGEST_REPORT, error=RunError).recommended_run
        if recommended is None:
            raise RunError(f"{params.artifact.report} recommends no run: name one with --run.")
        path = Path(recommended)
        say(f"{params.artifact.report} recommends {path}.")
    runs = seed_runs(path)
    if len(runs) > 1:
        say(f"{path} holds {len(runs)} seeds: the first, {runs[0].path.name}, is exported.")
    return runs[0] if runs else RunDirectory(path)


def _load(directory: RunDirectory, record: Mapping[str, Any], *, trust_code: bool) -> Model:
    model = models.load(
        f"run:{directory.path}", num_classes=len(record["classes"]), fallback_statistics=None, trust_code=trust_code
    )
    for remark in model.remarks:
        say(remark)
    return model


def _images(
    params: Export, directory: RunDirectory, record: Mapping[str, Any], model: Model
) -> tuple[Dataset, Pixels | None]:
    """Return the samples to test with, and the images to calibrate int8 with where it is asked for."""
    settings = _dataset(params, directory, record)
    wanted, seed = params.quantization.calibration, params.quantization.calibration_seed
    train = None
    try:
        test = load_split(settings, "test")
    except MissingSplitError as missing:
        train = load_split(settings, "train")
        test = train.subset(np.random.default_rng(seed).permutation(len(train))[:wanted])
        say(f"warning: {missing}. The files are compared with the run on {len(test)} training images instead.")
    if tuple(record["classes"]) != test.classes:
        raise RunError(f"{directory.path} was trained for other classes than those of {settings.data}.")
    if params.quantization.quantize is None:
        return test, None
    train = load_split(settings, "train") if train is None else train
    return test, calibration_images(train, of_images(model.preset, "int8"), count=wanted, seed=seed)


def _dataset(params: Export, directory: RunDirectory, record: Mapping[str, Any]) -> DatasetSettings:
    """Return the dataset of the flags, or the run's own, limited as the flags or else the run say.

    Raises:
        RunError: neither names one.
        UntrustedCodeError: the run's is made by code that is not trusted.
    """
    flags = {
        key: value
        for key in ("data", "limit_train", "limit_test")
        if (value := getattr(params.images, key)) is not None
    }
    own = {key: record["parameters"][key] for key in ("data", "skip_broken") if key in record["parameters"]}
    if "data" not in flags:
        own |= {key: record["parameters"].get(key) for key in ("limit_train", "limit_test")}
        trusted = {"trust_code": True} if params.code.trust_code else {}
        refuse_code_in(
            {"data": own.get("data")}, {**flags, **trusted}, file=directory.path / "run.json", section="parameters"
        )
    if ({**own, **flags}).get("data") is None:
        raise RunError(f"{directory.path}/run.json names no dataset to test with: pass --data.")
    return DatasetSettings.of({**own, **flags})


def _facts(params: Export, directory: RunDirectory, record: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Return what the files say about the network; paths of this machine are left out."""
    lineage = record["lineage"]
    licenses = _licenses(lineage.get("stores") or [])
    of_data = {key: value for key, value in (lineage.get("dataset") or {}).items() if key != "spec"}
    seeded = directory.path.name.startswith("seed-")
    return {
        "name": "/".join(directory.path.resolve().parts[-2:] if seeded else directory.path.resolve().parts[-1:]),
        "architecture": model.name,
        "kdpipe": kdpipe.__version__,
        "weights_blake3": digest_of(directory.weights),
        "run_blake3": digest_of(directory.path / "run.json"),
        "lineage": {
            "dataset": of_data,
            "stores": [store["digest"] for store in lineage.get("stores") or []],
            "teachers": lineage.get("teachers") or [],
        },
        "license": params.artifact.license or licenses,
        "logits_license": licenses,
    }


def _licenses(stores: list[Mapping[str, Any]]) -> str | None:
    """Return the licenses of the logits of those stores that are here, joined; None where none is known."""
    found = []
    for store in stores:
        known = known_manifest(store["path"])
        if known is not None and known.digest == store["digest"] and known.provenance.license is not None:
            found.append(known.provenance.license)
    return "; ".join(dict.fromkeys(found)) or None


def _refuse_another_accuracy(
    directory: RunDirectory, here: Figures, test: Dataset, *, record: Mapping[str, Any], recorded: Mapping[str, Any]
) -> None:
    """Refuse a run whose weights have another top-1 here than it recorded on the same images.

    Raises:
        RunError: they differ by more than devices explain.
    """
    before = recorded["test"]["top1"]
    if test.fingerprint != (record["lineage"].get("dataset") or {}).get("test") or None in (before, here.top1):
        return
    if abs(before - here.top1) > max(_RECORDED, 1.5 / len(test)):
        raise RunError(
            f"{directory.path} recorded a top-1 of {before:.2%} on these test images, and its weights reach "
            f"{here.top1:.2%} here. Nothing was exported; train it again with --overwrite."
        )


def _show(tested: Tested, out: Path) -> None:
    for artifact, figures in tested.artifacts:
        show(
            f"{out / next(iter(artifact.files))}: {artifact.precision}, {artifact.bytes:,} bytes, "
            f"top-1 {checks.shown(figures.top1)} (the run {checks.shown(tested.run.top1)}), "
            f"the run's class for {figures.agreement:.2%}, logits within {figures.difference:.1e}"
        )
    show(f"How to use them: {out / readme.README}")
