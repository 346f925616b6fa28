"""Stage `compress`: make a smaller network of a trained one, train it on, and quantize it."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe import models
from kdpipe.compress.recovery import Rounded, TowardParent
from kdpipe.compress.smaller import smaller
from kdpipe.dataset import Dataset
from kdpipe.directories import locked
from kdpipe.errors import AccuracyLossError, RunError
from kdpipe.export.images import calibration_images, plain_batches
from kdpipe.export.onnx import Session, onnx_bytes, quantized
from kdpipe.metrics import accuracy
from kdpipe.models import Model, of_images
from kdpipe.models.optional import required
from kdpipe.models.saved import RUN, architecture_of, digest_of, weights_of
from kdpipe.stages.console import progress, say
from kdpipe.stages.ranks import refuse_ranks
from kdpipe.stages.seed_runs import for_each_seed, run_of_seed
from kdpipe.stages.settings.compress import Compress
from kdpipe.stages.sources import load_model
from kdpipe.stages.students import Trained, train
from kdpipe.training.objective import Objective
from kdpipe.training.records import epochs_of
from kdpipe.training.runs import RunDirectory


def run(params: Compress) -> None:
    """Compress the parent into the run directory ``--out``, or into one for each seed below it."""
    refuse_ranks("compress")
    if params.compression.quantize is not None:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            required(package, extra="deploy")  # before hours of training
    for_each_seed(params, _compress, complete=_is_complete)


def _is_complete(params: Compress) -> bool:
    """Return whether a finished run lacks no int8 model that is asked for."""
    return params.compression.quantize is None or RunDirectory(params.run.out).int8.is_file()


def _compress(params: Compress) -> None:
    parent, record = _parent(params)
    # Without a recovery, what the network has learned it has from the parent's training.
    inherited = () if params.optimization.epochs else ("distill", "loss")
    described = {key: value for key, value in record.items() if key in inherited}
    if not params.run.resume:
        RunDirectory(params.run.out).refuse_results(overwrite=params.run.overwrite)
    trained = train(
        [params],
        stage="compress",
        load=_smaller,
        lineage={"parent": parent},
        described=described,
        changed=partial(_changed, params),
    )
    with locked(params.run.out):
        RunDirectory(params.run.out).int8.unlink(missing_ok=True)
        if params.compression.quantize is not None:
            _quantize(params, trained)


def _parent(params: Compress) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parent for ``run.json``: name, digest, model, and the epochs that went into it; and its own record.

    Raises:
        ModelError: it is not a finished run, or is damaged.
        RunError: the compressed run would replace it, or it has no run of this seed.
    """
    path, out = _parent_run(params), params.run.out
    weights = weights_of(f"{RUN}{path}")
    if path.resolve().is_relative_to(out.resolve()):
        raise RunError(f"{out} holds {path}, the run to compress. Pass another --out.")
    record = RunDirectory(path).record() if (path / "run.json").exists() else {}
    parent = {
        "name": str(path),
        "digest": digest_of(weights),
        "model": architecture_of(weights),
        "epochs": epochs_of(record),
    }
    return parent, record


def _parent_run(params: Compress) -> Path:
    """Return the run to compress: of a directory of seeds that of the same seed."""
    return run_of_seed(params.compression.run, params.run.seed)


def _smaller(params: Compress, train: Dataset) -> Model:
    """Load the parent, and return what is left of it."""
    asked, path = params.compression, _parent_run(params)
    parent = load_model(f"{RUN}{path}", train, seed=params.run.seed, trust_code=params.code.trust_code)
    model = smaller(
        parent,
        num_classes=len(train.classes),
        pruned=asked.prune,
        low_rank=asked.low_rank,
        by=asked.prune_by,
    )
    if model is parent:
        return model
    before, after = (models.macs(each.module, each.preset.size) for each in (parent, model))
    say(
        f"{path}: {after:,} of {before:,} multiply-accumulates ({after / before:.1%}) and {model.parameters:,} of "
        f"{parent.parameters:,} parameters ({model.parameters / parent.parameters:.1%}) are left."
    )
    return model


def _changed(params: Compress, objective: Objective, model: Model) -> Objective:
    """Return the objective with the pull towards the parent and the rounding of int8, where they are asked for."""
    asked = params.compression
    if asked.toward_parent is not None:
        objective = TowardParent(objective, model.module, asked.toward_parent)
    if asked.qat:
        objective = Rounded(objective, model.module, device=models.resolve_device(params.run.device))
    return objective


def _quantize(params: Compress, trained: Trained) -> None:
    """Write the run's network in int8, with its accuracy in the metrics.

    Raises:
        AccuracyLossError: it loses more than ``--max-drop``; the run is finished without it.
        ModelError: a package is missing, or the network cannot be quantized.
    """
    directory, train_split = RunDirectory(params.run.out), trained.data.train
    model = models.load(
        f"{RUN}{directory.path}",
        num_classes=len(train_split.classes),
        fallback_statistics=None,
        trust_code=params.code.trust_code,
    )
    say(f"{directory.path}: quantizing to int8 with {params.compression.calibration:,} training images.")
    images = calibration_images(
        train_split, of_images(model.preset, "int8"), count=params.compression.calibration, seed=params.run.data_seed
    )
    written = quantized(onnx_bytes(model.module, of_images(model.preset, "int8"), names=train_split.classes), images)
    metrics = directory.metrics()
    scores = dict.fromkeys(("top1", "top5", "loss"))
    if trained.test is not None:
        session = Session(written, threads=1)
        logits = []
        with progress("testing int8", total=len(trained.test)) as advance:
            for batch in plain_batches(trained.test, of_images(model.preset, "int8")):
                logits.append(session(batch))
                advance(len(batch))
        scores = asdict(accuracy(np.concatenate(logits), trained.test.labels))
    _refuse_drop(params, before=metrics["test"]["top1"], after=scores["top1"])
    directory.write_int8(written)
    digests = {**metrics.get("weights", {}), directory.int8.name: digest_of(directory.int8)}
    directory.write_metrics({**metrics, "int8": scores, "weights": digests})


def _refuse_drop(params: Compress, *, before: float | None, after: float | None) -> None:
    out, most = params.run.out, params.compression.max_drop
    if before is None or after is None:
        say(f"warning: {out} has no labeled test images: what int8 loses is not measured.")
        return
    drop = (before - after) * 100
    said = f"int8 reaches {after:.2%} test top-1, fp32 {before:.2%}"
    if drop > most + 1e-9:
        again = "--resume" if params.optimization.epochs else "--overwrite"
        raise AccuracyLossError(
            f"{out}: {said}, a loss of {drop:.2f} points and more than --max-drop {most:g}: model.int8.onnx is not "
            f"written, the run is finished without it. Pass {again} with more --calibration images or a higher "
            "--max-drop."
        )
    say(f"{out}: {said}.")
