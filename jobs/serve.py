"""`python -m jobs.serve [MODEL ...]`: keep models up on this machine until Ctrl-C, and leave
nothing behind.

Without a name it is the model that was published last. Each is served as `configs/serve/local.yaml`
says, at its newest version, or at the one that `caps@3` names; another serve file is served as it
is. Keys in `.sightline/keys` are taken up.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path

from cluster.session import SessionOptions, open_session
from jobs.command import run_command
from jobs.console import make_console, readable_errors, set_up_logging
from jobs.local_serving import (
    LOCAL_CONFIG,
    as_it_is,
    check_port,
    deployed,
    local_config,
    with_models,
)
from models.bundle import open_bundle
from models.kinds import find_kind

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
        config = as_it_is(config)
        check_port(config)
        console.print("starting Ray and the model ...")
        with (
            open_session(SessionOptions(dashboard=True, connect=False)) as session,
            deployed(config, session.dashboard_url, timeout_seconds=TIMEOUT_SECONDS) as url,
        ):
            for application in config["applications"]:
                if "bundle" in application["args"]:
                    bundle = application["args"]["bundle"]
                    calls = find_kind(open_bundle(bundle).manifest.kind).calls
                    path = f"{url}{application.get('route_prefix', '')}/{min(calls)}"
                    console.print(f"serving {bundle}", highlight=False)
                    console.print(f"  curl --data-binary @image.png {path}", highlight=False)
            console.print(f"a page to try them: {url}/   Ctrl-C ends it", highlight=False)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            console.print("ending ...")
    return 0


if __name__ == "__main__":
    run_command(main)
