"""The manifests as `kubectl kustomize` builds them, checked without a cluster."""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from cluster.environment import SERVING, STREAMING, haproxy_threads
from cluster.resilience import MAX_CONNECTIONS, resilience_environment
from jobs.train.config import RUN_NAME
from serve_app.app import seconds_to_leave
from serve_app.config import ServeOptions
from serve_app.directory import DEPLOYMENT
from tests.cluster.crd_schema import find_errors
from tests.cluster.operator_rules import cluster_spec, find_violations

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
BASE = ROOT / "kubernetes" / "base"
MONITORING = BASE / "monitoring"
CRDS = ROOT.parent / "shared" / "crds"
KINDS = {"cluster": "RayCluster", "train": "RayJob", "serve": "RayService"}

every_role = pytest.mark.parametrize("role", list(KINDS))
needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason="KubeRay's CRDs are not beside this checkout, in ../shared/crds"
)
pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which builds the manifests, is not on PATH"
)


@cache
def build(folder: Path) -> list[Manifest]:
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def ray_object(role: str) -> Manifest:
    """A fresh copy of the one Ray object of a role."""
    (found,) = [item for item in build(BASE / role) if item["apiVersion"] == "ray.io/v1"]
    return copy.deepcopy(found)


def named(items: list[Manifest], kind: str) -> list[str]:
    return [item["metadata"]["name"] for item in items if item["kind"] == kind]


def groups(manifest: Manifest) -> list[Manifest]:
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pods(manifest: Manifest) -> Iterator[Manifest]:
    """Every pod spec that the object describes: head, workers, submitter."""
    yield from (group["template"]["spec"] for group in groups(manifest))
    if "submitterPodTemplate" in manifest["spec"]:
        yield manifest["spec"]["submitterPodTemplate"]["spec"]


def settings_of(role: str) -> dict[str, str]:
    """The variables that every Ray container of a role gets."""
    (found,) = [item["data"] for item in build(BASE / role) if item["kind"] == "ConfigMap"]
    return dict(found)


def crd(manifest: Manifest) -> Path:
    return CRDS / f"ray.io_{manifest['kind'].lower()}s.yaml"


def test_every_kustomization_is_among_those_checked_here() -> None:
    found = {path.parent.name for path in BASE.rglob("kustomization.yaml")}

    assert found == {*KINDS, MONITORING.name}


@pytest.mark.parametrize("kind", ["PodMonitor", "PrometheusRule"])
def test_what_the_prometheus_operator_reads_fits_the_strict_schema_of_its_crd(kind: str) -> None:
    crd = CRDS / "extra" / f"monitoring.coreos.com_{kind.lower()}s.yaml"
    if not crd.exists():
        pytest.skip(f"{crd.name} is not beside this checkout, in ../shared/crds/extra")
    (found,) = [item for item in build(MONITORING) if item["kind"] == kind]
    manifest = copy.deepcopy(found)

    assert find_errors(crd, manifest) == []
    manifest["spec"]["misspelt"] = {}
    assert len(find_errors(crd, manifest)) == 1


def test_grafana_gets_the_dashboard_under_a_name_that_stays() -> None:
    items = build(MONITORING)
    (dashboard,) = [item for item in items if item["kind"] == "ConfigMap"]

    assert sorted(item["kind"] for item in items) == ["ConfigMap", "PodMonitor", "PrometheusRule"]
    assert dashboard["metadata"]["name"] == "sightline-dashboard"
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["sightline.json"])["uid"] == "sightline"


@every_role
def test_a_role_builds_into_its_ray_object_with_account_and_settings(role: str) -> None:
    kinds = sorted(item["kind"] for item in build(BASE / role))

    assert kinds == sorted(["ConfigMap", "ServiceAccount", KINDS[role]])


@pytest.mark.parametrize("role", [*KINDS, MONITORING.name])
def test_no_role_chooses_a_namespace(role: str) -> None:
    assert all("namespace" not in item["metadata"] for item in build(BASE / role))


