"""Classes of a dataset that have other names, or another order, than those of a store: which is which.

Equal names are the same class. For the rest, images tell: those that the store has, whatever their names, had a label
when it was made, and a class of the dataset is the one that nearly all of its images were labeled with. Where images do
not tell, a file does.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset, find_ids
from kdpipe.errors import DatasetError, StaleStoreError, did_you_mean
from kdpipe.printable import printable
from kdpipe.reading import read_bytes
from kdpipe.store.reader import LogitStore

HEADING = ("class", "store_class")
"""First line of a file of classes."""
_AGREEING = 0.9
"""Fraction of a class's images with one label from which on that label is its class; others may have been corrected."""
_SHOWN = 20
"""Lines of the table, and refused classes, that are printed."""
_FILE_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Match:
    """A class of a dataset, and the class of the store that it is."""

    name: str
    store_class: str | None
    """``None`` where the store has none of its images."""
    how: str
    """``name``, ``labels`` or ``file``; empty for none."""
    agreeing: int = 0
    """Images of the class that had the label ``store_class`` when the store was made."""
    images: int = 0
    """Images of the class that the store has with a label."""


@dataclass(frozen=True)
class ClassMap:
    """The classes of a dataset as those of a store."""

    classes: tuple[str, ...]
    """Class names of the store, in the order of its logits."""
    matches: tuple[Match, ...]
    """One for each class of the dataset, in its order."""

    @classmethod
    def of_names(cls, classes: Sequence[str], names: Sequence[str], given: Mapping[str, str]) -> ClassMap:
        """Return the map of ``names`` to ``classes`` that equal names and ``given`` make."""
        same = set(classes)
        return cls(
            tuple(classes),
            tuple(
                Match(name, given[name], "file")
                if name in given
                else Match(name, name if name in same else None, "name" if name in same else "")
                for name in names
            ),
        )

    @property
    def recorded(self) -> dict[str, str]:
        """The classes by name, as a run records them."""
        return {match.name: match.store_class for match in self.matches if match.store_class is not None}

    @property
    def columns(self) -> list[int] | None:
        """The store's column of each class of the dataset; ``None`` where the store lacks one."""
        place = {name: index for index, name in enumerate(self.classes)}
        found = [place[match.store_class] for match in self.matches if match.store_class is not None]
        return found if len(found) == len(self.matches) else None

    def of(self, dataset: Dataset) -> Dataset:
        """Return the dataset with the store's classes; the labels of other classes become -1, for none.

        Raises:
            DatasetError: it has other classes than the map.
        """
        if dataset.classes != tuple(match.name for match in self.matches):
            raise DatasetError(f"the '{dataset.split}' split of {dataset.spec} has other classes than the other split.")
        place = {name: index for index, name in enumerate(self.classes)}
        to = [-1 if match.store_class is None else place[match.store_class] for match in self.matches]
        labels = np.array([*to, -1], dtype=np.int32)[dataset.labels]
        origin = None if dataset.origin is None else self.of(dataset.origin)
        return replace(dataset, classes=self.classes, labels=labels, origin=origin)

    def lines(self, store: Path, spec: str) -> list[str]:
        """Return the table of the classes that have other names, after a line that counts all."""
        by = {how: [match for match in self.matches if match.how == how] for how in ("name", "labels", "file", "")}
        counts = [f"{len(by['name']):,} by name"] if by["name"] else []
        counts += [f"{len(by['labels']):,} by the labels of their images"] if by["labels"] else []
        counts += [f"{len(by['file']):,} by --class-map"] if by["file"] else []
        counts += [f"{len(by['']):,} {'is' if len(by['']) == 1 else 'are'} not in the store"] if by[""] else []
        lines = [
            f"The {len(self.matches):,} classes of {spec} as the {len(self.classes):,} of {store}: {', '.join(counts)}."
        ]
        renamed = [*by["labels"], *by["file"]]
        width = max((len(printable(match.name)) for match in renamed[:_SHOWN]), default=0)
        for match in renamed[:_SHOWN]:
            images = f"  ({match.agreeing:,} of {match.images:,} images)" if match.how == "labels" else ""
            lines.append(f"  {printable(match.name):{width}}  {printable(match.store_class or '')}{images}")
        if len(renamed) > _SHOWN:
            lines.append(f"  and {len(renamed) - _SHOWN:,} more")
        return lines


def read_class_map(path: Path) -> dict[str, str]:
    """Read the store's class of each class of a dataset from a CSV file with the heading ``class,store_class``.

    Raises:
        DatasetError: the file cannot be read, has another form, or a class twice.
    """
    return {name: first for name, (first,) in read_pairs(path, heading=HEADING).items()}


def read_text(path: Path) -> str:
    """Read a file of class names, in UTF-8 with or without a byte order mark.

    Raises:
        DatasetError: it cannot be read, or is in another encoding.
    """
    try:
        return read_bytes(path, limit=_FILE_BYTES, error=DatasetError, follow=True).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is not in UTF-8.") from None


