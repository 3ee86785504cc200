"""TorchServe: a server in Java before Python workers, which take turns at raw bodies.

`same`: a worker per core. `own`: its `image_classifier` handler, batches of 16, and as many workers
as it starts by default. That handler loads TorchScript only, so `OwnHandler` loads the bundle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.scoring import BATCH, BATCH_WAIT_SECONDS, Options, parse_options

NAME = "sightline"
HANDLER = """from benchmarks.peers import torchserve_handler


class Handler(torchserve_handler.{}):
    pass
"""


def main() -> None:
    """Archive the handler, write the settings, and serve."""
    options = parse_options()
    folder = Path(options.folder)
    store = folder / "store"
    store.mkdir(exist_ok=True)
    handler = folder / "handler.py"
    handler.write_text(HANDLER.format(options.mode.capitalize()))
    binaries = Path(sys.executable).parent
    archive = [
        *(str(binaries / "torch-model-archiver"), "--model-name", NAME, "--version", "1.0"),
        *("--handler", str(handler), "--export-path", str(store), "--force"),
    ]
    subprocess.run(archive, check=True)
    settings = folder / "config.properties"
    settings.write_text(properties(options))
    # Its launcher and its Java process find Python on the PATH.
    os.environ["PATH"] = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    os.environ.update({"LOG_LOCATION": str(folder), "METRICS_LOCATION": str(folder)})
    os.chdir(folder)
    command = [
        *(str(binaries / "torchserve"), "--start", "--foreground", "--ncs", "--disable-token-auth"),
        *("--ts-config", str(settings), "--model-store", str(store)),
        *("--models", f"{NAME}={NAME}.mar"),
    ]
    os.execv(command[0], command)


def properties(options: Options) -> str:
    """Return TorchServe's settings."""
    http, management, metrics, grpc, grpc_management = options.ports[:5]
    is_own = options.mode == "own"
    model = {
        "marName": f"{NAME}.mar",
        **({} if is_own else {"minWorkers": options.cores, "maxWorkers": options.cores}),
        "batchSize": BATCH if is_own else 1,
        "maxBatchDelay": round(BATCH_WAIT_SECONDS * 1000) if is_own else 0,
    }
    lines = {
        "inference_address": f"http://127.0.0.1:{http}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port": str(grpc),
        "grpc_management_port": str(grpc_management),
        # Its workers' sockets have fixed names below this, and two servers may run.
        "vmargs": f"-Djava.io.tmpdir={options.folder}",
        "models": json.dumps({NAME: {"1.0": model}}),
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


if __name__ == "__main__":
    main()
