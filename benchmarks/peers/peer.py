"""One peer in one mode: a server that is installed, started and stopped here.

Nothing counts before its answers agree with the network's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.common import ending_by_exception
from benchmarks.environments import (
    EnvironmentFailure,
    PackageEnvironment,
    make_environment,
    pinned_here,
)
from benchmarks.fixtures import ROOT, STATE
from benchmarks.peers.reference import PeerFailure, Reference, compare, open_reference
from benchmarks.peers.table import SHARED, UNPINNED, PeerEntry, find_peer
from benchmarks.server import Server, ask
from cluster.environment import MARK, free_port, usable_cores
from cluster.processes import end_marked

ENVIRONMENTS = STATE / "peers"
SECONDS_TO_START = 180
SECONDS_TO_ANSWER = 30.0
POLL_SECONDS = 0.05
NUM_PORTS = 5
# Answers that waiting does not change: it does not understand the request.
HOPELESS = (405, 415, 422)
TOLERANCE = {"same": 0.01, "own": 0.02}  # torch computes in another order than OpenVINO
LOG_LINES = 40  # Triton says why it ends some twenty lines before it has ended
WARM_UP = (16, 2.0)  # connections, seconds


class Peer(Server):
    """A serving library in its own environment. `start` before anything else, `stop` at last."""

    def __init__(
        self, name: str, mode: str, bundle: str, images: Path, reference: Reference
    ) -> None:
        self.mode = mode
        self.entry: PeerEntry = find_peer(name)
        self.versions: dict[str, str] = {}
        form = self.entry.form(mode)
        super().__init__(name, [form(self.entry.path, file) for file in sorted(images.iterdir())])
        self.seconds_between = self.entry.seconds_between
        self._bundle = str(Path(bundle).absolute()) if "://" not in bundle else bundle
        self._reference = reference
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make its environment, start it, wait until it answers, and compare its answers.

        Raises `PeerFailure` with the reason if any of that fails; then nothing of it runs.
        """
        for program, remedy in self.entry.programs.items():
            if shutil.which(program) is None:
                raise PeerFailure(f"{program} is not installed: {remedy}")
        environment = peer_environment(self.name)
        self.versions = environment.versions
        try:
            # Python compiles what it imports for the first time, which would count as start-up.
            warmed = environment.folder / f"started-{self.mode}"
            if not warmed.exists():
                self._launch(environment)
                self.stop()
                warmed.touch()
            try:
                self._launch(environment)
            except PeerFailure:
                # One of four starts of PyTriton 0.7 failed in one of its instances, by itself.
                self.stop()
                self._launch(environment)
            self._check()
            self.learn_idle()
            self.warm_per_second = self.load(*WARM_UP).per_second
        except (PeerFailure, OSError, httpx.HTTPError, RuntimeError) as error:
            reason = f"{error}{self._log_tail()}"
            self.stop()
            raise PeerFailure(reason) from error

    def stop(self) -> None:
        """End every process that it started and remove what it wrote."""
        end_marked(self.mark)
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _launch(self, environment: PackageEnvironment) -> None:
        ports = [free_port() for _ in range(NUM_PORTS)]
        self.url = f"http://127.0.0.1:{ports[0]}"
        # Short, since some keep Unix sockets in it, whose paths hold 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="slp-"))
        command = [
            *(str(environment.python), "-m", f"benchmarks.peers.{self.entry.module}"),
            *("--bundle", self._bundle, "--mode", self.mode),
            *("--precision", self._reference.precision, "--cores", str(usable_cores())),
            *("--folder", str(self._folder), "--ports", *map(str, ports)),
        ]
        variables = {
            **{k: v for k, v in self._environment.items() if not k.startswith("PYTHON")},
            "PYTHONPATH": str(ROOT),
            "PATH": f"{environment.python.parent}{os.pathsep}{os.environ['PATH']}",
            MARK: self.mark,
        }
        started = time.perf_counter()
        with (self._folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=self._folder,
                start_new_session=True,
            )
        self._wait_until_answering(started + SECONDS_TO_START)
        self.start_up_seconds = time.perf_counter() - started

    def _wait_until_answering(self, deadline: float) -> None:
        assert self._process is not None
        last = "nothing listened on its port"
        with httpx.Client(base_url=self.url, timeout=SECONDS_TO_ANSWER) as client:
            is_ready = self.entry.ready_path is None
            while time.perf_counter() < deadline:
                if self._process.poll() is not None:
                    raise PeerFailure(f"it ended with status {self._process.returncode}")
                try:
                    if not is_ready and self.entry.ready_path is not None:
                        answer = client.get(self.entry.ready_path)
                        is_ready = answer.status_code == 200
                    if is_ready:
                        answer = ask(client, self.requests[0])
                        if answer.status_code == 200:
                            return
                        if answer.status_code in HOPELESS:
                            raise PeerFailure(
                                f"it answered {answer.status_code}: {answer.text[:200]}"
                            )
                    last = f"it answered {answer.status_code}: {answer.text[:200]}"
                except httpx.TransportError:
                    pass
                time.sleep(POLL_SECONDS)
        raise PeerFailure(f"it was not ready after {SECONDS_TO_START} s; {last}")

    def _check(self) -> None:
        """Compare answers with the reference: the label too, unless the network is undecided."""
        tolerance = TOLERANCE[self.mode]
        form = self.entry.form(self.mode)
        with httpx.Client(base_url=self.url, timeout=SECONDS_TO_ANSWER) as client:
            rows = self._reference.probabilities[self.mode]
            for file, row in zip(self._reference.images, rows, strict=True):
                answer = ask(client, form(self.entry.path, file))
                if answer.status_code != 200:
                    raise PeerFailure(f"{file.name}: {answer.status_code}: {answer.text[:200]}")
                compare(self.entry.read(answer.content), row, tolerance, file.name)

    def _log_tail(self) -> str:
        if self._folder is None:
            return ""
        with contextlib.suppress(OSError):
            lines = (self._folder / "log.txt").read_text(errors="replace").splitlines()
            return "\n  " + "\n  ".join(line[:300] for line in lines[-LOG_LINES:])
        return ""


def peer_environment(name: str, folder: Path = ENVIRONMENTS) -> PackageEnvironment:
    """Return the environment of a peer, made or used again. Raises `PeerFailure`."""
    entry = find_peer(name)
    shared = [package for package in SHARED if package not in entry.not_pinned]
    requirements = [
        entry.package,
        *entry.requirements,
        *pinned_here(shared),
        *UNPINNED,
    ]
    try:
        return make_environment(folder / name, requirements, entry.python)
    except EnvironmentFailure as error:
        raise PeerFailure(f"its environment cannot be made: {error}") from error


@contextmanager
def serving_peer(
    name: str, mode: str, bundle: str, images: Path, reference: Reference | None = None
) -> Iterator[Peer]:
    """Yield a peer that is started and has answered rightly; it is stopped afterwards.

    Raises `PeerFailure` with the reason.
    """
    peer = Peer(name, mode, bundle, images, reference or open_reference(bundle, images))
    with ending_by_exception():
        try:
            peer.start()
            yield peer
        finally:
            peer.stop()