def read_pairs(path: Path, *, heading: tuple[str, str], several: bool = False) -> dict[str, tuple[str, ...]]:
    """Read which classes each class of a dataset is, from a CSV file that may begin with a heading.

    With ``several``, a class may be several, in further columns or lines.

    Raises:
        DatasetError: the file cannot be read, has another form, or a class or pair twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(csv.reader(io.StringIO(read_text(path))), start=1):
        cells = [cell.strip() for cell in row]
        if several:
            while len(cells) > 2 and not cells[-1]:
                cells.pop()
        if not any(cells) or (number == 1 and tuple(cells) == heading):
            continue
        if len(cells) < 2 or not all(cells) or (len(cells) > 2 and not several):
            whose = heading[1].partition("_")[0]
            raise DatasetError(
                f"{path}, line {number}: expected a class and the {whose}'s class{' or classes' * several}, as in: "
                f"{','.join(heading)}"
            )
        name, others = cells[0], tuple(cells[1:])
        if (name in found and not several) or {*others} & {*found.get(name, ())} or len({*others}) < len(others):
            raise DatasetError(f"{path}, line {number}: the class {printable(name)} occurs twice.")
        found[name] = (*found.get(name, ()), *others)
    return found


def find_classes(store: LogitStore, dataset: Dataset, *, given: Mapping[str, str] | None = None) -> ClassMap | None:
    """Return which class of a store each class of a dataset is; ``None`` where all are the same, in order, or none is.

    Args:
        store: the classes, and the labels of its samples when it was made.
        dataset: has the store's ids of the samples that it has; see ``join.with_store_ids``.
        given: the store's class of some classes by name, which is not doubted.

    Raises:
        StaleStoreError: images and names do not tell the class of the store of all classes with images in it.
        DatasetError: ``given`` has names that there are not.
    """
    given = given or {}
    refuse_unknown(given, dataset.classes, where=dataset.spec)
    refuse_unknown(given.values(), store.classes, where=str(store.path))
    if dataset.classes == store.classes and not given:
        return None
    named = ClassMap.of_names(store.classes, dataset.classes, given)
    votes, covered = _votes(store, dataset, find_ids(dataset.sample_ids, store.sample_ids))
    matches, doubts = [], []
    for match, own, images in zip(named.matches, votes, covered.tolist(), strict=True):
        found, doubt = (match, "") if match.how == "file" else _judged(match, own, images, store.classes)
        matches.append(found)
        doubts += [doubt] if doubt else []
    taken: dict[str, str] = {}
    for match in matches:
        if match.store_class is not None and match.how != "file":
            if match.store_class in taken:
                doubts.append(f"'{taken[match.store_class]}' and '{match.name}' would both be '{match.store_class}'")
            taken[match.store_class] = match.name
    if doubts:
        more = f" and {len(doubts) - 3:,} more" if len(doubts) > 3 else ""
        raise StaleStoreError(
            f"{store.path} has other classes than {dataset.spec}, and their images do not tell which are the same: "
            f"{printable('; '.join(doubts[:3]))}{more}. Write them to a file of lines {','.join(HEADING)} and pass "
            "--class-map FILE."
        )
    return ClassMap(store.classes, tuple(matches)) if taken or given else None


def in_classes_of(store: LogitStore, dataset: Dataset, known: Mapping[str, str]) -> tuple[Dataset, list[int] | None]:
    """Return a dataset with a store's classes, by their ``known`` names, and the store's column of each of its own.

    The latter is ``None`` where the store lacks one; the dataset is the same if nothing is known of its classes.
    """
    if dataset.classes == store.classes or not {*known}.issubset(dataset.classes):
        return dataset, list(range(store.num_classes))
    found = ClassMap.of_names(store.classes, dataset.classes, known)
    return found.of(dataset), found.columns


def _votes(
    store: LogitStore, dataset: Dataset, rows: npt.NDArray[np.int64]
) -> tuple[list[dict[int, int]], npt.NDArray[np.int64]]:
    """Return, of each class, its images by their label in the store, and how many of its images the store has."""
    has = (rows >= 0) & (dataset.labels >= 0)
    then, now = store.labels[rows[has]], dataset.labels[has]
    known = (then >= 0) & (then < store.num_classes)
    pairs, counts = np.unique(now[known].astype(np.int64) * store.num_classes + then[known], return_counts=True)
    votes: list[dict[int, int]] = [{} for _ in dataset.classes]
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        votes[pair // store.num_classes][pair % store.num_classes] = count
    return votes, np.bincount(now, minlength=len(dataset.classes))


def _judged(match: Match, votes: Mapping[int, int], images: int, classes: Sequence[str]) -> tuple[Match, str]:
    """Return a class as its name and its images tell, and what speaks against it."""
    total = sum(votes.values())
    label = max(votes, key=lambda each: votes[each], default=-1)
    agreeing = votes.get(label, 0)
    if match.how == "name":
        if agreeing >= _AGREEING * total and total and classes[label] != match.store_class:
            return match, f"{agreeing:,} of {total:,} images of '{match.name}' were labeled '{classes[label]}'"
        return match, ""
    if not images:
        return match, ""
    if not total:
        return match, f"the store knows no label of the {images:,} images of '{match.name}'"
    if agreeing < _AGREEING * total:
        return match, f"{agreeing:,} of {total:,} images of '{match.name}' were labeled '{classes[label]}'"
    return Match(match.name, classes[label], "labels", agreeing, total), ""


def refuse_unknown(names: Iterable[str], known: Sequence[str], *, where: str) -> None:
    """Refuse a file that names a class which is not there.

    Raises:
        DatasetError: one of ``names`` is not ``known``; the message says ``where``, and names the nearest.
    """
    there = set(known)
    unknown = [name for name in names if name not in there]
    if unknown:
        hint = did_you_mean(unknown[0], known) or "."
        raise DatasetError(f"--class-map names the class '{printable(unknown[0])}', which {where} does not have{hint}")
