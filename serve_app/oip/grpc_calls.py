"""The calls of `inference.GRPCInferenceService`, as methods that Serve finds on a replica by name.

The Open Inference Protocol over gRPC, for one model. How an error is told is in `grpc_watch`. What
a call answers is the same JSON value that HTTP sends, put into a message.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cached_property
from reprlib import repr as shown
from typing import Any

from google.protobuf import json_format  # type: ignore[import-untyped]

from serve_app.errors import RequestError, bad_request
from serve_app.keys import ADMIN, INFER, Keys
from serve_app.model import ServedModel
from serve_app.oip.grpc_service import Unreadable
from serve_app.oip.grpc_streams import Streams, requests_of
from serve_app.oip.grpc_watch import Watched
from serve_app.oip.identity import declared, server_metadata
from serve_app.oip.infer import infer, parse_aside
from serve_app.oip.infer_messages import (
    check_numbers,
    infer_response,
    num_bytes_held,
    parse_request,
)
from serve_app.oip.messages import CALLS, message
from serve_app.oip.routes import VIEWS, statistics_of
from serve_app.oip.signature import View, config_of, metadata_of, views_of
from serve_app.peers import Peers
from serve_app.watch import Watch

STREAM = "ModelStreamInfer"
MEMORY = "shared memory"
TRACING = "trace settings; Ray Serve's own tracing is set where Ray starts"
LOGGING = "log settings; `logging_config` in the serve file has them"
OPEN = ""  # the scope of calls that need no key

Answer = Callable[[Any, Any], Awaitable[Any]]
Call = Callable[[Any, Any, Any], Awaitable[Any]]


def rpc(scope: str) -> Callable[[Answer], Call]:
    """Make a call that Serve can find out of a method that answers a request."""

    def made(answer: Answer) -> Call:
        name = answer.__name__
        empty = message(CALLS[name][1])

        # Serve looks for an argument of this name.
        async def call(self: Any, request: Any, grpc_context: Any) -> Any:
            with Watched(self.watch, name, grpc_context) as watched:
                try:
                    _require(self._keys, grpc_context, scope)
                    return watched.answered(request, await answer(self, _read(request)))
                # a call may fail, the server may not; `told` tells the two apart
                except Exception as error:
                    watched.refused(error)
                    return empty()

        call.__name__, call.__doc__ = name, answer.__doc__
        return call

    return made


def _not_offered(name: str, what: str) -> Call:
    async def answer(self: Any, request: Any) -> Any:
        """Refuse an extension of Triton's."""
        raise RequestError(501, "not_offered", f"this server does not offer {what}")

    answer.__name__ = name
    return rpc(OPEN)(answer)


class NotOffered:
    """The calls of Triton's that no application here answers, for a class that has a `watch`."""

    SystemSharedMemoryStatus = _not_offered("SystemSharedMemoryStatus", MEMORY)
    SystemSharedMemoryRegister = _not_offered("SystemSharedMemoryRegister", MEMORY)
    SystemSharedMemoryUnregister = _not_offered("SystemSharedMemoryUnregister", MEMORY)
    CudaSharedMemoryStatus = _not_offered("CudaSharedMemoryStatus", MEMORY)
    CudaSharedMemoryRegister = _not_offered("CudaSharedMemoryRegister", MEMORY)
    CudaSharedMemoryUnregister = _not_offered("CudaSharedMemoryUnregister", MEMORY)
    TraceSetting = _not_offered("TraceSetting", TRACING)
    LogSettings = _not_offered("LogSettings", LOGGING)