@needs_crds
@every_role
def test_the_ray_object_fits_the_strict_schema_of_its_crd(role: str) -> None:
    manifest = ray_object(role)

    assert find_errors(crd(manifest), manifest) == []


def misspell_replicas(spec: Manifest) -> None:
    spec["workerGroupSpecs"][0]["minReplica"] = 1


def number_as_text(spec: Manifest) -> None:
    spec["workerGroupSpecs"][0]["maxReplicas"] = "4"


def number_as_parameter(spec: Manifest) -> None:
    spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def unknown_mode(spec: Manifest) -> None:
    spec["authOptions"]["mode"] = "password"


def no_template(spec: Manifest) -> None:
    del spec["headGroupSpec"]["template"]


def misspell_in_the_pod(spec: Manifest) -> None:
    pod = spec["headGroupSpec"]["template"]["spec"]
    pod["containers"][0]["securityContexts"] = {}


@needs_crds
@every_role
@pytest.mark.parametrize(
    "mistake",
    [
        misspell_replicas,
        number_as_text,
        number_as_parameter,
        unknown_mode,
        no_template,
        misspell_in_the_pod,
    ],
)
def test_the_strict_schema_refuses_a_mistake(
    role: str, mistake: Callable[[Manifest], None]
) -> None:
    manifest = ray_object(role)
    mistake(cluster_spec(manifest))

    assert find_errors(crd(manifest), manifest)


@needs_crds
def test_replica_bounds_left_out_are_filled_in_before_the_schema_is_applied() -> None:
    manifest = ray_object("cluster")
    group = cluster_spec(manifest)["workerGroupSpecs"][0]
    del group["minReplicas"], group["maxReplicas"]

    assert find_errors(crd(manifest), manifest) == []


@every_role
def test_the_operator_would_accept_the_object(role: str) -> None:
    assert find_violations(ray_object(role)) == []


def rename(manifest: Manifest) -> None:
    manifest["metadata"]["name"] = "Sightline_1"


def lengthen(manifest: Manifest) -> None:
    manifest["metadata"]["name"] = "s" * 54


def swap_bounds(manifest: Manifest) -> None:
    cluster_spec(manifest)["workerGroupSpecs"][0] |= {"minReplicas": 5, "maxReplicas": 4}


