"""Serve published bundles on this machine's Ray through Serve's own deployment API, and wait until
they answer.

It takes a serve file as Ray does and knows nothing of what the applications are: `import_path` in
the file names them.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from models.bundle import newest_model, newest_version, open_bundle
from models.errors import ConfigError, EngineError, NotFoundError
from models.kinds import find_kind

LABEL_STORE = ".sightline/labels"
KEYS_FILE = ".sightline/keys"  # lines of `python -m serve_app.keys`
LOCAL_CONFIG = Path("configs/serve/local.yaml")
POLL_SECONDS = 0.25
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


def local_config(path: Path = LOCAL_CONFIG) -> dict[str, Any]:
    """Read a serve file. Raises `ConfigError` if there is none, or it is none."""
    try:
        config: Any = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"serve file {path} does not exist; run this in the project's folder"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"serve file {path} cannot be read: {error}") from error
    settings: dict[str, Any] = config if isinstance(config, dict) else {}
    applications = settings.get("applications")
    if not isinstance(applications, list) or not all(
        isinstance(each, dict) and "import_path" in each for each in applications
    ):
        raise ConfigError(
            f"serve file {path} has no list of `applications` with an `import_path` each, as "
            f"{LOCAL_CONFIG} has"
        )
    return settings


def as_it_is(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the serve file with absolute paths, the local label store for models whose labels may
    change, and the local keys where there are any.

    Raises `NotFoundError` for a model that is not published.
    """
    keys = {"keys_file": absolute_uri(KEYS_FILE)} if Path(KEYS_FILE).is_file() else {}
    applications = []
    for application in config["applications"]:
        is_ours = application["import_path"].startswith("serve_app.")
        arguments = {**(keys if is_ours else {}), **(application.get("args") or {})}
        if "bundle" in arguments:
            arguments["bundle"] = uri = absolute_uri(str(arguments["bundle"]))
            if find_kind(open_bundle(uri).manifest.kind).has_label_map:
                arguments.setdefault("label_store", absolute_uri(LABEL_STORE))
        applications.append({**application, "args": arguments})
    return {**config, "applications": applications}


def with_models(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the serve file with its model replaced by the named ones of the same store, `caps` at
    its newest version and `caps@3` at version 3; without a name, by the one that was published
    last. A second version of a model is served beside the first, below its `/versions/`.

    Raises `ConfigError` for a file that has not exactly one model or for a version that is no
    number, and `NotFoundError` where nothing is published.
    """
    models = [each for each in config["applications"] if "bundle" in (each.get("args") or {})]
    if len(models) != 1:
        raise ConfigError(
            f"the serve file has {len(models)} models, so it cannot say how others are served; "
            "name none of them to serve it as it is"
        )
    template = models[0]
    store = str(template["args"]["bundle"]).rsplit("/", 2)[0]
    served: dict[str, dict[str, Any]] = {}
    try:
        for word in names or [newest_model(store)]:
            name, version = _pinned(word, store)
            path = f"/v2/models/{name}"
            beside = name in served
            application = f"{name}-{version}" if beside else name
            served[application] = {
                **template,
                "name": application,
                "route_prefix": f"{path}/versions/{version}" if beside else path,
                "args": _arguments(template["args"], f"{store}/{name}/{version}"),
            }
    except NotFoundError as error:
        raise NotFoundError(f"{error}: `make demo` makes one") from error
    others = [each for each in config["applications"] if each is not template]
    return {**config, "applications": [*others, *served.values()]}


def _arguments(template: Mapping[str, Any], bundle: str) -> dict[str, Any]:
    """Return the arguments of one model for another one, which may have no label map."""
    arguments = {**template, "bundle": bundle}
    if not find_kind(open_bundle(absolute_uri(bundle)).manifest.kind).has_label_map:
        arguments.pop("label_store", None)
    return arguments


def _pinned(word: str, store: str) -> tuple[str, int]:
    """Return the name and the version that `caps` or `caps@3` stands for."""
    name, at, version = word.partition("@")
    if not at:
        return name, newest_version(store, name)
    if not (version.isascii() and version.isdecimal()):
        raise ConfigError(f"{word!r}: expected a name and a version, as in caps@3")
    return name, int(version)


def check_port(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if something listens already where the applications are to answer, over
    HTTP or gRPC.
    """
    host = str(_http_options(config).get("host", "127.0.0.1"))
    ports = {"http_options.port": _port(config)}
    if config.get("grpc_options"):
        ports["grpc_options.port"] = int(config["grpc_options"].get("port", 9000))
    for setting, port in ports.items():
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError as error:
                raise ConfigError(
                    f"cannot serve on {host}:{port} ({error.strerror}): another `make serve`, "
                    f"`serve deploy` or other server may be running. End it, or set {setting} in "
                    "the serve file to a free port"
                ) from error


def absolute_uri(uri: str) -> str:
    """Return a URI as it is, and a path from the root: replicas have another working directory."""
    return uri if "://" in uri else str(Path(uri).absolute())


def base_url(config: Mapping[str, Any]) -> str:
    """Return the address that a serve file makes its applications answer at."""
    return f"http://localhost:{_port(config)}"


def _port(config: Mapping[str, Any]) -> int:
    return int(_http_options(config).get("port", 8000))


def _http_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("http_options") or {}


@contextmanager
def deployed(
    config: Mapping[str, Any], dashboard_url: str, *, timeout_seconds: float
) -> Iterator[str]:
    """Deploy a serve file to a running Ray, wait until every model is ready, and give the base URL.

    The applications end with the session they run in. Raises `EngineError` with Serve's own message
    if one cannot start.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    client = ServeSubmissionClient(dashboard_url)
    client.deploy_applications(dict(config))
    _wait_until_running(client.get_serve_details, timeout_seconds)
    url = base_url(config)
    for application in config["applications"]:
        prefix = application.get("route_prefix", "/").rstrip("/")  # as Serve takes it
        path = f"{prefix}/ready" if prefix else "/v2/health/live"
        _wait_until_answering(f"{url}{path}", timeout_seconds)
    yield url


def _wait_until_running(details: Callable[[], Mapping[str, Any]], timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        applications = details().get("applications", {})
        states = {name: app["status"] for name, app in applications.items()}
        for name, app in applications.items():
            if app["status"] in FAILED:
                raise EngineError(f"application {name} did not start: {_reason(app)}")
        if states and all(state == "RUNNING" for state in states.values()):
            return
        if time.monotonic() > deadline:
            raise EngineError(
                f"the applications were not running after {timeout_seconds:.0f} s: {states}"
            )
        time.sleep(POLL_SECONDS)


def _wait_until_answering(url: str, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            response = httpx.get(url, timeout=5, trust_env=False)  # here, not through a proxy
            if response.status_code == 200:
                return
            last = f"HTTP {response.status_code}"
        except httpx.HTTPError as error:
            last = str(error) or type(error).__name__
        time.sleep(POLL_SECONDS)
    raise EngineError(f"{url} did not answer within {timeout_seconds:.0f} s: {last}")


def _reason(application: Mapping[str, Any]) -> str:
    messages = [application.get("message", "")]
    messages += [
        deployment.get("message", "") for deployment in application.get("deployments", {}).values()
    ]
    return " ".join(message for message in messages if message)
