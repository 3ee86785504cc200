"""What is measured together: the servers that are loaded at the same time, and their windows.

- `same`: the ceiling, Sightline, and every peer with Sightline's model and decoder, all in turns.
- `own`: Sightline beside one peer at a time that is built as its documentation does it.
- `kinds`: one model of each kind, in turns, and other images than photos.

Each wave ends with fixed rates. A wave whose steps are all there starts nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.ceiling import Layout, layouts, open_crew
from benchmarks.common import variable_set
from benchmarks.cpu import cpu_seconds, per_image_ms
from benchmarks.crew import Crew
from benchmarks.load import Load
from benchmarks.peers.peer import serving_peer
from benchmarks.peers.reference import open_reference
from benchmarks.server import Server
from benchmarks.serving.calls import BATCH, CALLS, IN_BATCHES
from benchmarks.serving.labels import measure_labels
from benchmarks.serving.plan import NUM_FINALISTS, SHARES, Setting
from benchmarks.serving.rounds import FAILED, FAILURES, Contestant, is_whole, measure_rounds
from benchmarks.serving.sightline import Layout as Replicas
from benchmarks.serving.sightline import Sightline, serving_sightline
from benchmarks.serving.steps import Figures, Key, Steps
from benchmarks.variants import as_kind
from benchmarks.wire import Request
from cluster.environment import usable_cores
from models.bundle import Bundle, open_bundle
from models.kinds import KINDS
from serve_app.keys import ADMIN, new_key
from serve_app.keys import VARIABLE as KEYS

CEILING, SIGHTLINE = "ceiling", "Sightline"
SAME, OWN, KINDS_WAVE, SCREENING = "same", "own", "kinds", "screening"
LABELS = "labels"
RAW = "raw body"
GENERIC_CALLS = (RAW, "OIP binary", "16 images, multipart", "16 images, OIP binary")
QUICK_CALLS = (RAW, "16 images, multipart")
BATCH_CONNECTIONS = 4  # each with 16 images


class Waves:
    """All waves of one run."""

    def __init__(
        self, setting: Setting, steps: Steps, folders: Mapping[str, Path], store: Path
    ) -> None:
        self.setting = setting
        self.pace = setting.pace
        self.steps = steps
        self._folders = folders  # of images, by name; the first is what all are measured with
        self._store = store  # for bundles of other kinds
        self._kinds: dict[str, str] = {}  # the bundle as another kind: its URI
        self._reference = open_reference(setting.bundle, setting.images)

    @property
    def _calls(self) -> Sequence[str]:
        return GENERIC_CALLS if self.pace.is_whole else QUICK_CALLS

    def screen(self, environment: Mapping[str, str]) -> list[Layout]:
        """Run every layout of the ceiling once, briefly, and return the best ones."""
        speeds = {}
        for layout in layouts(usable_cores()):
            key = (SCREENING, layout.name)
            if key not in self.steps:
                crew = self._crew(layout, environment)
                per_second = crew.run(self.pace.screening_seconds)
                crew.close()
                self.steps.add(key, {"per_second": per_second})
            speeds[layout] = float(self.steps[key]["per_second"])
        return sorted(speeds, key=lambda layout: -speeds[layout])[:NUM_FINALISTS]

    def same(self, finalists: Sequence[Layout], environment: Mapping[str, str]) -> None:
        """Measure the ceiling, Sightline and all peers with the same model, in turns."""
        calls = self._calls
        peers = [name for name in self.setting.peers if (FAILED, SAME, name) not in self.steps]
        wanted = {
            CEILING: [layout.name for layout in finalists],
            SIGHTLINE: list(self._sightline_windows(None, {"": calls})),
            **{name: list(self._peer_windows(None, SAME)) for name in peers},
        }
        rated = [SIGHTLINE, *(peers if self.pace.is_whole else [])]
        if self._is_done(SAME, wanted, self.pace.repetitions, rated):
            return
        with ExitStack() as stack:
            server = stack.enter_context(self._sightline({"": self.setting.bundle}, SAME))
            server.pause()
            servers: dict[str, Server] = {SIGHTLINE: server}
            contestants = [self._ceiling(stack, finalists, environment)]
            windows = self._sightline_windows(server, {"": calls})
            contestants.append(Contestant(SIGHTLINE, windows, server.awake))
            for name in peers:
                try:
                    peer = self._started(stack, name, SAME)
                except FAILURES as error:
                    self.steps.add((FAILED, SAME, name), {"reason": str(error)})
                    continue
                servers[name] = peer
                contestants.append(Contestant(name, self._peer_windows(peer, SAME), peer.awake))
            measure_rounds(SAME, contestants, self.pace.repetitions, self.steps)
            self._weigh_and_rate(SAME, {name: servers[name] for name in rated if name in servers})
            for each in servers.values():
                each.resume()

    def own(self) -> None:
        """Measure Sightline beside each peer as its documentation builds it; before them, how soon
        a change of labels is in every answer of a second model, which idles afterwards.
        """
        windows = {name: list(self._peer_windows(None, OWN)) for name in self.setting.peers}
        is_done = all(self._is_done_own(name, of_one) for name, of_one in windows.items())
        if is_done and (LABELS,) in self.steps:
            return
        bundles = {"": self.setting.bundle, LABELS: self._as_kind("dynamic")}
        layouts = {LABELS: Replicas(replicas=2, threads=1)}
        key, row = new_key("benchmark", [ADMIN])
        with variable_set(KEYS, row), self._sightline(bundles, OWN, layouts) as server:
            if (LABELS,) not in self.steps:
                self._measure_labels(server, open_bundle(bundles[LABELS]), key)
            server.pause()
            for name in self.setting.peers:
                if self._is_done_own(name, windows[name]):
                    continue
                try:
                    with ExitStack() as stack:
                        peer = self._started(stack, name, OWN)
                        ours = self._window(server, server.requests, self.pace.connections[0])
                        contestants = [
                            Contestant(name, self._peer_windows(peer, OWN), peer.awake),
                            Contestant(beside(name), {RAW: ours}, server.awake),
                        ]
                        measure_rounds(OWN, contestants, self.pace.own_repetitions, self.steps)
                        if self.pace.is_whole:
                            self._weigh_and_rate(OWN, {name: peer})
                        peer.resume()
                except FAILURES as error:
                    self.steps.add((FAILED, OWN, name), {"reason": str(error)})
            server.resume()

    def kinds(self) -> None:
        """Measure a model of each kind, and the first one with other images."""
        calls = {"generic": (RAW,), "dynamic": (RAW,), "embedding": ("vectors",)}
        photos = list(self._folders)[1:]
        wanted = {
            SIGHTLINE: [
                *self._sightline_windows(None, calls),
                *(f"generic, {name}" for name in photos),
            ]
        }
        if is_whole(KINDS_WAVE, wanted, self.pace.repetitions, self.steps):
            return
        bundles = {
            kind: self.setting.bundle if kind == "generic" else self._as_kind(kind)
            for kind in KINDS
        }
        try:
            with self._sightline(bundles, KINDS_WAVE) as server:
                windows = dict(self._sightline_windows(server, calls))
                for name in photos:
                    requests = CALLS[RAW](server.paths["generic"], self._folders[name])
                    windows[f"generic, {name}"] = self._window(
                        server, requests, self.pace.connections[0]
                    )
                contestants = [Contestant(SIGHTLINE, windows)]
                measure_rounds(KINDS_WAVE, contestants, self.pace.repetitions, self.steps)
        except FAILURES as error:
            self.steps.add((FAILED, KINDS_WAVE, SIGHTLINE), {"reason": str(error)})

    def num_steps(self) -> int:
        """Return how many steps there will be in all, for the progress bar."""
        pace, peers = self.pace, len(self.setting.peers)
        num_calls = len(self._sightline_windows(None, {"": self._calls}))
        same = NUM_FINALISTS + num_calls + peers * len(pace.connections)
        own = peers * (1 + len(pace.own_connections))
        rates = len(SHARES) * pace.rate_repetitions
        total = len(layouts(usable_cores())) + pace.repetitions * same + pace.own_repetitions * own
        # Besides: the starts of both waves, Sightline's memory, the large photo, the labels.
        total += rates + 2 * (1 + peers) + 3
        if pace.is_whole:
            kinds = 2 + len(pace.connections) * 3 + len(self._folders) - 1
            total += 2 * peers * (1 + len(SHARES)) + pace.repetitions * kinds + 1
        return total

    def _as_kind(self, kind: str) -> str:
        if kind not in self._kinds:
            self._kinds[kind] = as_kind(self.setting.bundle, kind, self._store)
        return self._kinds[kind]

    def _measure_labels(self, server: Sightline, bundle: Bundle, key: str) -> None:
        path = server.paths[LABELS]
        (image, *_) = CALLS[RAW](path, self.setting.images)
        label = bundle.manifest.classes[0].id
        try:
            found = measure_labels(f"{server.url}{path}", image, label, key)
        except FAILURES as error:
            self.steps.add((FAILED, LABELS, SIGHTLINE), {"reason": str(error)})
        else:
            self.steps.add((LABELS,), found)

    def _crew(self, layout: Layout, environment: Mapping[str, str]) -> Crew:
        setting = self.setting
        return open_crew(layout, setting.bundle, setting.images, setting.precision, environment)

    def _ceiling(
        self, stack: ExitStack, finalists: Sequence[Layout], environment: Mapping[str, str]
    ) -> Contestant:
        def measured(crew: Crew) -> Callable[[], Figures]:
            def measure() -> Figures:
                per_second = crew.run(self.pace.ceiling_seconds)
                return {
                    "per_second": per_second,
                    "cpu_ms": crew.cpu_ms_per_image,
                    "others_share": crew.others_share,
                }

            return measure

        windows = {}
        for layout in finalists:
            crew = self._crew(layout, environment)
            stack.callback(crew.close)
            windows[layout.name] = measured(crew)
        return Contestant(CEILING, windows)

    @contextmanager
    def _sightline(
        self, bundles: Mapping[str, str], wave: str, layouts: Mapping[str, Replicas] | None = None
    ) -> Iterator[Sightline]:
        wanted = {**dict.fromkeys(bundles, self.setting.layout), **(layouts or {})}
        # That of the ceiling and the peers, which a replica would compare anew.
        same = {n: replace(each, precision=self.setting.precision) for n, each in wanted.items()}
        with serving_sightline(bundles, self.setting.images, same) as server:
            self._note_start(wave, server, {"replica_s": server.replica_ready_seconds()})
            yield server

    def _started(self, stack: ExitStack, name: str, mode: str) -> Server:
        setting = self.setting
        peer = stack.enter_context(
            serving_peer(name, mode, setting.bundle, setting.images, self._reference)
        )
        package = peer.entry.package
        self._note_start(mode, peer, {"version": peer.versions[package], "package": package})
        peer.pause()
        return peer

    def _note_start(self, wave: str, server: Server, more: Figures | None = None) -> None:
        key = ("start", wave, server.name)
        if key not in self.steps:
            self.steps.add(key, {"seconds": server.start_up_seconds, **(more or {})})

    def _sightline_windows(
        self, server: Sightline | None, calls: Mapping[str, Sequence[str]]
    ) -> dict[str, Callable[[], Figures]]:
        """Return what is measured of Sightline, by name: calls by model, and connections."""
        windows: dict[str, Callable[[], Figures]] = {}
        for model, of_one in calls.items():
            for call in of_one:
                name = f"{model}, {call}" if model else call
                requests = CALLS[call](server.paths[model], self.setting.images) if server else []
                if call in IN_BATCHES:
                    windows[name] = self._batches(server, requests)
                    continue
                for count in self.pace.connections:
                    windows[f"{name}, {count} connections"] = self._window(server, requests, count)
        return windows

    def _peer_windows(self, peer: Server | None, mode: str) -> dict[str, Callable[[], Figures]]:
        is_same = mode == SAME
        counts = self.pace.connections if is_same else self.pace.own_connections
        seconds = self.pace.load_seconds if is_same else self.pace.own_seconds

        def measured(count: int) -> Callable[[], Figures]:
            def measure() -> Figures:
                assert peer is not None
                if is_same:
                    return figures(peer.load(count, seconds))
                # To the last answer: of batches that take seconds, those under way at the end of a
                # fixed time would be a tenth of all.
                num_requests = max(2 * count, round(peer.warm_per_second * seconds))
                return figures(peer.count(count, num_requests, peer.requests))

            return measure

        return {f"{count} connections": measured(count) for count in counts}

    def _window(
        self, server: Sightline | None, requests: Sequence[Request], connections: int
    ) -> Callable[[], Figures]:
        def measure() -> Figures:
            assert server is not None
            before = cpu_seconds(server.mark)
            load = server.load(connections, self.pace.load_seconds, requests)
            spent = per_image_ms(before, cpu_seconds(server.mark), max(1, load.num_ok))
            return {**figures(load), "cpu_ms": sum(spent.values()), "cpu_ms_by_role": spent}

        return measure

    def _batches(
        self, server: Sightline | None, requests: Sequence[Request]
    ) -> Callable[[], Figures]:
        def measure() -> Figures:
            assert server is not None
            speed = max(self.steps.series("per_second", SAME, SIGHTLINE))
            num_requests = round(speed * self.pace.batch_seconds / BATCH)
            return figures(server.count(BATCH_CONNECTIONS, num_requests, requests), BATCH)

        return measure

    def _is_done(
        self,
        wave: str,
        windows: Mapping[str, Sequence[str]],
        repetitions: int,
        rated: Sequence[str],
    ) -> bool:
        return is_whole(wave, windows, repetitions, self.steps) and all(
            (FAILED, wave, name) in self.steps or key in self.steps
            for name in rated
            for key in self._rate_keys(wave, name)
        )

    def _is_done_own(self, name: str, windows: Sequence[str]) -> bool:
        if (FAILED, OWN, name) in self.steps:
            return True
        rated = [name] if self.pace.is_whole else []
        both = {name: windows, beside(name): [RAW]}
        return self._is_done(OWN, both, self.pace.own_repetitions, rated)

    def _rate_keys(self, wave: str, name: str) -> list[Key]:
        repetitions = self.pace.rate_repetitions if name == SIGHTLINE else 1
        return [
            ("rate", wave, name, share, repetition)
            for repetition in range(repetitions)
            for share in SHARES
        ]

    def _weigh_and_rate(self, wave: str, servers: Mapping[str, Server]) -> None:
        """Measure memory, and latency at shares of each server's own capacity."""
        for name, server in servers.items():
            keys = [key for key in self._rate_keys(wave, name) if key not in self.steps]
            if not keys or (FAILED, wave, name) in self.steps:
                continue
            try:
                with server.awake():
                    if ("memory", wave, name) not in self.steps:
                        self.steps.add(("memory", wave, name), {"mib": server.memory_mib()})
                    for key in keys:
                        rate = float(key[3]) * capacity(self.steps, wave, name)
                        found = server.rate(rate, self.pace.rate_seconds, self.pace.rate_warm_up)
                        self.steps.add(key, asdict(found))
            except FAILURES as error:
                self.steps.add((FAILED, wave, name), {"reason": str(error)})


def beside(peer: str) -> str:
    """Return the name of Sightline where it is measured in turns with one peer alone."""
    return f"{SIGHTLINE} beside {peer}"


def figures(load: Load, images: int = 1) -> Figures:
    """Return what a closed loop met, in images; latencies are of whole requests."""
    return {
        "per_second": load.per_second * images,
        "p50_ms": load.p50_ms,
        "p99_ms": load.p99_ms,
        "num_ok": load.num_ok,
        "num_429": load.num_429,
        "num_other": load.num_other,
    }


def capacity(steps: Steps, wave: str, name: str) -> float:
    """Return images per second: of the windows with single images, the best median. 0 without."""
    windows = {key[0] for key, _ in steps.below(wave, name)} - IN_BATCHES
    return max(
        (statistics.median(steps.series("per_second", wave, name, window)) for window in windows),
        default=0.0,
    )
