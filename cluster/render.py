"""Writes the manifests that are made of other files, and checks that versions agree.

`python -m cluster.render` puts the Serve config, comments included, into the RayService patch
`kubernetes/base/serve/serve-config.yaml`, and the alert rules into the PrometheusRule beside them;
`--check` writes nothing and fails, with a diff, where a committed file has drifted. Both then
compare the project's version with the image tag, and the Ray version that `requirements.lock`
installs with the one in pyproject.toml and in every manifest: a head and a worker, or a manifest
and an image, of two Ray versions do not talk to each other.

It knows neither Ray nor a cluster: whether the Serve config means anything is checked by
`ray.serve.schema` in `tests/cluster/`, and applying it is kubectl's work.
"""

import argparse
import difflib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

IMAGE = "sightline"
SERVE_CONFIG = Path("configs/serve/cluster.yaml")
SERVE_PATCH = Path("kubernetes/base/serve/serve-config.yaml")
ALERTS = Path("kubernetes/base/monitoring/alerts.yaml")
ALERT_OBJECT = Path("kubernetes/base/monitoring/prometheus-rule.yaml")
MANIFESTS = Path("kubernetes")
PROJECT = Path("pyproject.toml")
LOCK = Path("requirements.lock")

_PATCH_HEAD = f"""\
# Made from {SERVE_CONFIG} by `python -m cluster.render`. Edit that file, not this one.
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: sightline
spec:
  serveConfigV2: |
"""
_RULE_HEAD = f"""\
# Made from {ALERTS} by `python -m cluster.render`. Edit that file, not this one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sightline
spec:
"""
_RAY_PIN = re.compile(r"^ray(?:\[[^\]]*\])?==(?P<version>[^\s;\\,]+)", re.MULTILINE)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times as fast


class RenderError(Exception):
    """A file that rendering needs is absent or does not say what it should."""


@dataclass(frozen=True)
class Versions:
    """The versions that every manifest has to name: the project's own, and Ray's."""

    project: str
    ray: str


def render_serve_patch(root: Path) -> str:
    """Return the text of the RayService patch that carries the Serve config below `root`."""
    config = _read(root / SERVE_CONFIG, "it holds the applications to serve")
    loaded, *others = _load_yaml(root / SERVE_CONFIG, config) or [None]
    if others or not isinstance(loaded, dict) or not loaded.get("applications"):
        raise RenderError(
            f"{root / SERVE_CONFIG}: no `applications`; "
            "expected one document in Ray Serve's config schema"
        )
    text = _PATCH_HEAD + _indented(config, 4)
    # An indented first line, say, would end up as a different text: compare what YAML reads back.
    carried = yaml.safe_load(text)["spec"]["serveConfigV2"]
    if yaml.safe_load(carried) != loaded:
        raise RenderError(
            f"{root / SERVE_CONFIG}: changes its meaning inside a YAML block; "
            "start its first line at column 0"
        )
    return text


def render_alert_object(root: Path) -> str:
    """Return the text of the PrometheusRule that carries the alert rules below `root`."""
    rules = _read(root / ALERTS, "it holds the alert rules")
    loaded, *others = _load_yaml(root / ALERTS, rules) or [None]
    if others or not isinstance(loaded, dict) or not loaded.get("groups"):
        raise RenderError(
            f"{root / ALERTS}: no `groups`; "
            "expected one document in the format of Prometheus' rules"
        )
    text = _RULE_HEAD + _indented(rules, 2)
    if yaml.safe_load(text)["spec"] != loaded:
        raise RenderError(
            f"{root / ALERTS}: changes its meaning inside an object; "
            "start its first line at column 0"
        )
    return text


RENDERED: Mapping[Path, tuple[Path, Callable[[Path], str]]] = {
    SERVE_PATCH: (SERVE_CONFIG, render_serve_patch),
    ALERT_OBJECT: (ALERTS, render_alert_object),
}


