"""Outputs of a teacher that has other classes than the dataset: which of them each class of the dataset is made of.

A file tells, or names do: those that are recorded with the teacher's weights, those of a file, or for a teacher of
ImageNet's 1,000 classes their names and WordNet ids. A class that is made of several outputs gets the log-sum-exp of
their logits, so that its probability is the sum of theirs. The other outputs are dropped: the softmax over the classes
of the dataset is the teacher's distribution given that the image is of one of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdpipe.errors import DatasetError, did_you_mean
from kdpipe.pairing.classes import read_pairs, read_text, refuse_unknown
from kdpipe.printable import printable

IMAGENET = "imagenet"
"""The word for ImageNet's 1,000 classes in the place of a file of class names."""
HEADING = ("class", "teacher_class")
"""First line of a file of classes."""
_WORDNET = re.compile(r"(n\d{8})(?:[_ -].*)?", re.ASCII)
_SHOWN = 20

Outputs = tuple[tuple[int, ...], ...]
"""The teacher's outputs that each class is made of."""


@dataclass(frozen=True)
class Names:
    """Names of a teacher's outputs."""

    names: tuple[str, ...]
    """The name of each that is printed."""
    aliases: tuple[tuple[str, ...], ...] = ()
    """Other names of each; empty where there are none."""

    def find(self, name: str, *, by: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """Return the outputs of a name, by the table that ``table`` makes: several if it is ambiguous."""
        for form in _forms(name):
            if form in by:
                return tuple(by[form])
        return ()

    def table(self) -> dict[str, list[int]]:
        """Return the outputs of each form of each name."""
        found: dict[str, list[int]] = defaultdict(list)
        for output, name in enumerate(self.names):
            own = (name, *(self.aliases[output] if self.aliases else ()))
            for form in dict.fromkeys(form for each in own for form in _forms(each)):
                found[form].append(output)
        return dict(found)


def _forms(name: str) -> list[str]:
    """Return the forms under which a name is looked up, the strictest first.

    They are the name as it is (in Unicode form NFC), its WordNet id, the name without case and underscores, and the
    same without the id and of each of several names that commas separate, as in ``n01440764_tench, Tinca tinca``.
    """
    name = unicodedata.normalize("NFC", name)
    wordnet = _WORDNET.fullmatch(name)
    rest = name[len(wordnet[1]) :] if wordnet else name
    parts = [f"~{_plain(part)}" for part in (rest, *rest.split(",")) if _plain(part)]
    return list(dict.fromkeys([name, *([wordnet[1]] if wordnet else []), f"~{_plain(name)}", *parts]))


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


def imagenet() -> Names:
    """Return ImageNet's 1,000 classes by name and WordNet id."""
    text = Path(__file__).with_name("imagenet.txt").read_text(encoding="utf-8")
    pairs = [line.split(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return Names(tuple(name for _, name in pairs), tuple((wordnet,) for wordnet, _ in pairs))


def is_wordnet(classes: Iterable[str]) -> bool:
    """Return whether all class names begin with a WordNet id of one of ImageNet's 1,000 classes."""
    known = {wordnet for (wordnet,) in imagenet().aliases}
    return all((found := _WORDNET.fullmatch(name)) is not None and found[1] in known for name in classes)


def read_names(path: Path) -> Names:
    """Read the names of a teacher's classes from a file of one name per line, in the order of its outputs.

    Raises:
        DatasetError: the file cannot be read, is empty or has an empty line.
    """
    names = tuple(line.strip() for line in read_text(path).splitlines())
    if not names or not all(names):
        where = f"line {names.index('') + 1} is" if names else "it is"
        raise DatasetError(f"{path}: expected the name of one of the teacher's classes in each line; {where} empty.")
    return Names(names)


def read_given(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the names or indices of a teacher's classes of each class of a dataset from a CSV file.

    Raises:
        DatasetError: the file cannot be read, has another form, or a pair twice.
    """
    return read_pairs(path, heading=HEADING, several=True)


@dataclass(frozen=True)
class OutputMap:
    """The classes of a dataset as outputs of a teacher."""

    classes: tuple[str, ...]
    """Class names of the dataset, in order."""
    outputs: Outputs
    """Of each class."""
    total: int
    """Number of the teacher's outputs."""
    given: frozenset[str] = frozenset()
    """Classes that a file maps; the others were found by name."""
    names: tuple[str, ...] = ()
    """Names of all outputs; empty where they are unknown."""

    @property
    def same(self) -> bool:
        """Whether each class is the output of its own index."""
        return self.total == len(self.classes) and self.outputs == tuple((index,) for index in range(self.total))

    def lines(self, teacher: str, spec: str) -> list[str]:
        """Return a line that counts the classes, and the outputs of the first of them."""
        by_name = len(self.classes) - len(self.given)
        counts = [f"{by_name:,} by name"] if by_name else []
        counts += [f"{len(self.given):,} by --class-map"] if self.given else []
        rest = self.total - sum(map(len, self.outputs))
        counts += [f"{rest:,} of its outputs {'is' if rest == 1 else 'are'} not used"] if rest else []
        found = [
            f"The {len(self.classes):,} classes of {spec} from the {self.total:,} of {teacher}: {', '.join(counts)}."
        ]
        width = max(len(printable(name)) for name in self.classes[:_SHOWN])
        for name, outputs in list(zip(self.classes, self.outputs, strict=True))[:_SHOWN]:
            shown = [f"{each} {printable(self.names[each])}" if self.names else str(each) for each in outputs[:4]]
            more = f" + {len(outputs) - 4:,} more" if len(outputs) > 4 else ""
            found.append(f"  {printable(name):{width}}  {' + '.join(shown)}{more}")
        if len(self.classes) > _SHOWN:
            found.append(f"  and {len(self.classes) - _SHOWN:,} more")
        return found


def combine(logits: torch.Tensor, outputs: Outputs) -> torch.Tensor:
    """Return the logits of a dataset's classes, ``(n, classes)``, of those of a teacher, float32 ``(n, total)``.

    The logit of a class that is made of several outputs is the log-sum-exp of theirs.
    """
    first = torch.tensor([each[0] for each in outputs], device=logits.device)
    combined = logits[:, first]
    for index, several in enumerate(outputs):
        if len(several) > 1:
            combined[:, index] = logits[:, list(several)].logsumexp(dim=1)
    return combined


def find_outputs(
    classes: Sequence[str],
    *,
    total: int,
    names: Names | None,
    given: Mapping[str, tuple[str, ...]] | None,
    teacher: str,
    spec: str,
) -> OutputMap | None:
    """Return the outputs of a teacher that each class of a dataset is made of; ``None`` where nothing tells.

    Args:
        classes: of the dataset ``spec``.
        total: the number of the teacher's outputs.
        names: of the outputs, where they are known.
        given: names or indices of the outputs of some classes, from a file.
        teacher: its name, for messages.

    Raises:
        DatasetError: a class is none of the teacher's, or several of them, or two classes are the same; a name or an
            index in ``given`` is unknown.
    """
    table = None if names is None else names.table()
    found: dict[str, tuple[int, ...]] = {}
    given = given or {}
    refuse_unknown(given, classes, where=spec)
    for name, cells in given.items():
        one = [_output(cell, names=names, table=table, total=total, teacher=teacher) for cell in cells]
        found[name] = tuple(dict.fromkeys(one))
    ambiguous: list[str] = []
    if names is not None and table is not None:
        for name in classes:
            outputs = () if name in found else names.find(name, by=table)
            if len(outputs) > 1:
                ambiguous.append(f"'{name}' may be {' or '.join(f'{each} {names.names[each]}' for each in outputs)}")
            elif outputs:
                found[name] = outputs
    if not given and _says_nothing(classes, found, ambiguous, total=total):
        return None
    missing = [
        name for name in classes if name not in found and not any(each.startswith(f"'{name}' ") for each in ambiguous)
    ]
    doubts = [*ambiguous, *([f"no class of the teacher is {_listed(missing)}"] if missing else [])]
    owners: dict[int, str] = {}
    for name, outputs in found.items():
        for output in outputs:
            if output in owners:
                doubts.append(f"'{owners[output]}' and '{name}' would both be its output {output}")
            owners[output] = name
    if doubts:
        writing = "Correct --class-map, or add them to it, as" if given else "Write them to a file of"
        passing = "" if given else ", and pass --class-map FILE"
        more = f" and {len(doubts) - 3:,} more" if len(doubts) > 3 else ""
        raise DatasetError(
            f"{teacher} has {total:,} classes, {spec} has {len(classes):,}: "
            f"{printable('; '.join(doubts[:3]))}{more}. {writing} lines {','.join(HEADING)}, with names "
            f"or indices of the teacher's classes{passing}."
        )
    shown = () if names is None else names.names
    return OutputMap(tuple(classes), tuple(found[name] for name in classes), total, frozenset(given), shown)


def by_order(classes: Sequence[str], names: Names | None) -> list[int]:
    """Return the classes, by index, that are a teacher's of the same index although its name is another one."""
    table = {} if names is None else names.table()
    return [index for index, name in enumerate(classes) if names is not None and not names.find(name, by=table)]


def _says_nothing(
    classes: Sequence[str], found: Mapping[str, tuple[int, ...]], ambiguous: Sequence[str], *, total: int
) -> bool:
    """Return whether names leave a teacher's outputs to be the classes of the same indices."""
    if total != len(classes):
        return not found and not ambiguous
    return all(found.get(name, (index,)) == (index,) for index, name in enumerate(classes))


def _output(
    cell: str, *, names: Names | None, table: Mapping[str, Sequence[int]] | None, total: int, teacher: str
) -> int:
    """Return the output that a cell of a file names, or has the index of."""
    outputs = () if names is None or table is None else names.find(cell, by=table)
    if len(outputs) > 1:
        raise DatasetError(
            f"--class-map names the teacher's class '{printable(cell)}', which are its outputs "
            f"{' and '.join(map(str, outputs))}: give the index."
        )
    if outputs:
        return outputs[0]
    if cell.isascii() and cell.isdecimal() and len(cell) < 10:
        if int(cell) < total:
            return int(cell)
        raise DatasetError(f"--class-map has the index {cell}; {teacher} has the outputs 0 to {total - 1:,}.")
    if names is None:
        raise DatasetError(
            f"--class-map names the teacher's class '{printable(cell)}', and nothing tells the names of the classes of "
            f"{teacher}: give indices, or --teacher-classes FILE with one name per line, or --teacher-classes imagenet."
        )
    hint = did_you_mean(cell, names.names) or "."
    raise DatasetError(
        f"--class-map names the teacher's class '{printable(cell)}', which {teacher} does not have{hint}"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return ", ".join(f"'{name}'" for name in names[:4]) + more
