"""FastAPI with uvicorn.

`same`: raw bodies, scored on threads beside the event loop of one process: a stream for each core
and one thread more, as Sightline. A worker process per core is as fast, but not where one of two
takes all connections: in two of five rounds it answered half.
`own`: `UploadFile` in a plain function, which FastAPI runs in its thread pool; `uvicorn.run` with
its defaults, so one process.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import JSONResponse

from benchmarks.peers.scoring import (
    Answer,
    OpenVinoScorer,
    TorchScorer,
    parse_options,
    read_options,
)

APP = "benchmarks.peers.fastapi_server:{}"


def same() -> FastAPI:
    """Build the application with Sightline's decoder and engine."""
    options = read_options()
    scorer, pool = OpenVinoScorer(options, options.cores), ThreadPoolExecutor(options.cores + 1)
    app = FastAPI()

    @app.post("/classify")
    async def classify(request: Request) -> JSONResponse:
        loop = asyncio.get_running_loop()
        return JSONResponse(await loop.run_in_executor(pool, scorer.score, await request.body()))

    return app


def own() -> FastAPI:
    """Build the application as FastAPI's chapter on files does."""
    scorer = TorchScorer(read_options())
    app = FastAPI()

    def classify(image: UploadFile) -> Answer:
        return scorer.score(image.file.read())

    # Not a decorator: FastAPI looks names up in the module, and these are local.
    classify.__annotations__ = {"image": UploadFile}
    app.post("/classify")(classify)
    return app


def main() -> None:
    """Serve."""
    options = parse_options()
    access_log = options.mode == "own"  # as is the default
    uvicorn.run(APP.format(options.mode), factory=True, port=options.port, access_log=access_log)


if __name__ == "__main__":
    main()
