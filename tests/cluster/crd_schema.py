"""A CustomResourceDefinition's schema as strict JSON Schema, with an API server's defaults.

It is stricter than an API server, which silently drops unknown fields: here they are errors,
because a field that is dropped is a setting that does not work. CEL rules
(`x-kubernetes-validations`) are not evaluated; those that matter to our manifests are in
`operator_rules.py`.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

_KEPT = ("type", "required", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength")
_KEPT_LISTS = ("minItems", "maxItems")


def find_errors(crd: Path, manifest: dict[str, Any]) -> list[str]:
    """Return where and how `manifest`, with defaults applied, departs from the CRD's schema."""
    version = manifest["apiVersion"].partition("/")[2]
    schema = _open_api_schema(crd, version)
    validator = jsonschema.Draft202012Validator(strict_schema(schema, root=True))
    errors = validator.iter_errors(with_defaults(schema, manifest))
    return [f"{error.json_path}: {error.message}" for error in errors]


@cache
def _open_api_schema(crd: Path, version: str) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the pure Python one takes seconds
    definition = yaml.load(crd.read_text(encoding="utf-8"), Loader=loader)
    served = {entry["name"]: entry for entry in definition["spec"]["versions"]}
    schema: dict[str, Any] = served[version]["schema"]["openAPIV3Schema"]
    return schema


def strict_schema(node: dict[str, Any], *, root: bool = False) -> dict[str, Any]:
    """Return JSON Schema that refuses unknown fields; nullable and int-or-string are mapped."""
    strict: dict[str, Any] = {key: node[key] for key in (*_KEPT, *_KEPT_LISTS) if key in node}
    if node.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    if "items" in node:
        strict["items"] = strict_schema(node["items"])
    properties = node.get("properties")
    if properties is not None:
        strict["properties"] = {name: strict_schema(child) for name, child in properties.items()}
    if isinstance(node.get("additionalProperties"), dict):
        strict["additionalProperties"] = strict_schema(node["additionalProperties"])
    elif properties is not None and not node.get("x-kubernetes-preserve-unknown-fields"):
        strict["additionalProperties"] = False
    if root:
        strict["properties"]["metadata"] = {"type": "object"}  # the API server's own, in no CRD
    if node.get("nullable"):
        return {"anyOf": [strict, {"type": "null"}]}
    return strict


def with_defaults(node: dict[str, Any], value: Any) -> Any:
    """Return `value` with the schema's defaults wherever it leaves a field out, at any depth."""
    if isinstance(value, list) and "items" in node:
        return [with_defaults(node["items"], item) for item in value]
    if not isinstance(value, dict):
        return value
    properties = node.get("properties", {})
    filled = dict(value)
    for name, child in properties.items():
        if name not in filled and "default" in child:
            filled[name] = copy.deepcopy(child["default"])
    others = node.get("additionalProperties")
    for name, item in filled.items():
        child = properties.get(name, others if isinstance(others, dict) else None)
        if child is not None:
            filled[name] = with_defaults(child, item)
    return filled
