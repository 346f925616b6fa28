"""``hf:PATH`` and ``hf:NAME``: datasets of Hugging Face ``datasets``, which loads them; nothing of theirs is run.

A folder is one of ``save_to_disk``, or one of files that the library reads: images with ``metadata.csv``, Parquet, and
others, which it converts to Arrow files in its own cache. A name is one of its hub, in that cache unless the request
may download. Images are read from the Arrow files, or from the files that these name.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kdpipe.dataset.arrow import STREAM
from kdpipe.dataset.options import WORDS, options
from kdpipe.dataset.registry import Listing, Request, register
from kdpipe.dataset.sources import suggest_path
from kdpipe.dataset.tabular import OPTIONS, Tables, list_tables
from kdpipe.errors import DatasetError, MissingSplitError, did_you_mean
from kdpipe.printable import first_line, printable
from kdpipe.reading import MEGABYTE, parse_yaml, read_bytes

_SAFE = 4
"""The version of the library from which on it runs no code of a dataset."""
_READERS = ("imagefolder", "parquet", "arrow", "cache")
"""Readers of the library that may convert files; ``cache`` is that of a dataset that was downloaded before."""

_CARDS = ("README.md", ".huggingface.yaml")
"""Files of a folder in which the library looks for the names of the data's files."""
_LARGEST_CARD = 16 * MEGABYTE
_HEADER = re.compile(rb"\s*---(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z)", re.DOTALL)


@register("hf:PATH_OR_NAME", source="https://huggingface.co/docs/datasets")
def list_hf(request: Request, written: str) -> Listing:
    """Datasets of Hugging Face: a folder of save_to_disk, a folder of images with metadata, or a name of its hub.

    Raises:
        MissingSplitError: The dataset has no such split.
        DatasetError: The dataset is missing, damaged, or its columns are not those of a classification dataset.
    """
    path, given = options("hf", written, (*OPTIONS, "config", "train", "test", "streaming"))
    if "streaming" in given:
        raise DatasetError(
            "hf: does not stream: images are read at random, and several times; download the dataset with --download"
        )
    with request.progress(f"opening {path}", total=1, unit="datasets") as report:
        opened = open_hf(path, config=given.get("config"), download=request.download)
        report(1)
    folder = Path(path).expanduser().absolute()
    local = folder.is_dir()
    tables = Tables(
        name=folder.name if local else path,
        form=STREAM,
        files=lambda split: _files(opened, split, given, path),
        given=given,
        memory=f"hf {folder if local else path} {given.get('config')} {given.get('image')}",
        features=lambda split: _split(opened, split, given, path).features.to_dict(),
        roots=(folder,) if local else _caches(),
        named_by_path=local,
    )
    return list_tables(request, tables)


