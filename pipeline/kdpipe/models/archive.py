"""Archives of ``torch.export.save``, read so that nothing in the file runs as code.

``torch.export.load`` unpickles, imports what names in the file point to, and evaluates its expressions. ``sanitized``
therefore checks every entry and every word of a ``.pt2`` file, and returns a new archive of what it has checked:
tensors as raw bytes, and a graph of PyTorch's own operators. The sample inputs, a pickle that no computation needs, and
extra files are left out.
"""

from __future__ import annotations

import io
import json
import math
import operator
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdpipe.errors import ModelError, UntrustedCodeError
from kdpipe.printable import printable
from kdpipe.reading import MEGABYTE, open_regular, parse_json

_GRAPH = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d{1,7}")
_PLAIN = ("archive_format", "archive_version", "byteorder", "version", ".data/version", ".data/serialization_id")
_EXTRA = re.compile(r"(data/)?extra/")
"""Texts that a caller of ``torch.export.save`` adds; they are left out."""
DESCRIPTION = "kdpipe.json"
"""The extra text in which ``kdpipe export`` describes the network: a JSON object of texts."""
_MAX_JSON = 64 * MEGABYTE
_MAX_ENTRIES = 100_000

_WORDS = re.compile(r"[A-Za-z0-9_.]{0,1000}")
"""Names in a graph; they become names in the code that torch generates."""
_VALUES = re.compile(r"[A-Za-z0-9_., \->]{0,200}")
"""Values of text arguments, such as ``tanh`` or ``bhid,bhjd->bhij``."""
_TEXT_ARGUMENTS = ("approximate", "equation", "indexing", "mode", "padding_mode", "reduce", "rounding_mode")
_EXPRESSION = re.compile(r"(?:[A-Za-z]\w*|\d{1,18}|//|[-+*/(),<>=\s])*", re.ASCII)
_DECLARED = re.compile(
    r"Symbol\('([a-z]{1,4}\d{1,6})'(?:, (?:integer|positive|nonnegative|real)=True){0,4}\)", re.ASCII
)
_POWER = re.compile(r"Pow\(([a-z]{1,4}\d{1,6}), Integer\(-?\d\)\)", re.ASCII)
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}", re.ASCII)
_FUNCTIONS = frozenset(
    (
        *("Integer", "Add", "Mul", "Rational", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv"),
        *("CeilDiv", "ModularIndexing", "Where", "Eq", "Ne", "Gt", "Ge", "Lt", "Le", "And", "Or", "Not"),
        *("CeilToInt", "FloorToInt", "IntTrueDiv", "ToFloat", "TruncToInt", "Identity", "True", "False"),
    )
)
_ARITHMETIC = frozenset(
    (
        *("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem", "eq", "ne", "lt", "le", "gt"),
        *("ge", "and_", "or_", "not_"),
    )
)
_SYMBOLIC = frozenset(f"torch.sym_{name}" for name in ["int", "float", "max", "min", "not", "ite", "sqrt"])
_ROUNDING = frozenset(f"math.{name}" for name in ["ceil", "floor", "trunc"])
_ARGUMENTS = frozenset(
    (
        *("as_none", "as_tensor", "as_tensors", "as_int", "as_ints", "as_float", "as_floats", "as_string"),
        *("as_bool", "as_bools", "as_sym_int", "as_sym_ints", "as_sym_float", "as_sym_floats", "as_sym_bool"),
        *("as_sym_bools", "as_scalar_type", "as_memory_format", "as_layout", "as_device", "as_name"),
        *("as_optional_tensor", "as_optional_tensors", "as_expr"),
    )
)
_FAULTS = (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError)
"""Errors of zipfile on damaged files."""
_SPECS = ("builtins.tuple", "builtins.list", "builtins.dict", None)


def sanitized(path: Path) -> io.BytesIO:
    """Return a copy of the program at ``path`` that ``torch.export.load`` loads without running code from it.

    Raises:
        ModelError: the file is missing or no program.
        UntrustedCodeError: it holds a pickle, or something else that would be run.
    """
    try:
        with open_regular(path, follow=True) as file, zipfile.ZipFile(file) as archive:
            entries = _entries(archive, path)
            kept = {name: entry for name, entry in entries.items() if name != _SAMPLES and not _EXTRA.match(name)}
            checked = {name: archive.read(entry) for name, entry in kept.items()}
    except FileNotFoundError:
        raise ModelError(f"{path}: there is no such file") from None
    except _FAULTS as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{path}: not a program saved with torch.export.save: {printable(reason)[:200]}") from None
    for name in _CONFIGS:
        checked[name] = _payloads(_parsed(checked[name], path), checked, folder=name.rpartition("/")[0], path=path)
    checked[_GRAPH] = _graph(_parsed(checked[_GRAPH], path), path)
    checked[_SAMPLES] = b""
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
        for name, content in checked.items():
            archive.writestr(f"model/{name}", content)
    copy.seek(0)
    return copy


def description(path: Path) -> dict[str, str]:
    """Return the texts with which ``kdpipe export`` described the program at ``path``; none if others wrote it.

    Raises:
        ModelError: they are damaged.
    """
    try:
        with open_regular(path, follow=True) as file, zipfile.ZipFile(file) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            name = names.get(f"extra/{DESCRIPTION}")
            if name is None:
                return {}
            if archive.getinfo(name).file_size > _MAX_JSON:
                raise ModelError(f"{path}: its entry {DESCRIPTION} is larger than {_MAX_JSON:,} bytes: not loaded")
            content = _parsed(archive.read(name), path)
    except _FAULTS as error:
        raise ModelError(f"{path}: its entry {DESCRIPTION} cannot be read: {printable(error)[:200]}") from None
    if not all(isinstance(value, str) for value in content.values()):
        raise ModelError(f"{path}: its entry {DESCRIPTION} is damaged: expected texts")
    return content


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the entries below the one folder of the archive, all of them known and none compressed."""
    listed = archive.infolist()
    if len(listed) > _MAX_ENTRIES:
        raise ModelError(f"{path}: not a program saved with torch.export.save: it has {len(listed):,} entries")
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in listed:
        name = entry.filename.partition("/")[2]
        shown = printable(entry.filename)[:100]
        if entry.filename in ("version", "serialized_exported_program.json"):
            raise ModelError(f"{path} was saved by an older torch: save it again with torch.export.save of torch 2.9")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if ".." in entry.filename.split("/") or entry.filename.startswith("/") or kind not in (0, stat.S_IFREG):
            raise ModelError(f"{path}: its entry {shown} has an odd name or is a link: not loaded")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ModelError(f"{path}: its entry {shown} is compressed, which torch.export.save never does: not loaded")
        if name in found or entry.flag_bits & 1:
            raise ModelError(f"{path}: its entry {shown} is given twice or encrypted: not loaded")
        if name not in (_GRAPH, _SAMPLES, *_CONFIGS, *_PLAIN) and not (_TENSORS.fullmatch(name) or _EXTRA.match(name)):
            raise _untrusted(path, f"an entry {shown}, which may run code")
        if name.endswith(".json") and entry.file_size > _MAX_JSON:
            raise ModelError(f"{path}: its entry {shown} is larger than {_MAX_JSON:,} bytes: not loaded")
        found[name] = entry
    total, limit = sum(entry.file_size for entry in listed), _size(archive)
    if total > limit:
        raise ModelError(f"{path}: its entries overlap ({total:,} bytes in a file of {limit:,}): not loaded")
    for name in (_GRAPH, *_CONFIGS, "archive_version"):
        if name not in found:
            raise ModelError(f"{path}: not a program saved with torch.export.save: it has no entry {name}")
    return found


def _size(archive: zipfile.ZipFile) -> int:
    assert archive.fp is not None
    return archive.fp.seek(0, io.SEEK_END)


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    parsed = parse_json(content, of=path, error=ModelError)
    if not isinstance(parsed, dict):
        raise ModelError(f"{path} is damaged: expected a JSON object")
    return parsed


def _payloads(config: dict[str, Any], content: Mapping[str, bytes], *, folder: str, path: Path) -> bytes:
    """Check the tensors that a configuration lists: raw bytes of a sensible size, and no pickle."""
    try:
        for name, meta in config["config"].items():
            file = f"{folder}/{meta['path_name']}"
            if meta["use_pickle"] is not False or not _TENSORS.fullmatch(file):
                raise _untrusted(path, f"the tensor {printable(name)[:100]} as a pickle")
            if file not in content:
                raise ModelError(f"{path} is damaged: it lacks the tensor {printable(name)[:100]}")
            sizes = [size["as_int"] for size in meta["tensor_meta"]["sizes"]]
            if not all(type(size) is int and size >= 0 for size in sizes):
                raise ModelError(f"{path} is damaged: the tensor {printable(name)[:100]} has no whole size")
            if math.prod(sizes) > max(len(content[file]), MEGABYTE):
                raise ModelError(f"{path} is damaged: {printable(name)[:100]} is larger than the file holds")
        _check(config, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is damaged: its list of tensors is not what torch writes ({error!r:.80})") from None
    return json.dumps(config).encode()


def _graph(program: dict[str, Any], path: Path) -> bytes:
    """Check the graph, and leave out what only describes its source: metadata, guards, versions."""
    try:
        graph = program["graph_module"]
        graph["metadata"], graph["treespec_namedtuple_fields"], program["guards_code"] = {}, {}, []
        program["torch_version"] = ""
        for node in graph["graph"]["nodes"]:
            node["metadata"] = {}
            if not _known(node["target"]):
                raise _untrusted(
                    path, f"the operation {printable(node['target'])[:100]}, which is none of PyTorch's own"
                )
            for given in node["inputs"]:
                if "as_string" in given["arg"] and given["name"] not in _TEXT_ARGUMENTS:
                    raise _untrusted(path, f"the text argument {printable(given['name'])[:100]} of {node['target']}")
        for call in graph["module_call_graph"]:
            for key in ("in_spec", "out_spec"):
                if call["signature"] is not None:
                    _check_spec(json.loads(call["signature"].pop(key)), call["signature"], key, path)
        specs = [(call["signature"] or {}) for call in graph["module_call_graph"]]
        kept = [{key: spec.pop(f"checked_{key}") for key in ("in_spec", "out_spec")} if spec else {} for spec in specs]
        _check(program, path)
        for spec, own in zip(specs, kept, strict=True):
            spec.update(own)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: its graph is not what torch writes ({error!r:.80})") from None
    return json.dumps(program).encode()


def _check_spec(spec: Any, signature: dict[str, Any], key: str, path: Path) -> None:
    """Check the nesting of inputs or outputs: tuples, lists and dicts only."""
    version, root = spec
    waiting = [root]
    while waiting:
        part = waiting.pop()
        if set(part) != {"type", "context", "children_spec"} or part["type"] not in _SPECS:
            raise _untrusted(path, f"inputs or outputs of the type {printable(part.get('type'))[:100]}")
        if part["context"] is not None:
            names = json.loads(part["context"])
            if not (names is None or (isinstance(names, list) and all(_is_word(name) for name in names))):
                raise _untrusted(path, "inputs or outputs with a context")
        waiting += part["children_spec"]
    signature[f"checked_{key}"] = json.dumps([int(version), root])


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and _WORDS.fullmatch(value) is not None


def _check(content: Any, path: Path) -> None:
    """Check all keys and texts of parsed JSON: names are words, expressions are arithmetic, nothing is an object."""
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            for name, inner in value.items():
                if not _is_word(name) or (name.startswith("as_") and name not in _ARGUMENTS):
                    raise _untrusted(path, f"a value {printable(name)[:100]}")
                waiting.append((name, inner))
        elif isinstance(value, list):
            waiting += [(key, inner) for inner in value]
        elif isinstance(value, str):
            form = _VALUES if key == "as_string" else _WORDS
            fits = _is_expression(value) if key == "expr_str" else form.fullmatch(value) is not None
            if not fits:
                raise _untrusted(path, f"the {key or 'text'} {printable(value)[:100]!r}, which torch would evaluate")


def _is_expression(text: str) -> bool:
    """Return whether a text is arithmetic with symbols such as ``s0``, and short."""
    if len(text) > 2000:
        return False
    text = _POWER.sub(r"\1", _DECLARED.sub(r"\1", text))
    if "**" in text or not _EXPRESSION.fullmatch(text):
        return False
    return all(
        word in _FUNCTIONS or _SYMBOL.fullmatch(word) is not None for word in re.findall(r"[A-Za-z]\w*", text, re.ASCII)
    )


def _known(target: str) -> bool:
    """Return whether the target of a node is an operator of ATen, or arithmetic on sizes."""
    import torch

    if target in _SYMBOLIC or target in _ROUNDING:
        return True
    if match := re.fullmatch(r"_operator\.(\w+)", target):
        return match[1] in _ARITHMETIC and hasattr(operator, match[1])
    match = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.([A-Za-z]\w*)", target, re.ASCII)
    if match is None or match[1].startswith("__"):
        return False
    overload = getattr(getattr(torch.ops.aten, match[1], None), match[2], None)
    return isinstance(overload, torch._ops.OpOverload)


def _untrusted(path: Path, what: str) -> UntrustedCodeError:
    return UntrustedCodeError(
        f"{path} holds {what}: pass --trust-code to load it with torch's own loader, which runs code from the file"
    )
