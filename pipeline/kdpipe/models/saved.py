"""Models that carry their own weights: ``file:PATH``, a program or an ONNX model; ``run:DIR``, a finished run.

The digests of a run's weights are in its ``metrics.json``, and are compared whenever the weights are loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from kdpipe.errors import ModelError
from kdpipe.models.interface import Interface
from kdpipe.models.preset import from_header
from kdpipe.models.registry import Kind, Loaded, refuse_weights, register
from kdpipe.reading import MEGABYTE, hashed, read_json, why_unread

RUN = "run:"
"""Prefix of a run's directory as a name or as weights."""


class _Recorded(BaseModel):
    """The part of ``metrics.json`` and ``run.json`` that holds the digests."""

    model_config = ConfigDict(extra="ignore", strict=True)

    weights: dict[str, Annotated[str, Field(max_length=64)]] | None = None


def digest_of(path: Path) -> str:
    """Return the BLAKE3 digest of a file, in hexadecimal.

    Raises:
        ModelError: it is missing, no regular file, or cannot be read.
    """
    try:
        return hashed(path).hexdigest()
    except OSError as failure:
        raise ModelError(f"{path} cannot be read: {why_unread(failure)}.") from None


def refuse_damaged(weights: Path) -> None:
    """Compare a run's weights with the digest in the ``metrics.json`` beside them, where it has one.

    Raises:
        ModelError: they differ, or one of the two files is no regular file.
    """
    found = digest_of(weights)
    for name in ("metrics.json", "run.json"):
        record = weights.with_name(name)
        if not record.exists():
            continue
        recorded = (read_json(record, _Recorded, limit=16 * MEGABYTE, error=ModelError).weights or {}).get(weights.name)
        if recorded is not None and recorded != found:
            raise ModelError(
                f"{weights} is damaged or was replaced: its digest is {found[:8]}, {name} recorded {recorded[:8]}. "
                "Restore it from a copy, or train again with --overwrite."
            )


def load_file(
    path: str,
    weights: str | Path | None,
    num_classes: int,
    *,
    trust_code: bool,
    interface: Interface,
) -> Loaded:
    """Load a program or an ONNX model; its preset is the size of its input, and what ``kdpipe export`` has described.

    A program of uint8 images normalizes them itself, and is given them as they are.

    Raises:
        ModelError: weights are given, or the file is missing, damaged or takes something else than images.
        UntrustedCodeError: it needs code that is not trusted.
    """
    from kdpipe.models.archive import description
    from kdpipe.models.program import PIXELS, load_program
    from kdpipe.models.weights import read_classes

    refuse_weights(f"file:{path}", weights)
    remarks: tuple[str, ...] = ()
    if Path(path).suffix == ".onnx":
        from kdpipe.models.onnx import load_onnx

        file = load_onnx(Path(path), num_classes=num_classes, asked=interface)
        program, described, found = file.module, file.metadata, file.interface
    else:
        program = load_program(Path(path), trust_code=trust_code)
        described, found = description(Path(path)), Interface()
        if trust_code:
            remarks = (
                f"file:{path} was read by torch's own loader, which runs the code that it holds (--trust-code).",
            )
    recorded = from_header(described, Path(path))
    if program.size not in (None, recorded.size):
        kernel = recorded.interpolation if recorded.size is None else None
        recorded = replace(recorded, size=program.size, resize=program.size, interpolation=kernel)
    mean, std = PIXELS if program.takes_pixels else (recorded.mean, recorded.std)
    preset = replace(recorded, source="program", mean=mean, std=std)
    return Loaded(program, (preset,), read_classes(described, Path(path)), interface=found, remarks=remarks)


def resolve_run(name: str, weights: str | Path | None) -> tuple[str, str | Path | None]:
    """Replace ``run:DIR`` as a name by the run's architecture and weights, and as weights by the run's weights.

    Raises:
        ModelError: the run is missing or not finished, its weights name no architecture, or a name ``run:DIR`` is
            given other weights.
    """
    if name.startswith(RUN):
        refuse_weights(name, weights)
        found = weights_of(name)
        return architecture_of(found), found
    if isinstance(weights, str) and weights.startswith(RUN):
        return name, weights_of(weights)
    return name, weights


def weights_of(name: str) -> Path:
    """Return the weights of ``run:DIR``, those of its last epoch.

    Raises:
        ModelError: the directory is missing, is not that of one run, or its training is not finished.
    """
    folder = Path(name.removeprefix(RUN))
    weights = folder / "model.safetensors"
    if not folder.is_dir():
        raise ModelError(f"'{name}': there is no directory {folder}")
    # The metrics are what a training writes last.
    if weights.is_file() and (folder / "metrics.json").is_file():
        if weights.is_symlink():
            raise ModelError(f"'{name}': {weights} is a link, which a run never holds; pass the file as --weights")
        refuse_damaged(weights)
        return weights
    if (folder / "run.json").is_file():
        raise ModelError(f"'{name}': the training is not finished; go on with it by --resume, or name another run")
    seeds = sorted(path.name for path in folder.glob("seed-*"))
    if seeds:
        raise ModelError(f"'{name}' holds a run for each of {len(seeds)} seeds; name one, such as {name}/{seeds[0]}")
    raise ModelError(f"'{name}' is not a finished run of kdpipe: expected {weights.name} and metrics.json in {folder}")


def architecture_of(weights: Path) -> str:
    """Return the name of the network that a run's weights belong to.

    Raises:
        ModelError: the file cannot be read, or its header names no architecture.
    """
    from kdpipe.models.weights import read_header

    architecture = read_header(weights).get("architecture")
    if architecture is None:
        raise ModelError(f"{weights}: its header names no architecture; give the model's name, and the file as weights")
    return architecture


register(Kind("run:DIR", "The network that a finished run of kdpipe trained, with its weights."))
register(
    Kind(
        "file:PATH",
        "A program of torch.export (.pt2) or an ONNX model (.onnx), with its weights.",
        source="https://onnx.ai",
        load=load_file,
        foreign=True,
    )
)
