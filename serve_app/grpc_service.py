"""The gRPC service that Serve's gRPC ingress offers: a serve file names `add_inference_service` in
its `grpc_servicer_functions`.

Serve puts itself in the place of the handlers: it calls the method of that name of the replica, and
serialises what it returns. It knows nothing of models.
"""

from __future__ import annotations

from typing import Any

import grpc  # type: ignore[import-untyped]

from serve_app.messages import CALLS, PACKAGE, STREAM_CALLS, message

SERVICE = f"{PACKAGE}.GRPCInferenceService"


def add_inference_service(servicer: Any, server: Any) -> None:
    """Add the service to a gRPC server, answered by the methods of `servicer`."""
    kinds = {
        grpc.unary_unary_rpc_method_handler: CALLS,
        grpc.stream_stream_rpc_method_handler: STREAM_CALLS,
    }
    handlers = {
        name: handler(
            getattr(servicer, name),
            request_deserializer=message(request).FromString,
            response_serializer=message(response).SerializeToString,
        )
        for handler, calls in kinds.items()
        for name, (request, response) in calls.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
