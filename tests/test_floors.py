"""The house rules that a machine can check: who may import whom, who may import Ray, and that
importing does nothing.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each package may import of the others (DESIGN: floors).
ALLOWED = {
    "models": set(),
    "cluster": set(),
    "jobs": {"models", "cluster"},
    "serve_app": {"models"},
}
# The only files that may import Ray, anywhere in them.
MAY_IMPORT_RAY = {
    "cluster/session.py",
    "jobs/data/chunks.py",
    "jobs/data/image_pass.py",
    "jobs/data/pack_shards.py",
    "jobs/data/streams.py",
    "jobs/data/webdataset.py",
    "jobs/local_serving.py",
    "jobs/room.py",
    "jobs/score/crew.py",
    "jobs/train/ray_metrics.py",
    "jobs/train/ray_train.py",
    "jobs/train/worker.py",
    "jobs/tune/sweep.py",
    "serve_app/app.py",
    "serve_app/catalog.py",
    "serve_app/directory.py",
    "serve_app/fast_path.py",
    "serve_app/ray_metrics.py",
    "serve_app/replica.py",
    "serve_app/serve_peers.py",
}


def source_files(package: str) -> Iterator[Path]:
    """Return the package's Python files."""
    return (ROOT / package).rglob("*.py")


def imported_names(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, at its head or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_the_floors_below_it(package: str) -> None:
    forbidden = set(ALLOWED) - ALLOWED[package] - {package} | {"tests", "benchmarks"}
    offences = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in source_files(package)
        for name in sorted(imported_names(path) & forbidden)
    ]
    assert not offences


def test_only_the_listed_files_import_ray() -> None:
    importing = {
        path.relative_to(ROOT).as_posix()
        for package in ALLOWED
        for path in source_files(package)
        if "ray" in imported_names(path)
    }
    assert importing - MAY_IMPORT_RAY == set(), "not on the list"
    assert MAY_IMPORT_RAY - importing == set(), "on the list, but does not import Ray any more"


@pytest.mark.slow
def test_importing_any_module_does_nothing() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ALLOWED
        for path in source_files(package)
        if path.stem not in ("__main__", "__init__")
    ]
    program = f"""
import importlib, logging, os, sys, threading
# theirs may do what they like
import numpy, torch, torchvision, timm, ray, ray.data, ray.serve, fastapi, pydantic, httpx, rich
import torchmetrics, torchmetrics.classification, cv2, simplejpeg, obstore, yaml
import PIL.Image, pyarrow.compute
done = []
def audit(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        ours = any(part in arguments[0] for part in {sorted(ALLOWED)!r})
        is_code = arguments[0].endswith((".py", ".pyc"))
        if ours and not is_code or (arguments[1] or "r")[0] in "wax":
            if "__pycache__" not in arguments[0]:
                done.append(("open", arguments[0], arguments[1]))
    if event in ("socket.connect", "subprocess.Popen"):
        done.append((event, str(arguments[:1])))
before = (dict(os.environ), list(logging.getLogger().handlers), threading.active_count())
sys.addaudithook(audit)
for name in {modules!r}:
    importlib.import_module(name)
os.environ.pop("ARROW_DEFAULT_MEMORY_POOL")  # jobs/__init__.py says why
after = (dict(os.environ), list(logging.getLogger().handlers), threading.active_count())
assert before == after, (before, after)
assert not done, done
assert not ray.is_initialized()
"""
    # This process has imported them already.
    kept = {k: v for k, v in os.environ.items() if k != "ARROW_DEFAULT_MEMORY_POOL"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_models_run_where_ray_is_not_installed() -> None:
    program = """
import sys
class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name == "ray" or name.startswith("ray."):
            raise ImportError("Ray is not installed here")
sys.meta_path.insert(0, NoRay())
import models.predictor, models.engines.torch_engine, models.engines.openvino_engine
import jobs.train.steps, jobs.train.network, jobs.train.objectives, jobs.data.transforms
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_no_file_names_this_machine_or_a_registry() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    # Split, so that this file does not name them itself.
    words = ["pypi" + ".org", "python" + "hosted", "npm" + "js.org", "/wo" + "rk/", "/ro" + "ot/"]
    offences = [
        f"{name}: {word}"
        for name in listed.stdout.split("\n")
        if name and (ROOT / name).is_file()
        for word in words
        if word in (ROOT / name).read_text(errors="ignore")
    ]
    assert not offences
