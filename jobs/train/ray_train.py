"""Run the workers of a training under Ray Train."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.causes import find_cause
from jobs.data.index import Index
from jobs.room import await_room
from jobs.train.board import Board, BoardWatcher, News, Report, follow
from jobs.train.borders import Notice, Place, Status, StoppedError, Watcher
from jobs.train.config import TrainConfig, with_absolute_paths
from jobs.train.freed_memory import tunables
from jobs.train.history import EpochRecord
from jobs.train.memory import explained_shortage
from jobs.train.worker import prepare_network, run_worker
from jobs.train.workers_config import READING, WorkersConfig
from models.errors import SightlineError
from models.storage import open_store

logger = logging.getLogger(__name__)

# How long a worker waits for the others: at a step, and for their whole share of the features. That
# a worker died shows at once; this is for one that hangs.
STEP_TIMEOUT_S = 1800
FEATURES_TIMEOUT_S = 24 * 3600
SECONDS_BETWEEN_DRAIN_LOOKS = 2.0
BOARD_TIMEOUT_S = 60.0
SECONDS_TO_END = 60.0  # for workers that were asked to


def train_with_ray(config: TrainConfig, index: Index, run_id: str, watcher: Watcher) -> None:
    """Start the configured workers, show `watcher` how they get on, and wait until they are done.

    Raises `ConfigError` if the cluster has no room for them and for a task that reads images, nor
    gets it in time, and whatever a worker raised.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    _await_workers(config.workers, watcher)
    # Here, where no lost node takes it away.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()
    trainer = _make_trainer(config, ray.put(index), run_id, board)
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)

    # Beside the main thread, which shows the bar and takes signals.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    try:
        follow(_looking(board), lambda notice: board.ask.remote(notice), thread.is_alive, watcher)
    except BaseException:
        thread.join(SECONDS_TO_END)  # the workers were asked to end, and hold CPUs until they do
        raise
    if failures:  # Ray Train wraps in several classes, by where it failed
        cause = find_cause(failures[0])
        with explained_shortage(config):
            raise cause or failures[0] from failures[0]


def _await_workers(workers: WorkersConfig, watcher: Watcher) -> None:
    import ray

    if ray.get_runtime_context().get_actor_id() is not None:
        return  # a trial of a sweep, which has seen to it

    def look() -> None:
        notice = watcher.notice()
        if notice is not None and notice.ends:
            raise StoppedError(f"stopped before its workers began ({notice.reason})")

    gpus = ", or set workers.use_gpu: false" if workers.use_gpu else ""
    await_room(
        [workers.bundle] * workers.least + [READING],
        workers.wait_seconds,
        "One CPU is for the tasks that read images for the workers. Lower workers.num_workers or "
        f"workers.cpus_per_worker, or add nodes{gpus}",
        look,
    )


def _looking(board: Any) -> Callable[[], News]:
    """Return what looks at the board. On a busy machine an answer may be late; it is waited for
    again, since the board tells everything once.
    """
    import ray

    waiting: list[Any] = []

    def look() -> News:
        if not waiting:
            waiting.append(board.look.remote())
        try:
            news: News = ray.get(waiting[0], timeout=BOARD_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            return News()
        except ray.exceptions.RayActorError as error:
            raise StoppedError(
                f"the actor that tells how the workers get on has died ({error}); they end, too"
            ) from error
        waiting.clear()
        return news

    return look


def _make_trainer(config: TrainConfig, index: Any, run_id: str, board: Any) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = config.workers
    return TorchTrainer(
        _worker_main,
        train_loop_config={
            # Ray Train changes the working directory of its workers
            "config": with_absolute_paths(config, Path.cwd()).model_dump(mode="json"),
            "index": index,
            "run_id": run_id,
            "board": board,
        },
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker=workers.bundle,
            elastic_resize_monitor_interval_s=workers.resize_seconds,
        ),
        run_config=RunConfig(
            name=f"{run_id}-ray",
            storage_path=open_store(config.runs).uri,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            worker_runtime_env=None if workers.use_gpu else {"env_vars": tunables()},
        ),
        torch_config=TorchConfig(
            timeout_s=FEATURES_TIMEOUT_S if config.network.freeze == "backbone" else STEP_TIMEOUT_S
        ),
    )


def _worker_main(payload: dict[str, Any]) -> None:
    import ray
    from ray import train as ray_train
    from ray.train.torch import get_device

    board = payload["board"]
    if ray.get(board.failure.remote()) is not None:
        return  # it would come again with every attempt that Ray Train makes
    context = ray_train.get_context()
    with _failing_for_good(board, is_alone=context.get_world_size() == 1):
        config = TrainConfig.model_validate(payload["config"])
        index: Index = ray.get(payload["index"])
        place = Place(get_device(), context.get_world_rank(), context.get_world_size())
        network = prepare_network(config, len(index.classes))
        drains = _Drains()
        watcher = BoardWatcher(_reporter(board), drains.look) if place.is_first else Watcher()
        run_worker(config, index, payload["run_id"], network, place, watcher)


def _reporter(board: Any) -> Report:
    import ray

    def report(
        status: Status | None, records: list[EpochRecord], *, is_stopping: bool
    ) -> Notice | None:
        try:
            told = board.report.remote(status, records, is_stopping=is_stopping)
            notice: Notice | None = ray.get(told, timeout=BOARD_TIMEOUT_S)
        except ray.exceptions.RayActorError:
            return Notice("the process that started it is gone", ends=True)
        except ray.exceptions.RayError as error:  # a busy machine; the next report comes soon
            logger.warning("cannot report how the run goes: %s", error)
            return None
        return notice

    return report


@contextmanager
def _failing_for_good(board: Any, *, is_alone: bool) -> Iterator[None]:
    """Keep on the board what was raised on purpose, for whoever started the workers. Ray Train is
    told only where there are others, who wait for this one: it then ends them, and tries again.
    """
    import ray

    try:
        yield
    except SightlineError as error:
        ray.get(board.fail.remote(find_cause(error) or error))
        if not is_alone:
            raise


class _Drains:
    """Looks for nodes of this run that are about to be taken away. Ray Train tells the same to all
    workers, and waits until all have asked: so each has a thread that asks.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        threading.Thread(target=self._work, name="drains", daemon=True).start()

    def look(self) -> str | None:
        """Return what is known."""
        return self._reason

    def _work(self) -> None:
        from ray import train as ray_train

        never = threading.Event()
        while self._reason is None:
            never.wait(SECONDS_BETWEEN_DRAIN_LOOKS)
            try:
                info = ray_train.get_preemption_info()
            except Exception:  # the group comes to its end
                return
            if info is not None:
                nodes = ", ".join(node[:8] for node in info.preempted_node_ids)
                self._reason = f"Ray takes a node of this run away ({nodes})"
