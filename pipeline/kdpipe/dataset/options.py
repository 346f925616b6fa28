"""Specs of datasets with options: ``PATH,key=value,...``, and the files of a split that a pattern names."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdpipe import spec
from kdpipe.dataset.names import nfc
from kdpipe.dataset.sources import suggest_path
from kdpipe.errors import DatasetError, MissingSplitError, did_you_mean

WORDS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation", "dev")}
"""Words in a file's path that tell its split, the preferred one first."""

_OPTION = re.compile(r",\s*([a-z_]+)\s*=")
_NUMBERS = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MOST_SHARDS = 100_000


def options(kind: str, written: str, known: Sequence[str]) -> tuple[str, Mapping[str, str]]:
    """Return the path and the options of a spec; values are in the grammar of ``kdpipe.spec``.

    Raises:
        DatasetError: the path is missing, or an option is unknown or given twice.
    """
    found = _OPTION.search(written)
    path, rest = (written[: found.start()], written[found.start() + 1 :]) if found else (written, "")
    if not path:
        raise DatasetError(f"dataset '{kind}:{written}' lacks a path before its options")
    if not found:
        return path, {}
    terms = spec.parse(f"{kind}:{rest.replace('+', '%2B')}", error=DatasetError)
    given = {key: value.replace("%2B", "+") for key, value in terms[0].settings.items()}
    for key in given:
        if key not in known:
            near = did_you_mean(key, known)
            raise DatasetError(f"{kind}: has no option '{key}', expected {', '.join(known) or 'none'}{near}")
    if terms[0].values or not all(given.values()):
        raise DatasetError(f"the options '{rest}' of {kind}: are not all KEY=VALUE; write one value for each key")
    return path, given


def split_files(pattern: str, split: str, *, kind: str) -> list[Path]:
    """Return the files of a split, in the order of their names.

    ``{split}`` in a pattern stands for the split's words, ``{000..119}`` for these numbers; without ``{split}``, the
    last word in a file's path below the pattern's fixed part that names a split decides.

    Raises:
        MissingSplitError: there are files, but none of this split.
        DatasetError: no file matches, or a file's path names no split.
    """
    pattern = str(Path(pattern).expanduser())
    if "{split}" in pattern:
        for word in WORDS[split]:
            files = _matching(pattern.replace("{split}", word))
            if files:
                return files
        tried = " or ".join(f"'{word}'" for word in WORDS[split])
        raise MissingSplitError(f"no file matches '{pattern}' with {tried} for {{split}}; check the path")
    files = _matching(pattern)
    if not files:
        raise DatasetError(f"no file matches '{pattern}'{_near(pattern)}")
    named = {file: _named_split(file, pattern) for file in files}
    lost = [file for file, word in named.items() if word is None]
    if lost:
        raise DatasetError(
            f"'{lost[0]}' does not tell its split: expected {_all_words()} in its path, or {{split}} in the pattern "
            f"of '{kind}:{pattern}'"
        )
    for word in WORDS[split]:
        if chosen := [file for file in files if named[file] == word]:
            return chosen
    found = ", ".join(sorted({str(word) for word in named.values()}))
    wanted = " or ".join(f"'{word}'" for word in WORDS[split])
    raise MissingSplitError(
        f"no file of '{pattern}' is of the {split} split: expected {wanted} in its path, found {found}"
    )


def _near(pattern: str) -> str:
    fixed = Path(_fixed(pattern))
    return "; check the path" if fixed.exists() else suggest_path(fixed) or "; check the path"


def _matching(pattern: str) -> list[Path]:
    files = [Path(name) for each in _numbered(pattern) for name in sorted(glob.glob(each, recursive=True))]  # noqa: PTH207
    return [file for file in dict.fromkeys(files) if not file.is_dir()]


def _numbered(pattern: str) -> list[str]:
    """Return the patterns that one with ``{000..119}`` stands for."""
    found = _NUMBERS.search(pattern)
    if not found:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MOST_SHARDS:
        raise DatasetError(f"'{found[0]}' in '{pattern}' names no files, expected {{FIRST..LAST}}")
    digits = len(found[1])
    rest = _numbered(pattern[found.end() :])
    head = pattern[: found.start()]
    return [f"{head}{number:0{digits}}{tail}" for number in range(first, last + 1) for tail in rest]


def _fixed(pattern: str) -> str:
    """Return the folder of a pattern before its first wildcard."""
    return re.split(r"[*?\[{]", pattern)[0].rpartition("/")[0]


def _named_split(file: Path, pattern: str) -> str | None:
    below = str(file)[len(_fixed(pattern)) :].lower()
    words = re.split(r"[^a-z]+", below)
    known = [word for both in WORDS.values() for word in both]
    return next((word for word in reversed(words) if word in known), None)


def _all_words() -> str:
    return " or ".join(f"'{words[0]}'" for words in WORDS.values())


def dataset_name(pattern: str) -> str:
    """Return the name of a dataset from the folder of a pattern's fixed part."""
    name = Path(_fixed(str(Path(pattern).expanduser().absolute()))).name
    return nfc(name) or "images"
