"""The rules that KubeRay 1.7's operator, or a CEL expression, enforces and no JSON Schema can say.

Only rules that objects like ours can break are here; GCS fault tolerance, mTLS, network policies
and incremental upgrades have rules of their own, to be added by the change that uses them.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Manifest = dict[str, Any]

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MAX_NAME_LENGTH = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
_RESOURCE_PARAMETERS = {"num-cpus", "num-gpus", "memory", "resources"}
_AUTOSCALER_V2_VARIABLE = "RAY_enable_autoscaler_v2"
_UPGRADES = {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"}
_DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
_TOKEN_AUTH_SINCE = (2, 52)


def find_violations(manifest: Manifest) -> list[str]:
    """Return one sentence per rule that `manifest` breaks."""
    kind = manifest["kind"]
    return [
        *_name(kind, manifest["metadata"]["name"]),
        *_RULES[kind](manifest["spec"]),
        *_cluster(cluster_spec(manifest)),
    ]


def cluster_spec(manifest: Manifest) -> Manifest:
    """Return the RayCluster spec inside any of the Ray kinds."""
    keys = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    spec: Manifest = manifest["spec"]
    inner: Manifest = spec[keys[manifest["kind"]]] if manifest["kind"] in keys else spec
    return inner


def _name(kind: str, name: str) -> Iterator[str]:
    if not _DNS_1035.fullmatch(name):
        yield f"name {name!r} is not a DNS-1035 label"
    if len(name) > _MAX_NAME_LENGTH[kind]:
        yield f"name {name!r} is longer than {_MAX_NAME_LENGTH[kind]} characters"


def _cluster(spec: Manifest) -> Iterator[str]:
    head = spec["headGroupSpec"]
    workers = spec.get("workerGroupSpecs", [])
    for group in (head, *workers):
        yield from _group(group)
    for group in workers:
        low, high = group["minReplicas"], group["maxReplicas"]
        if not 0 <= low <= high:
            yield f"group {group['groupName']}: 0 <= minReplicas {low} <= maxReplicas {high} fails"
        if group.get("idleTimeoutSeconds", 0) < 0:
            yield f"group {group['groupName']}: idleTimeoutSeconds is negative"
    yield from _autoscaler(spec, head, workers)
    if "RAY_REDIS_ADDRESS" in _variables(head) and "gcsFaultToleranceOptions" not in spec:
        yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    if spec.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in spec.get("rayVersion", "0").split(".")[:2])
        if version < _TOKEN_AUTH_SINCE:
            yield "token authentication needs rayVersion 2.52 or later"


def _group(group: Manifest) -> Iterator[str]:
    name = group.get("groupName", "head")
    parameters = set(group.get("rayStartParams", {}))
    if not group["template"]["spec"]["containers"]:
        yield f"group {name}: no container"
    if parameters & _RESOURCE_PARAMETERS and group.get("resources"):
        yield f"group {name}: resources both in rayStartParams and in `resources`"
    if "labels" in parameters:
        yield f"group {name}: labels belong in the field, not in rayStartParams"


def _autoscaler(spec: Manifest, head: Manifest, workers: list[Manifest]) -> Iterator[str]:
    options = spec.get("autoscalerOptions", {})
    if not spec.get("enableInTreeAutoscaling"):
        if _AUTOSCALER_V2_VARIABLE in _variables(head):
            yield f"{_AUTOSCALER_V2_VARIABLE} without enableInTreeAutoscaling"
        if any("priority" in group and group["priority"] for group in workers):
            yield "group priority needs the autoscaler"
        return
    if any(group.get("suspend") for group in workers):
        yield "a suspended worker group under the autoscaler"
    if "version" in options and _AUTOSCALER_V2_VARIABLE in _variables(head):
        yield f"autoscalerOptions.version and {_AUTOSCALER_V2_VARIABLE} are both set"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is negative"
    if any(entry["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD" for entry in options.get("env", [])):
        yield "KUBERAY_GEN_AUTOSCALER_START_CMD is the operator's own"
    if options.get("version") == "v2":
        policies = {g["template"]["spec"].get("restartPolicy", "Never") for g in (head, *workers)}
        if policies != {"Never"}:
            yield "autoscaler v2 needs restartPolicy Never or unset"


def _variables(group: Manifest) -> set[str]:
    containers = group["template"]["spec"]["containers"]
    return {entry["name"] for entry in containers[0].get("env", [])} if containers else set()


def _ray_cluster(spec: Manifest) -> Iterator[str]:
    if spec.get("upgradeStrategy", {}).get("type", "None") not in {"Recreate", "None"}:
        yield "upgradeStrategy of a RayCluster is Recreate or None"


def _ray_job(spec: Manifest) -> Iterator[str]:
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    for deadline in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(deadline, 1) <= 0:
            yield f"{deadline} is not positive"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"
    if spec.get("submissionMode") == "SidecarMode" and (
        "submitterPodTemplate" in spec or "submitterConfig" in spec
    ):
        yield "SidecarMode takes no submitterPodTemplate and no submitterConfig"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is not a YAML mapping"
    yield from _deletion(spec)


def _deletion(spec: Manifest) -> Iterator[str]:
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    rules = strategy.get("deletionRules", [])
    legacy = {"onSuccess", "onFailure"} & set(strategy)
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield "deletionRules and shutdownAfterJobFinishes are both set"
    if bool(rules) == bool(legacy):
        yield "deletionStrategy has either rules or both legacy policies"
    if legacy and len(legacy) != 2:
        yield "the legacy deletion policies come only together"
    seconds: dict[tuple[str, str], int] = {}
    for rule in rules:
        states = [rule["condition"].get(key) for key in ("jobStatus", "jobDeploymentStatus")]
        if states.count(None) != 1:
            yield f"deletion rule {rule['policy']} needs exactly one of the two conditions"
        when = "/".join(str(state) for state in states)
        if (when, rule["policy"]) in seconds:
            yield f"deletion rule {rule['policy']} is there twice for {when}"
        seconds[when, rule["policy"]] = rule["condition"]["ttlSeconds"]
        autoscaling = spec["rayClusterSpec"].get("enableInTreeAutoscaling")
        if rule["policy"] == "DeleteWorkers" and autoscaling:
            yield "DeleteWorkers does not go with the autoscaler"
    for when in {key[0] for key in seconds}:
        order = [seconds[when, step] for step in _DELETION_ORDER if (when, step) in seconds]
        if order != sorted(order):
            yield f"deletion times for {when} do not rise from workers to cluster to self"


def _ray_service(spec: Manifest) -> Iterator[str]:
    head = spec["rayClusterConfig"]["headGroupSpec"]
    if head.get("headService", {}).get("metadata", {}).get("name"):
        yield "the head service of a RayService has no name of its own"
    if spec.get("upgradeStrategy", {}).get("type", "NewCluster") not in _UPGRADES:
        yield f"upgradeStrategy.type is none of {sorted(_UPGRADES)}"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"


_RULES: dict[str, Callable[[Manifest], Iterator[str]]] = {
    "RayCluster": _ray_cluster,
    "RayJob": _ray_job,
    "RayService": _ray_service,
}
