"""What a training of kdpipe left behind, as a model: ``run:DIR`` stands for a finished run directory."""

from __future__ import annotations

from pathlib import Path

from kdpipe.errors import ModelError
from kdpipe.models.weights import read_header

PREFIX = "run:"


def is_run(name: object) -> bool:
    """Say whether the name is ``run:DIR``."""
    return isinstance(name, str) and name.startswith(PREFIX)


def weights_of(name: str) -> Path:
    """Return the weights of ``run:DIR``, those of its last epoch.

    Raises:
        ModelError: the directory is missing, is not that of one run, or its training is not finished.
    """
    folder = Path(name.removeprefix(PREFIX))
    weights = folder / "model.safetensors"
    if not folder.is_dir():
        raise ModelError(f"'{name}': there is no directory {folder}")
    # The metrics are what a training writes last.
    if weights.is_file() and (folder / "metrics.json").is_file():
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
        ModelError: the file cannot be read, or its header does not say.
    """
    architecture = read_header(weights).get("architecture")
    if architecture is None:
        raise ModelError(f"{weights}: its header names no architecture; give the model's name, and the file as weights")
    return architecture
