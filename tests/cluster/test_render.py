"""`python -m cluster.render` on a copy of the checkout's own files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cluster import render

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that rendering reads."""
    shutil.copytree(ROOT / render.MANIFESTS, tmp_path / render.MANIFESTS)
    for path in (render.SERVE_CONFIG, render.PROJECT, render.LOCK):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def run(root: Path, *arguments: str) -> int:
    return render.main(["--root", str(root), *arguments])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} no longer says {old!r}"
    path.write_text(text.replace(old, new))


def test_the_committed_files_have_not_drifted_and_agree_on_versions(checkout: Path) -> None:
    assert run(checkout, "--check") == 0


def test_a_changed_serve_config_fails_the_check_with_a_diff_until_it_is_rendered(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(checkout / render.SERVE_CONFIG, "replicas: 2", "replicas: 3")
    before = (checkout / render.SERVE_PATCH).read_text()

    assert run(checkout, "--check") == 1
    shown = capsys.readouterr().err
    assert "-          replicas: 2" in shown
    assert "+          replicas: 3" in shown
    assert (checkout / render.SERVE_PATCH).read_text() == before

    assert run(checkout) == 0
    assert run(checkout, "--check") == 0
    patch = yaml.safe_load((checkout / render.SERVE_PATCH).read_text())
    assert patch["spec"]["serveConfigV2"] == (checkout / render.SERVE_CONFIG).read_text()


def test_a_patch_edited_by_hand_fails_the_check(checkout: Path) -> None:
    edit(checkout / render.SERVE_PATCH, "EveryNode", "HeadOnly")

    assert run(checkout, "--check") == 1


def test_a_missing_patch_fails_the_check_and_is_written(checkout: Path) -> None:
    (checkout / render.SERVE_PATCH).unlink()

    assert run(checkout, "--check") == 1
    assert run(checkout) == 0
    assert run(checkout, "--check") == 0


def test_a_changed_alert_fails_the_check_until_it_is_rendered(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(checkout / render.ALERTS, "for: 10m", "for: 20m")

    assert run(checkout, "--check") == 1
    assert "+          for: 20m" in capsys.readouterr().err
    assert run(checkout) == 0
    assert run(checkout, "--check") == 0
    rule = yaml.safe_load((checkout / render.ALERT_OBJECT).read_text())
    assert rule["spec"] == yaml.safe_load((checkout / render.ALERTS).read_text())


@pytest.mark.parametrize(
    ("path", "old", "new", "complaint"),
    [
        ("kubernetes/base/cluster/ray-cluster.yaml", "{ray}", "2.0.1", "rayVersion '2.0.1'"),
        ("kubernetes/base/train/ray-job.yaml", "{ray}", "2.0.1", "rayVersion '2.0.1'"),
        ("kubernetes/base/serve/ray-service.yaml", "{ray}", "2.0.1", "rayVersion '2.0.1'"),
        ("kubernetes/base/train/ray-job.yaml", "sightline\n", "a.b/sightline:7\n", "tag '7'"),
        ("kubernetes/components/release/kustomization.yaml", "{project}", "7.0", "tag '7.0'"),
        ("requirements.lock", "=={ray}", "==2.0.1", "requirements.lock installs 2.0.1"),
        ("pyproject.toml", 'version = "{project}"', 'version = "7.0"', "expected '7.0'"),
    ],
)
def test_a_version_that_differs_anywhere_fails_the_check_and_is_named(
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    path: str,
    old: str,
    new: str,
    complaint: str,
) -> None:
    versions = render.read_versions(checkout)
    edit(checkout / path, old.format(ray=versions.ray, project=versions.project), new)

    assert run(checkout, "--check") == 1
    assert complaint in capsys.readouterr().err


def drop_rays(root: Path) -> None:
    for path in (root / render.MANIFESTS).rglob("ray-*.yaml"):
        edit(path, "rayVersion", "otherVersion")


def drop_tag(root: Path) -> None:
    edit(root / "kubernetes/components/release/kustomization.yaml", "newTag", "newName")


@pytest.mark.parametrize(
    ("change", "complaint"), [(drop_rays, "names a rayVersion"), (drop_tag, "set newTag")]
)
def test_manifests_that_name_no_version_at_all_fail_the_check(
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    complaint: str,
) -> None:
    change(checkout)

    assert run(checkout, "--check") == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("path", [render.SERVE_CONFIG, render.ALERTS, render.PROJECT, render.LOCK])
def test_an_absent_file_is_named_in_the_error(
    checkout: Path, capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    (checkout / path).unlink()

    assert run(checkout, "--check") == 1
    assert f"{path}: cannot be read" in capsys.readouterr().err


def test_a_lock_without_ray_is_refused(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / render.LOCK).write_text("raylet-thing==9.9.9\n")

    assert run(checkout, "--check") == 1
    assert "no line pins Ray" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        (render.SERVE_CONFIG, "proxy_location: EveryNode\n", "no `applications`"),
        (render.SERVE_CONFIG, "applications: [\n", "not YAML"),
        (render.SERVE_CONFIG, "", "no `applications`"),
        (render.ALERTS, "rules: []\n", "no `groups`"),
        (render.ALERTS, "", "no `groups`"),
    ],
)
def test_a_source_without_anything_in_it_is_refused(
    checkout: Path, capsys: pytest.CaptureFixture[str], path: Path, text: str, complaint: str
) -> None:
    (checkout / path).write_text(text)

    assert run(checkout) == 1
    assert complaint in capsys.readouterr().err
