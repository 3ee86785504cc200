"""`python -m jobs.serve [MODEL ...]`: keep models up on this machine until Ctrl-C, and leave
nothing behind.

Without a name it is the model that was published last. Each is served at its newest version, as
`configs/serve/local.yaml` says, or as another serve file does.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from cluster.session import SessionOptions, open_session
from jobs.console import make_console, readable_errors, set_up_logging
from jobs.local_serving import (
    LOCAL_CONFIG,
    check_port,
    deployed,
    local_config,
    with_models,
    with_newest_bundles,
)

TIMEOUT_SECONDS = 180.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.serve", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names in the model store")
    parser.add_argument("--config", type=Path, help="a serve file, served as it is")
    given = parser.parse_args(arguments)
    console = make_console()
    set_up_logging()
    with readable_errors(console):
        config = local_config(given.config or LOCAL_CONFIG)
        if given.models or not given.config:
            config = with_models(config, given.models)
        config = with_newest_bundles(config)
        check_port(config)
        console.print("starting Ray and the model ...")
        with (
            open_session(SessionOptions(dashboard=True, connect=False)) as session,
            deployed(config, session.dashboard_url, timeout_seconds=TIMEOUT_SECONDS) as url,
        ):
            for application in config["applications"]:
                if "bundle" in application["args"]:
                    path = f"{url}{application['route_prefix']}/classify"
                    console.print(f"serving {application['args']['bundle']}", highlight=False)
                    console.print(f"  curl --data-binary @image.png {path}", highlight=False)
            console.print("Ctrl-C ends it")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            console.print("ending ...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