def open_hf(path: str, *, config: str | None = None, download: bool = False) -> Mapping[str, Any]:
    """Return the splits of a dataset by name, each a ``datasets.Dataset``.

    Raises:
        DatasetError: it is missing or cannot be loaded, or the library is not installed.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        raise DatasetError(f"'{path}' is a file, expected a folder or a name; for Parquet pass parquet:{path}")
    if not folder.is_dir() and ("://" in path or path.count("/") > 1 or path.startswith((".", "/", "~"))):
        raise DatasetError(f"there is no folder '{path}'{suggest_path(folder) or '; check the path'}")
    _refuse_other_places(folder)
    try:
        with quiet(download=download) as library:
            if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
                found = library.load_from_disk(str(folder.absolute()))
            else:
                where = str(folder.absolute()) if folder.is_dir() else path
                builder = library.load_dataset_builder(where, config, cache_dir=str(_caches()[0]))
                reader = type(builder).__module__.rpartition(".")[2]
                if reader not in _READERS:
                    raise DatasetError(
                        f"'{path}' is read by '{reader}' of datasets, expected one of {', '.join(_READERS)}; "
                        f"{'pass webdataset:GLOB.tar' if reader == 'webdataset' else 'write it with save_to_disk'}"
                    )
                builder.download_and_prepare()
                found = builder.as_dataset()
    except DatasetError:
        raise
    except Exception as error:  # the library raises anything on damaged and missing datasets
        raise _unusable(path, folder, error=error, download=download) from error
    return found if isinstance(found, dict) else {"train": found}


@contextlib.contextmanager
def quiet(*, download: bool) -> Iterator[Any]:
    """Import the library, and let it print nothing and, unless it may download, reach no network.

    Raises:
        DatasetError: it is not installed.
    """
    try:
        library = importlib.import_module("datasets")
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise DatasetError(f"hf: needs the package datasets ({error}); run: pip install 'kdpipe[hf]'") from error
    if int(library.__version__.partition(".")[0]) < _SAFE:
        raise DatasetError(
            f"hf: needs datasets {_SAFE} or newer, which runs no code of a dataset, found {library.__version__}; run: "
            "pip install 'kdpipe[hf]'"
        )
    offline = library.config.HF_HUB_OFFLINE, hub.constants.HF_HUB_OFFLINE
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels, bars = [logger.level for logger in loggers], library.is_progress_bar_enabled()
    hub_bars = not hub.utils.are_progress_bars_disabled()
    hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        library.config.HF_HUB_OFFLINE = hub.constants.HF_HUB_OFFLINE = not download or any(offline)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        library.disable_progress_bars()
        if hub_bars:
            hub.utils.disable_progress_bars()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield library
            gc.collect()  # the library leaves files open, of which Python would warn later
    finally:
        library.config.HF_HUB_OFFLINE, hub.constants.HF_HUB_OFFLINE = offline
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            library.enable_progress_bars()
        if hub_bars:
            hub.utils.enable_progress_bars()


def _refuse_other_places(folder: Path) -> None:
    """Refuse a folder whose description names files elsewhere, which the library would fetch or read even offline.

    Raises:
        DatasetError: it does, or its description cannot be read.
    """
    for card in (folder / name for name in _CARDS if (folder / name).is_file()):
        content = read_bytes(card, limit=_LARGEST_CARD, error=DatasetError, follow=True)
        if card.suffix == ".md":
            header = _HEADER.match(content)
            content = b"" if header is None else header[1]
        described = parse_yaml(content, of=card, error=DatasetError)
        configs = described.get("configs") if isinstance(described, dict) else None
        for config in configs if isinstance(configs, list) else []:
            given = [config.get(key) for key in ("data_files", "data_dir")] if isinstance(config, dict) else []
            if (place := next(filter(_is_elsewhere, _texts(given)), None)) is not None:
                raise DatasetError(
                    f"{card} names the data '{printable(place)[:100]}', which is not below {folder}: not read"
                )


def _is_elsewhere(place: str) -> bool:
    """Return whether the path of data in a description may lead out of its folder, or into an archive or a network."""
    signs = "://" in place or "::" in place or place.startswith(("/", "~"))
    return signs or ".." in PurePosixPath(place).parts


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in nested lists and dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _caches() -> tuple[Path, Path]:
    """Return the folders of the library's caches: of datasets, and of files of the hub."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    given = (os.environ.get("HF_DATASETS_CACHE"), os.environ.get("HF_HUB_CACHE"))
    datasets, hub = (
        Path(own or home / name).expanduser() for own, name in zip(given, ("datasets", "hub"), strict=True)
    )
    return datasets, hub


def _unusable(path: str, folder: Path, *, error: Exception, download: bool) -> DatasetError:
    reason = first_line(error)
    if folder.is_dir():
        return DatasetError(f"'{path}' cannot be loaded by datasets: {reason}")
    if download:
        return DatasetError(f"'{path}' could not be downloaded: {reason}; check the name, the network and the disk")
    near = suggest_path(folder)
    return DatasetError(
        f"there is no folder '{path}', and no such dataset in the cache of datasets{near or '; add --download'}"
    )


def _split(opened: Mapping[str, Any], split: str, given: Mapping[str, str], path: str) -> Any:
    """Return the dataset of a split: the one that was asked for, or that has a word for it as its name.

    Raises:
        MissingSplitError: there is none.
    """
    if split in given:
        if given[split] not in opened:
            near = did_you_mean(given[split], opened)
            raise MissingSplitError(f"'{path}' has no split '{given[split]}', found {', '.join(opened)}{near}")
        return opened[given[split]]
    name = next((word for word in WORDS[split] if word in opened), None)
    if name is None:
        raise MissingSplitError(
            f"'{path}' has no {split} split, found {', '.join(opened)}; name one with ,{split}=NAME"
        )
    return opened[name]


def _files(opened: Mapping[str, Any], split: str, given: Mapping[str, str], path: str) -> list[Path]:
    """Return the Arrow files of a split.

    Raises:
        DatasetError: the dataset is not simply the rows of its files.
    """
    found = _split(opened, split, given, path)
    files = [Path(each["filename"]) for each in found.cache_files]
    if not files or sum(map(STREAM.rows, files)) != len(found):
        raise DatasetError(
            f"the {split} split of '{path}' is not simply the rows of its files; write it with save_to_disk"
        )
    return files