def name_the_autoscaler_twice(manifest: Manifest) -> None:
    container = cluster_spec(manifest)["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]


def name_the_autoscaler_without_it(manifest: Manifest) -> None:
    name_the_autoscaler_twice(manifest)
    cluster_spec(manifest)["enableInTreeAutoscaling"] = False


def restart_always(manifest: Manifest) -> None:
    pod = cluster_spec(manifest)["workerGroupSpecs"][0]["template"]["spec"]
    pod["restartPolicy"] = "Always"


def give_resources_twice(manifest: Manifest) -> None:
    cluster_spec(manifest)["headGroupSpec"]["resources"] = {"CPU": "0"}


def authenticate_on_an_old_ray(manifest: Manifest) -> None:
    cluster_spec(manifest)["rayVersion"] = "2.51.2"


def suspend_workers(manifest: Manifest) -> None:
    cluster_spec(manifest)["workerGroupSpecs"][0]["suspend"] = True


@every_role
@pytest.mark.parametrize(
    "mistake",
    [
        rename,
        lengthen,
        swap_bounds,
        name_the_autoscaler_twice,
        name_the_autoscaler_without_it,
        restart_always,
        give_resources_twice,
        authenticate_on_an_old_ray,
        suspend_workers,
    ],
)
def test_a_rule_of_the_operator_is_not_lost_on_any_kind(
    role: str, mistake: Callable[[Manifest], None]
) -> None:
    manifest = ray_object(role)
    mistake(manifest)

    assert find_violations(manifest)


def rule(policy: str, seconds: int, **condition: str) -> Manifest:
    return {"policy": policy, "condition": {**condition, "ttlSeconds": seconds}}


def shut_down_as_well(spec: Manifest) -> None:
    spec["shutdownAfterJobFinishes"] = True


def keep_legacy_policy(spec: Manifest) -> None:
    spec["deletionStrategy"]["onSuccess"] = {"policy": "DeleteSelf"}


def delete_workers(spec: Manifest) -> None:
    spec["deletionStrategy"]["deletionRules"].append(
        rule("DeleteWorkers", 0, jobStatus="SUCCEEDED")
    )


def repeat_a_rule(spec: Manifest) -> None:
    rules = spec["deletionStrategy"]["deletionRules"]
    rules.append(copy.deepcopy(rules[0]))


def delete_the_job_before_its_cluster(spec: Manifest) -> None:
    spec["deletionStrategy"]["deletionRules"].append(rule("DeleteSelf", 0, jobStatus="SUCCEEDED"))


def give_two_conditions(spec: Manifest) -> None:
    spec["deletionStrategy"]["deletionRules"] = [
        rule("DeleteCluster", 0, jobStatus="FAILED", jobDeploymentStatus="Failed")
    ]


def submit_from_the_head(spec: Manifest) -> None:
    spec["submissionMode"] = "SidecarMode"


@pytest.mark.parametrize(
    "mistake",
    [
        shut_down_as_well,
        keep_legacy_policy,
        delete_workers,
        repeat_a_rule,
        delete_the_job_before_its_cluster,
        give_two_conditions,
        submit_from_the_head,
    ],
)
def test_a_rule_of_the_operator_for_jobs_is_not_lost(mistake: Callable[[Manifest], None]) -> None:
    manifest = ray_object("train")
    mistake(manifest["spec"])

    assert find_violations(manifest)


def test_the_service_serves_what_ray_serve_understands() -> None:
    config = yaml.safe_load(ray_object("serve")["spec"]["serveConfigV2"])

    schema = ServeDeploySchema.model_validate(config)

    # Ray ignores keys that it does not know, which would hide a misspelt one.
    assert set(config) <= set(ServeDeploySchema.model_fields)
    for application, parsed in zip(config["applications"], schema.applications, strict=True):
        assert set(application) <= set(type(parsed).model_fields)
        for deployment in application.get("deployments", []):
            assert set(deployment) <= set(DeploymentSchema.model_fields)
    assert set(config["http_options"]) <= set(type(schema.http_options).model_fields)
    # HAProxy reaches replicas on other nodes only when Serve listens on every interface.
    assert schema.http_options.host == "0.0.0.0"
    assert schema.http_options.port == 8000
    assert set(config["grpc_options"]) <= set(type(schema.grpc_options).model_fields)
    assert schema.grpc_options.port == 9000
    routes = {application.route_prefix for application in schema.applications}
    assert routes == {"/", "/v2/models/elpv"}


def test_replicas_of_a_model_are_on_nodes_of_their_own_from_the_start() -> None:
    manifest = ray_object("serve")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    models = [each for each in config["applications"] if each["route_prefix"] != "/"]
    (group,) = cluster_spec(manifest)["workerGroupSpecs"]

    for model in models:
        assert model["deployments"] == [{"name": DEPLOYMENT, "max_replicas_per_node": 1}]
        assert model["args"]["replicas"] <= group["minReplicas"] == group["replicas"]
        # One more for an update, whose new replica stands beside the old ones.
        assert model["args"]["replicas"] < group["maxReplicas"]


@every_role
def test_every_pod_meets_the_restricted_pod_security_standard(role: str) -> None:
    manifest = ray_object(role)

    for pod in pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] != 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert_restricted(container["securityContext"])
    assert_restricted(cluster_spec(manifest)["autoscalerOptions"]["securityContext"])


def assert_restricted(context: Manifest) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}


@every_role
def test_the_head_takes_no_work_and_only_it_may_talk_to_kubernetes(role: str) -> None:
    head, *workers = groups(ray_object(role))

    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "automountServiceAccountToken" not in head["template"]["spec"]
    for group in workers:
        assert group["template"]["spec"]["automountServiceAccountToken"] is False