def read_versions(root: Path) -> Versions:
    """Return the project's version, from pyproject.toml, and Ray's, from requirements.lock."""
    try:
        project = tomllib.loads(_read(root / PROJECT, "it holds the project's version"))
        version = project["project"]["version"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise RenderError(
            f"{root / PROJECT}: no [project] version could be read ({error!r})"
        ) from error
    lock = _read(root / LOCK, "it pins the Ray that the image installs; lock first")
    return Versions(project=str(version), ray=_pinned_ray(root / LOCK, lock))


def find_disagreements(root: Path, versions: Versions) -> list[str]:
    """Return one sentence for each place below `root` that names another version."""
    faults = []
    ray = _project_ray(root)
    if ray != versions.ray:
        faults.append(
            f"{PROJECT}: depends on ray=={ray}, {LOCK} installs {versions.ray}; lock again"
        )
    tags = 0
    rays = 0
    for path in sorted((root / MANIFESTS).rglob("*.yaml")):
        for document in _load_yaml(path, _read(path, "it was there a moment ago")):
            for key, value in _pairs(document):
                where = path.relative_to(root)
                if key == "rayVersion":
                    rays += 1
                    if value != versions.ray:
                        faults.append(f"{where}: rayVersion {value!r}, expected {versions.ray!r}")
                elif (tag := _image_tag(key, value)) is not None:
                    tags += 1
                    if tag != versions.project:
                        faults.append(
                            f"{where}: image {IMAGE} has tag {tag!r}, expected {versions.project!r}"
                        )
    if not tags:
        faults.append(f"{MANIFESTS}: no manifest gives the image {IMAGE} a tag; set newTag")
    if not rays:
        faults.append(f"{MANIFESTS}: no manifest names a rayVersion; the operator needs it")
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cluster.render", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on drift")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout")
    options = parser.parse_args(arguments)
    root: Path = options.root
    try:
        texts = {path: render(root) for path, (_, render) in RENDERED.items()}
        settle = _drift if options.check else _write
        faults = [fault for path, text in texts.items() for fault in settle(root, path, text)]
        faults += find_disagreements(root, read_versions(root))
    except RenderError as error:
        faults = [str(error)]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _indented(text: str, num_spaces: int) -> str:
    lines = text.rstrip("\n").splitlines()
    return "".join(f"{' ' * num_spaces}{line}\n" if line.strip() else "\n" for line in lines)


def _write(root: Path, path: Path, text: str) -> list[str]:
    (root / path).write_text(text, encoding="utf-8")
    print(f"wrote {path}")
    return []


def _drift(root: Path, path: Path, text: str) -> list[str]:
    there = root / path
    committed = there.read_text(encoding="utf-8") if there.exists() else ""
    if committed == text:
        return []
    source, _ = RENDERED[path]
    diff = difflib.unified_diff(
        committed.splitlines(), text.splitlines(), "committed", f"from {source}", lineterm=""
    )
    return [f"{path} has drifted; run python -m cluster.render", *diff]


def _read(path: Path, purpose: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RenderError(f"{path}: cannot be read ({error.strerror}); {purpose}") from error


def _load_yaml(path: Path, text: str) -> list[Any]:
    try:
        return list(yaml.load_all(text, Loader=_LOADER))
    except yaml.YAMLError as error:
        raise RenderError(f"{path}: not YAML: {error}") from error


def _pinned_ray(path: Path, text: str) -> str:
    match = _RAY_PIN.search(text)
    if match is None:
        raise RenderError(f"{path}: no line pins Ray; expected one that starts with ray==")
    return match["version"]


def _project_ray(root: Path) -> str:
    project = tomllib.loads(_read(root / PROJECT, "it names the Ray that the project is built on"))
    return _pinned_ray(root / PROJECT, "\n".join(project["project"].get("dependencies", [])))


def _pairs(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth; a Kustomize `newTag` also as an image."""
    if isinstance(node, dict):
        if "newTag" in node:
            yield "image", f"{node.get('newName', node.get('name'))}:{node['newTag']}"
        for key, value in node.items():
            yield str(key), value
            yield from _pairs(value)
    elif isinstance(node, list):
        for item in node:
            yield from _pairs(item)


def _image_tag(key: str, value: Any) -> str | None:
    """Return the tag that a pair gives to the project's image, None where it gives none."""
    if key == "image" and isinstance(value, str):
        name, _, tag = value.rpartition(":")
        return tag if name.rpartition("/")[2] == IMAGE else None
    return None


if __name__ == "__main__":
    sys.exit(main())
