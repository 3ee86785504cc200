"""What may be in the `.pt2` file of a bundle: a graph of torch's own operators, and raw tensors.

`torch.export.load` (torch 2.15) is made for files that one trusts. It unpickles example inputs,
weights and constants that say so (`torch/export/pt2_archive/_package.py`), executes the lines of
`guards_code` (`torch/export/_unlift.py`), evaluates symbolic sizes with sympy
(`torch/_export/serde/serialize.py`), lets a node call any function below `torch`, and writes the
names of nodes and tensors into Python that it executes (`torch/fx/graph.py`). Nothing of that is in
what we export, so everything but that is refused, before torch sees the file.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import BundleError

GRAPH = "models/model.json"
EXAMPLES = "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
MEMBERS = (GRAPH, EXAMPLES, *CONFIGS, "archive_format", "archive_version", "byteorder")
MEMBER = re.compile(r"\.data/(serialization_id|version)|data/(weights/weight|constants/tensor)_\d+")
# Of torch's operators `from_file` opens files.
OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.(?!from_file\b)\w+\.\w+"
    r"|torch\.sym_(float|int|ite|max|min|not|sqrt)"
    r"|math\.(ceil|floor|sqrt|trunc)"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|or_|pos|pow|sub"
    r"|truediv)"
)
# A size as sympy writes it down, as Mul(Integer(4), Symbol('s77', positive=True, integer=True)), of
# its own functions and those of `torch/utils/_sympy/functions.py`.
SIZE = re.compile(
    r"(Symbol\('[a-z]+\d+'(, [a-z]+=True)*\)"
    r"|(Abs|Add|CeilDiv|CeilToInt|CleanDiv|Eq|FloatTrueDiv|FloorDiv|FloorToInt|Ge|Gt|IntTrueDiv"
    r"|Integer|Le|Lt|Max|Min|Mod|ModularIndexing|Mul|Ne|Pow|PowByNatural|PythonMod|Rational"
    r"|RoundToInt|ToFloat|TruncToInt|Where)(?=\()"
    r"|[-+(), \d])+"  # digits one by one: in groups of any length they take for ever to refuse
)
# What is neither executed nor imported: where a node came from, and how inputs are nested.
SPEC = re.compile(r'(?!.*__)[\w.\s\[\]{}:,"]*')
NAME = re.compile(r"[\w.]*", re.ASCII)
UNREAD = ("metadata", "torch_version")
# What a file that is no archive raises, and JSON of another form.
UNREADABLE = (
    *(OSError, zipfile.BadZipFile, NotImplementedError),
    *(ValueError, TypeError, KeyError, AttributeError),
)
MAX_JSON = 256 << 20  # bytes; the graph of a large network has some megabytes


def check_archive(path: Path) -> None:
    """Raise `BundleError` for a file with anything else in it than a graph and raw tensors."""
    try:
        for fault in _find_faults(path):
            raise BundleError(
                f"{path.name} is not loaded, because loading it could run code: {fault}. Expected "
                "what jobs.export writes"
            )
    except UNREADABLE as error:
        raise BundleError(f"{path.name} is no .pt2 file: {error}") from error


def _find_faults(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [info.filename.partition("/")[2] for info in members]
        yield from _fault_in_names([info.filename for info in members], names)
        for info, name in zip(members, names, strict=True):
            if name == EXAMPLES and info.file_size:
                yield f"{name} has {info.file_size:,} bytes, where an empty one is expected"
            if name not in (GRAPH, *CONFIGS):
                continue
            if info.file_size > MAX_JSON:
                yield f"{name} has {info.file_size:,} bytes, more than {MAX_JSON:,}"
            find = _faults_of_graph if name == GRAPH else _faults_of_tensors
            for fault in find(json.loads(archive.read(info))):
                yield f"{name} {fault}"


def _fault_in_names(full: list[str], names: list[str]) -> Iterator[str]:
    # Readers differ in which of two members of one name they take, and in telling cases apart.
    if len({name.lower() for name in full}) < len(full):
        yield "two members have one name"
    if len({name.partition("/")[0] for name in full}) > 1:
        yield "it has more than one folder"
    for name in names:
        if name not in MEMBERS and not MEMBER.fullmatch(name):
            yield f"it has the unknown member {name!r}"
    for name in (GRAPH, *CONFIGS):
        if name not in names:
            yield f"it has no {name}"


def _faults_of_tensors(config: Any) -> Iterator[str]:
    for name, tensor in config["config"].items():
        if tensor["use_pickle"] is not False:
            yield f"says that {name!r} is a pickle"
        if not re.fullmatch(r"(weight|tensor)_\d+", tensor["path_name"]):
            yield f"says that {name!r} is {tensor['path_name']!r}, which is no raw tensor"


def _faults_of_graph(graph: Any) -> Iterator[str]:
    if graph.get("guards_code"):
        yield f"has lines of Python, as {graph['guards_code'][0]!r}"
    waiting: list[tuple[str, Any]] = [("", graph)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(key, each) for each in value]
        elif isinstance(value, dict):
            yield from _faults_of_object(value)
            waiting += [each for each in value.items() if each[0] not in UNREAD]
        elif isinstance(value, str):
            yield from _faults_of_text(key, value)


def _faults_of_object(found: dict[str, Any]) -> Iterator[str]:
    target = found.get("target")
    is_node = "inputs" in found and target is not None
    if is_node and not (isinstance(target, str) and OPERATOR.fullmatch(target)):
        yield f"calls {target!r}, which is no operator of torch's own"
    for key in found:
        if not NAME.fullmatch(key):
            yield f"has the name {key!r}"


def _faults_of_text(key: str, text: str) -> Iterator[str]:
    if key == "expr_str":
        if not SIZE.fullmatch(text):
            yield f"has the size {text!r}, which is no arithmetic"
    elif not (SPEC if key in ("in_spec", "out_spec") else NAME).fullmatch(text):
        yield f"has the text {text!r} as {key}"