@every_role
def test_no_autoscaler_of_nodes_moves_a_head_or_a_training_worker(role: str) -> None:
    head, *workers = groups(ray_object(role))
    stay = [head, *workers] if role == "train" else [head]

    for group in stay:
        assert group["template"]["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }


@every_role
def test_every_ray_container_has_settings_credentials_and_bounds(role: str) -> None:
    (settings,) = named(build(BASE / role), "ConfigMap")

    for group in groups(ray_object(role)):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].startswith("sightline:")
        assert container["envFrom"] == [
            {"configMapRef": {"name": settings}},
            {"secretRef": {"name": "sightline-s3", "optional": True}},
        ]
        resources = container["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]
        # A pod beyond a limit of disk is evicted, with all that it has spilled.
        assert "ephemeral-storage" in resources["requests"]
        assert "ephemeral-storage" not in resources["limits"]


@pytest.mark.parametrize("role", ["cluster", "serve"])
def test_serving_roles_run_haproxy_and_leave_time_to_drain(role: str) -> None:
    settings = settings_of(role)

    assert settings.items() >= SERVING.items()
    # A local session may hold fewer connections, by its limit of open files.
    told = {**resilience_environment(), "RAY_SERVE_HAPROXY_MAXCONN": str(MAX_CONNECTIONS)}
    assert {name: settings[name] for name in told} == told
    drain = int(settings["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert drain > seconds_to_leave(ServeOptions(bundle="any"))
    for group in groups(ray_object(role)):
        # 35 s is the least that Serve gives a replica to finish in HAProxy mode.
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > drain + 35
        (container,) = group["template"]["spec"]["containers"]
        cores = float(container["resources"]["limits"]["cpu"])
        assert settings["RAY_SERVE_HAPROXY_NBTHREAD"] == haproxy_threads(cores)
        assert {"name": "serve", "containerPort": 8000} in container["ports"]
        assert {"name": "grpc", "containerPort": 9000} in container["ports"]


@pytest.mark.parametrize("role", ["cluster", "train"])
def test_roles_that_stream_images_free_them_as_a_local_session_does(role: str) -> None:
    assert settings_of(role).items() >= STREAMING.items()


@every_role
def test_an_overlay_with_prefix_registry_and_namespace_reaches_every_reference(
    role: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "kubernetes", tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes" / "mine"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        f"resources: [../base/{role}]\n"
        "namespace: vision\n"
        "namePrefix: plant2-\n"
        "images: [{name: sightline, newName: registry.example/vision/sightline}]\n"
    )

    items = build(overlay)

    (settings,) = named(items, "ConfigMap")
    (account,) = named(items, "ServiceAccount")
    (manifest,) = [item for item in items if item["kind"] == KINDS[role]]
    assert settings.startswith(f"plant2-sightline-{role}-")
    assert account == f"plant2-sightline-{role}"
    assert {item["metadata"]["namespace"] for item in items} == {"vision"}
    for group in groups(manifest):
        assert group["template"]["spec"]["serviceAccountName"] == account
    for pod in pods(manifest):
        for container in pod["containers"]:
            assert container["image"].startswith("registry.example/vision/sightline:")
            assert container["envFrom"][0] == {"configMapRef": {"name": settings}}


def test_the_submitter_has_every_variable_that_the_entrypoint_uses() -> None:
    manifest = ray_object("train")
    settings = settings_of("train")
    words = manifest["spec"]["entrypoint"].split("${")
    used = {word.partition("}")[0] for word in words[1:]}

    assert used
    assert used <= set(settings)


def test_a_training_that_is_submitted_again_goes_on_by_its_name() -> None:
    """Without `run=` it had a new name each time, and passed its checkpoints by."""
    assert "run=${SIGHTLINE_RUN}" in ray_object("train")["spec"]["entrypoint"].split()
    assert RUN_NAME.fullmatch(settings_of("train")["SIGHTLINE_RUN"])
