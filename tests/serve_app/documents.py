"""Check answers against the OpenAPI document that promises them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.serve_app.conftest import Response

URI = "urn:document"


class Document:
    """An OpenAPI document that answers can be held against."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        resource: Any = DRAFT202012.create_resource(value)
        self._registry: Any = Registry().with_resource(URI, resource)

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield method, path and operation of every call."""
        for path, methods in self.value["paths"].items():
            for method, operation in methods.items():
                yield method.upper(), path, operation

    def find(self, method: str, path: str) -> dict[str, Any]:
        """Return the operation that a path of a request belongs to."""
        for known, methods in self.value["paths"].items():
            pattern = re.sub(r"\\\{[^}]+\\\}", "[^/]+", re.escape(known))
            if re.fullmatch(pattern, path or "/") and method.lower() in methods:
                found: dict[str, Any] = methods[method.lower()]
                return found
        raise AssertionError(f"the document has no {method} {path}")

    def check(self, method: str, path: str, answer: Response) -> None:
        """Assert that an answer is one that the document promises."""
        responses = self.find(method, path)["responses"]
        status = str(answer.status_code)
        where = f"{method} {path} answered {status} {answer.content[:300]!r}"
        assert status in responses, f"{where}, promised are {sorted(responses)}"
        promised = responses[status]
        content = promised.get("content", {})
        content_type = answer.headers["content-type"].partition(";")[0]
        assert content_type in content, f"{where} as {content_type}"
        for name, header in promised.get("headers", {}).items():
            if name in answer.headers:
                wrong = self.errors(self._header(header)["schema"], answer.headers[name])
                assert not wrong, f"{where}, header {name}: {wrong}"
        assert {"X-Request-Id"} <= set(promised["headers"])
        assert "x-request-id" in answer.headers, where
        schema = content[content_type].get("schema")
        if content_type == "application/json" and schema is not None:
            wrong = self.errors(schema, answer.json())
            assert not wrong, f"{where}: {wrong}"

    def _header(self, promised: dict[str, Any]) -> dict[str, Any]:
        """Return a header, which may stand among the components."""
        name = promised.get("$ref", "").rpartition("/")[2]
        found: dict[str, Any] = self.value["components"]["headers"][name] if name else promised
        return found

    def errors(self, schema: dict[str, Any], value: Any) -> list[str]:
        """Return what is wrong with a value."""
        whole = _absolute(schema)
        validator = Draft202012Validator(whole, registry=self._registry)
        return [
            f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value)
        ]


def _absolute(schema: Any) -> Any:
    """Return a schema whose references lead into the document."""
    if isinstance(schema, list):
        return [_absolute(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"{URI}{value}" if key == "$ref" and value.startswith("#") else _absolute(value)
        for key, value in schema.items()
    }
