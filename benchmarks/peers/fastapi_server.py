"""FastAPI with uvicorn.

`same`: a worker process per core, raw bodies, scoring on a thread beside the event loop.
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
    """Build the application of one worker."""
    scorer, pool = OpenVinoScorer(read_options()), ThreadPoolExecutor(1)
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
    if options.mode == "own":
        uvicorn.run(APP.format("own"), factory=True, port=options.port)
    else:
        uvicorn.run(
            APP.format("same"),
            factory=True,
            port=options.port,
            workers=options.cores,
            # It is stopped while others are measured, and would take its workers for dead.
            timeout_worker_healthcheck=3600,
            access_log=False,
        )


if __name__ == "__main__":
    main()
