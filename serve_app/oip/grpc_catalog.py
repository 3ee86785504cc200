"""gRPC as the application at `/` answers it: for the whole server, and for no model.

A client reaches it with the metadata `application: catalog`. Where nothing but one model is served
there is no catalog, and the model answers for the server.
"""

from __future__ import annotations

from typing import Any

from serve_app.directory import Directory
from serve_app.errors import RequestError
from serve_app.keys import INFER, Keys
from serve_app.oip.grpc_calls import OPEN, Call, NotOffered, filled, rpc
from serve_app.oip.identity import server_metadata
from serve_app.oip.messages import message


def _elsewhere(name: str) -> Call:
    async def answer(self: Any, request: Any) -> Any:
        """Refuse a call that is a model's."""
        raise RequestError(
            501,
            "other_application",
            "this application serves no model; choose that of a model by the metadata "
            "`application`",
        )

    answer.__name__ = name
    return rpc(OPEN)(answer)


class CatalogCalls(NotOffered):
    """The calls, for a class that has the directory of models and the keys."""

    _directory: Directory
    _keys: Keys

    @rpc(OPEN)
    async def ServerLive(self, request: Any) -> Any:
        """Answer that the server is up."""
        return message("ServerLiveResponse")(live=True)

    @rpc(OPEN)
    async def ServerReady(self, request: Any) -> Any:
        """Answer whether every deployed model can be asked."""
        entries = await self._directory.entries()
        return message("ServerReadyResponse")(ready=all(e.state == "READY" for e in entries))

    @rpc(OPEN)
    async def ServerMetadata(self, request: Any) -> Any:
        """Answer who this is."""
        return filled("ServerMetadataResponse", server_metadata())

    @rpc(INFER)
    async def RepositoryIndex(self, request: Any) -> Any:
        """List the models; only those that can be asked, if the request says so."""
        models = [
            {"name": e.name, "version": e.version, "state": e.state, "reason": e.reason}
            for e in await self._directory.entries()
            if e.state == "READY" or not request.ready
        ]
        return filled("RepositoryIndexResponse", {"models": models})

    ModelReady = _elsewhere("ModelReady")
    ModelMetadata = _elsewhere("ModelMetadata")
    ModelConfig = _elsewhere("ModelConfig")
    ModelStatistics = _elsewhere("ModelStatistics")
    ModelInfer = _elsewhere("ModelInfer")
    RepositoryModelLoad = _elsewhere("RepositoryModelLoad")
    RepositoryModelUnload = _elsewhere("RepositoryModelUnload")

    async def ModelStreamInfer(self, request_stream: Any, grpc_context: Any) -> Any:
        """Refuse, once for the whole stream."""
        await self.ModelInfer(None, grpc_context)
        return
        yield  # what makes it a stream