class GrpcCalls(NotOffered):
    """The calls, for a class that has a model, its keys and its peers."""

    _model: ServedModel
    _keys: Keys
    _peers: Peers

    @property
    def watch(self) -> Watch:
        """What sees the requests."""
        return self._model.watch

    @rpc(OPEN)
    async def ServerLive(self, request: Any) -> Any:
        """Answer that the server is up."""
        return message("ServerLiveResponse")(live=True)

    @rpc(OPEN)
    async def ServerReady(self, request: Any) -> Any:
        """Answer whether this model can be asked."""
        return message("ServerReadyResponse")(ready=await self._is_ready())

    @rpc(OPEN)
    async def ModelReady(self, request: Any) -> Any:
        """Answer whether the model can be asked; one that is not here cannot."""
        try:
            self._view(request.name, request.version)
        except RequestError:
            return message("ModelReadyResponse")(ready=False)
        return message("ModelReadyResponse")(ready=await self._is_ready())

    @rpc(OPEN)
    async def ServerMetadata(self, request: Any) -> Any:
        """Answer who this is."""
        return filled("ServerMetadataResponse", server_metadata())

    @rpc(INFER)
    async def ModelMetadata(self, request: Any) -> Any:
        """Answer what the model takes and gives."""
        view = self._view(request.name, request.version)
        versions = [str(version) for version in await self._peers.versions()]
        known = {"name": request.name, "versions": versions}
        return filled("ModelMetadataResponse", {**metadata_of(self._model, view), **known})

    @rpc(INFER)
    async def ModelConfig(self, request: Any) -> Any:
        """Answer with the configuration in Triton's form."""
        config = config_of(self._model, self._view(request.name, request.version))
        del config["sightline"]  # there is no place for it in the message
        return filled("ModelConfigResponse", {"config": {**config, "name": request.name}})

    @rpc(INFER)
    async def ModelStatistics(self, request: Any) -> Any:
        """Answer with the counters of all replicas; without a name it is this model's too."""
        if request.name:
            self._view(request.name, request.version)
        counted = await statistics_of(self._model, self._peers)
        return filled("ModelStatisticsResponse", {"model_stats": counted["model_stats"]})

    @rpc(INFER)
    async def ModelInfer(self, request: Any) -> Any:
        """Score images given as tensors."""
        return await self._infer(request)

    async def ModelStreamInfer(self, request_stream: Any, grpc_context: Any) -> AsyncIterator[Any]:
        """Score a stream of requests, one after the other; an error answers its request only. A
        stream on which nothing comes for long is ended.
        """
        try:
            _require(self._keys, grpc_context, INFER)
            with self._streams.opened():
                async for request in requests_of(aiter(request_stream), self.is_leaving):
                    yield await self._answer_streamed(request, grpc_context)
        except RequestError as error:
            with Watched(self.watch, STREAM, grpc_context) as watched:
                watched.refused(error)

    @rpc(INFER)
    async def RepositoryIndex(self, request: Any) -> Any:
        """List the versions of this model that are ready; other models are other applications."""
        name = self._model.manifest.name
        models = [
            {"name": name, "version": str(version), "state": "READY"}
            for version in await self._peers.versions()
        ]
        return filled("RepositoryIndexResponse", {"models": models})

    @rpc(ADMIN)
    async def RepositoryModelLoad(self, request: Any) -> Any:
        """Answer that this model is loaded: nothing is ever loaded by a call."""
        self._view(request.model_name, "")
        if request.parameters:
            raise declared("load a model with another configuration or other files")
        await self._model.check()
        return message("RepositoryModelLoadResponse")()

    @rpc(ADMIN)
    async def RepositoryModelUnload(self, request: Any) -> Any:
        """Refuse: what is served stands in the serve file."""
        self._view(request.model_name, "")
        raise declared("unload a model")

    def is_leaving(self) -> bool:
        """Say whether this replica takes its leave, so that nobody should stay connected."""
        return False

    async def _answer_streamed(self, request: Any, grpc_context: Any) -> Any:
        response = message("ModelStreamInferResponse")()
        with Watched(self.watch, STREAM, grpc_context) as watched:
            try:
                response.infer_response.CopyFrom(await self._infer(_read(request)))
                watched.answered(request, response)
            except Exception as error:  # the same border as in `rpc`
                response.error_message = str(watched.failed(error)["error"])
                response.infer_response.id = getattr(request, "id", "")
        return response

    async def _infer(self, request: Any) -> Any:
        check_numbers(request, self._max_numbers)
        num_bytes = request.ByteSize()
        # One that is alone has room, however little there is.
        held = min(num_bytes_held(request, num_bytes), self._model.limits.max_queued_bytes)
        return await self._model.gate.answered_whole(lambda: self._answer(request, num_bytes), held)

    async def _answer(self, request: Any, num_bytes: int) -> Any:
        view = self._view(request.model_name, request.model_version)
        asked = await parse_aside(num_bytes, parse_request, request, view, self._model.limits)
        version = self._model.manifest.version
        return await infer(
            self._model,
            asked,
            lambda answered: infer_response(request.model_name, version, answered),
        )

    @cached_property
    def _streams(self) -> Streams:
        return Streams()

    @cached_property
    def _views(self) -> dict[str, View]:
        """The views by the names that clients call them by: the model's own name, or that and
        `/views/` with the name of the view, since gRPC has no paths.
        """
        name = self._model.manifest.name
        views = views_of(self._model.manifest, self._model.kind)
        return {f"{name}{VIEWS}/{view}" if view else name: views[view] for view in views}

    @cached_property
    def _max_numbers(self) -> int:
        return self._model.limits.max_images * max(
            math.prod(spec.dims) for view in self._views.values() for spec in view.inputs.values()
        )

    def _view(self, name: str, version: str) -> View:
        manifest = self._model.manifest
        if name not in self._views:
            raise RequestError(
                404,
                "unknown_model",
                f"no model {shown(name)} here; this application serves {', '.join(self._views)}, "
                "another is chosen by the metadata `application`",
            )
        if version not in ("", str(manifest.version)):
            raise RequestError(
                404,
                "unknown_version",
                f"model {manifest.name!r} answers here in version {manifest.version}, not "
                f"{shown(version)}",
            )
        return self._views[name]

    async def _is_ready(self) -> bool:
        try:
            await self._model.check()
        except RequestError:
            return False
        return True


def _require(keys: Keys, grpc_context: Any, scope: str) -> None:
    if scope:
        keys.require(dict(grpc_context.invocation_metadata()), scope)


def _read(request: Any) -> Any:
    if isinstance(request, Unreadable):
        raise bad_request(request.reason, "bad_message")
    return request


def filled(name: str, value: Any) -> Any:
    """Return a message made of JSON values."""
    return json_format.ParseDict(value, message(name)())
