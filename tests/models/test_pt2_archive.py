"""Files of torch that hold more than a graph and tensors are not loaded."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jobs.export.to_torch import capture, export_torch
from models.bundle import Bundle, open_bundle
from models.engines import torch_engine
from models.engines.base import EngineOptions
from models.engines.pt2_archive import check_archive
from models.errors import BundleError, EngineError
from tests.bundles import tiny_bundle

pytestmark = pytest.mark.slow  # torch needs some ten seconds to load what an export needs


class SmallNet(nn.Module):
    """Patches mixed and flattened, so that a size of the graph is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return a row for each patch of each image."""
        mixed: torch.Tensor = self.mix(images.permute(0, 3, 1, 2).float())
        return mixed.permute(0, 2, 3, 1).reshape(-1, 8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound file."""
    path = tmp_path_factory.mktemp("sound") / "model.pt2"
    export_torch(capture(SmallNet(), height=16, width=16), path)
    return path


def rewritten(source: Path, path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Return a copy of an archive with other members: `change` gets the name and bytes of each."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            data = change(info.filename.partition("/")[2], old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return path


class Harm:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def edited(key: str, value: Any, where: str = "graph_module") -> Callable[[str, bytes], bytes]:
    """Return what sets the first `key` that is found in a JSON document of the archive."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith(".json") or where.encode() not in data:
            return data
        document = json.loads(data)
        waiting = [document]
        while waiting:
            found = waiting.pop(0)
            if isinstance(found, dict):
                if key in found:
                    found[key] = value
                    return json.dumps(document).encode()
                waiting += found.values()
            elif isinstance(found, list):
                waiting += found
        raise AssertionError(f"no {key}")

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (edited("use_pickle", True, "weight_0"), "is a pickle"),
        (edited("path_name", "custom_obj_0", "weight_0"), "which is no raw tensor"),
        (edited("guards_code", ["print(1)"]), "has lines of Python"),
        (edited("expr_str", "exec(chr(49)+chr(50))"), "which is no arithmetic"),
        (edited("expr_str", "1" * 10_000 + "x"), "which is no arithmetic"),
        (edited("target", "torch.hub.load"), "calls 'torch.hub.load'"),
        (edited("target", "torch.ops.aten.from_file.default"), "calls 'torch.ops.aten.from_file"),
        (edited("target", "_operator.methodcaller"), "calls '_operator.methodcaller'"),
        (edited("as_tensor", {"name": "x=print(1)"}), "has the text 'x=print"),
        (lambda name, data: data + b"x" if "sample_inputs" in name else data, "an empty one"),
        (lambda name, data: b"[]" if "model.json" in name else data, "is no .pt2 file"),
        (lambda name, data: None if "model.json" in name else data, "has no models/model.json"),
    ],
)
def test_a_torch_file_that_could_run_code_is_not_loaded(
    exported: Path,
    tmp_path: Path,
    change: Callable[[str, bytes], bytes | None],
    told: str,
) -> None:
    """torch unpickles and executes parts of such files, and the author writes the digest."""
    check_archive(exported)
    with pytest.raises(BundleError, match=told):
        check_archive(rewritten(exported, tmp_path / "changed.pt2", change))


def test_a_pickle_in_a_torch_file_is_never_run(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer, mark = io.BytesIO(), tmp_path / "run"
    torch.save((Harm(mark),), buffer)

    def change(name: str, data: bytes) -> bytes:
        return buffer.getvalue() if "sample_inputs" in name else data

    changed = rewritten(exported, tmp_path / "changed.pt2", change)
    bundle = open_bundle(tiny_bundle(tmp_path / "models"))
    with contextlib.suppress(Exception):
        torch.export.load(changed)
    assert mark.exists(), "torch itself runs it"
    mark.unlink()
    monkeypatch.setattr(Bundle, "path", lambda *_: changed)
    monkeypatch.setattr(torch_engine, "engine_artifact", lambda *_: "model.pt2")
    options = EngineOptions(engines=("torch",), precision="fp32")
    with pytest.raises(EngineError, match="could run code"):
        torch_engine.open_engine(bundle, "fp32", options)
    assert not mark.exists()


def test_members_of_one_name_and_what_is_no_archive_are_refused(
    exported: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "twice.pt2"
    shutil.copy(exported, copy)
    with zipfile.ZipFile(copy, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/Models/MODEL.json", b"{}")
    with pytest.raises(BundleError, match="two members have one name"):
        check_archive(copy)
    copy.write_bytes(b"no zip")
    with pytest.raises(BundleError, match=r"twice.pt2 is no .pt2 file"):
        check_archive(copy)
