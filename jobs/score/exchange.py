"""One HTTP request to a served model, and what its outcome means: an answer, a refusal that stands,
or trouble that may pass. It knows nothing of images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import orjson

from jobs.score.patience import Patience, Trouble
from models.errors import EndpointError

CONNECT_SECONDS = 10.0
MAX_TOLD = 300  # characters of an answer that are shown

Result = TypeVar("Result")


@dataclass(frozen=True)
class Key:
    """An access key, and the environment variable that it came from. Only the latter is shown."""

    value: str
    variable: str


class Rejected(Exception):
    """The server will not take the body: too large, or not what it reads. Never leaves this
    package.
    """

    def __init__(self, error: str, code: str) -> None:
        super().__init__(error)
        self.error, self.code = error, code


class Missing(Exception):
    """Nothing answers at the path. Never leaves this package."""


class Exchange:
    """Sends requests over connections that are kept. Safe for many threads."""

    def __init__(
        self, key: Key | None, patience: Patience, *, timeout: float, connections: int
    ) -> None:
        self.patience = patience
        self._key = key
        self._has_answered = False
        headers = {"User-Agent": "sightline-score"}
        if key:
            headers["Authorization"] = f"Bearer {key.value}"
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=connections),
        )

    def get(self, url: str) -> Any:
        """Return the JSON of one GET; raises as `post`."""
        return self._send("GET", url)

    def post(
        self, url: str, body: bytes, content_type: str, query: Mapping[str, str] | None = None
    ) -> Any:
        """Return the JSON of one POST, tried once.

        Raises `Trouble` for what may pass, `Rejected` for a body that is refused, `Missing` for a
        path that nothing answers at, `EndpointError` for the rest.
        """
        headers = {"Content-Type": content_type}
        return self._send("POST", url, content=body, headers=headers, params=query)

    def is_ready(self, url: str) -> bool:
        """Say whether `url` answers 200. Does not count as an answer that gives hope."""
        try:
            return self._client.get(url).status_code == 200
        except httpx.HTTPError:
            return False

    def persist(self, call: Callable[[], Result]) -> Result:
        """Call again as long as there is trouble that may pass, and patience."""
        began, tries = time.monotonic(), 0
        while True:
            try:
                return call()
            except Trouble as trouble:
                self.patience.pause(trouble, tries, began)
                tries += 1

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _send(self, method: str, url: str, **options: Any) -> Any:
        try:
            response = self._client.request(method, url, **options)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise EndpointError(f"{url} is no address: {error}") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Trouble(f"cannot connect to {url}: {_reason(error)}") from error
        except httpx.TimeoutException as error:
            seconds = self._client.timeout.read
            told = f"{url} did not answer within {seconds:g} s (--timeout)"
            raise Trouble(told, may_be_image=True) from error
        except httpx.HTTPError as error:
            told = f"the connection to {url} broke: {_reason(error)}"
            raise Trouble(told, may_be_image=True) from error
        if response.status_code == 200:
            return self._read(url, response)
        raise self._refusal(url, response)

    def _read(self, url: str, response: httpx.Response) -> Any:
        try:
            value = orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise EndpointError(
                f"{url} does not answer with JSON but with {_told(response)!r}; is it a Sightline "
                "model?"
            ) from error
        self._has_answered = True
        self.patience.answered()
        return value

    def _refusal(self, url: str, response: httpx.Response) -> Exception:
        status = response.status_code
        told = f"{url} answered {status}: {_told(response)}"
        if status in (413, 415, 422):
            return Rejected(_told(response), _code(response) or "rejected")
        if status in (429, 503):
            return Trouble(told, wait=_retry_after(response))
        # A replica that does not have the asked label revision yet.
        if status == 409 and _code(response) == "label_revision":
            return Trouble(told)
        if status == 408 or status >= 500:
            return Trouble(told, may_be_image=True)
        if status == 404:
            # A server that has just started answers before its models do.
            return Trouble(told) if self._has_answered else Missing(told)
        return EndpointError(told + self._advice(response))

    def _advice(self, response: httpx.Response) -> str:
        status = response.status_code
        if status == 401 and self._key is None:
            return (
                ". Put an access key into the environment variable SIGHTLINE_KEY, or name another "
                "one with --key-env"
            )
        if status in (401, 403):
            name = self._key.variable if self._key else "SIGHTLINE_KEY"
            what = "is not known there" if status == 401 else "may not score there"
            return f". The access key in {name} {what}; ask for one with the scope `infer`"
        if response.is_redirect:
            return f". Give the address it redirects to: {response.headers.get('location')}"
        return ""


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number, or a date."""
    text = response.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        value = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _code(response: httpx.Response) -> str:
    return str(_body(response).get("code", ""))


def _told(response: httpx.Response) -> str:
    error = _body(response).get("error")
    return " ".join(str(error or response.text).split())[:MAX_TOLD]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
