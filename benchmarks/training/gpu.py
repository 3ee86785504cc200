"""`python -m benchmarks.training.gpu`: our training step on one GPU, and the share of its peak.

Images are uint8 in the machine's memory, as batches are, and go to the device in each step; one
line with them there already shows what that costs. bfloat16, channels last, AdamW; with and without
torch.compile. Floating-point operations are counted by torch (forward and backward of one batch, a
multiplication and an addition are two). Needs no Ray.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import OUT, Report, library_versions, machine_facts, print_table, save_bars
from jobs.train.config import TrainConfig
from jobs.train.network import build_network
from jobs.train.objectives import build_objective
from jobs.train.optimisers import build_optimiser
from jobs.train.schedules import build_schedule
from jobs.train.steps import Autocast, train_step
from jobs.train.wrapping import check_compiler, set_training, wrap

# Dense bfloat16 with tensor cores, in 10^12 operations a second: NVIDIA's data sheets of H100 and
# H200 (SXM 989, PCIe 756, NVL 835), A100 (312), L40S (362), L4 (121), A10 (125).
PEAKS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}
NUM_CLASSES = 1_000
COLUMNS = ("step", "images/s", "range", "GFLOP/image", "of the peak", "memory GiB")


@dataclass(frozen=True)
class Work:
    """How much is run."""

    device: str
    batch_size: int
    side: int
    steps: int
    repetitions: int


class Stepper:
    """One network in training, ready to be timed."""

    def __init__(self, backbone: str, work: Work, *, is_compiled: bool) -> None:
        config = TrainConfig.model_validate(
            {
                "name": "benchmark",
                "data": {"uri": "."},
                "network": {"backbone": backbone, "weights": "none"},
                "preprocess": {"height": work.side, "width": work.side},
                "compile": is_compiled,
            }
        )
        check_compiler(is_compiled)
        torch.manual_seed(0)
        self.work = work
        device = torch.device(work.device)
        network = build_network(backbone, NUM_CLASSES).to(device)
        network.to(memory_format=torch.channels_last)
        self._optimiser = build_optimiser(network, config.optimiser)
        self._schedule = build_schedule(
            self._optimiser, config.optimiser, epochs=100, updates_per_epoch=1_000
        )
        self._objective = build_objective(config, [1.0] * NUM_CLASSES).to(device)
        self._autocast = Autocast(device.type, enabled=True)
        self._model: nn.Module = wrap(network, head_only=False, is_compiled=is_compiled, world=1)
        set_training(self._model, network, head_only=False)
        generator = torch.Generator().manual_seed(0)
        shape = (work.batch_size, work.side, work.side, 3)
        self.host_images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self._host_labels = torch.randint(0, NUM_CLASSES, (work.batch_size,), generator=generator)
        self.device_images = self.host_images.to(device)

    def step(self, images: torch.Tensor) -> None:
        """Train on one batch, wherever it is."""
        device = self.device_images.device
        train_step(
            self._model,
            images.to(device, non_blocking=True),
            self._host_labels.to(device, non_blocking=True),
            objective=self._objective,
            optimiser=self._optimiser,
            schedule=self._schedule,
            clip_norm=1.0,
            autocast=self._autocast,
        )

    def images_per_second(self, images: torch.Tensor) -> list[float]:
        """Return the speed of each repetition; the first steps are warm-up."""
        for _ in range(max(2, self.work.steps // 4)):
            self.step(images)
        found = []
        for _ in range(self.work.repetitions):
            self._wait()
            started = time.perf_counter()
            for _ in range(self.work.steps):
                self.step(images)
            self._wait()
            found.append(self.work.steps * len(images) / (time.perf_counter() - started))
        return found

    def _wait(self) -> None:
        if self.device_images.is_cuda:
            torch.cuda.synchronize()


def flops_per_image(backbone: str, side: int) -> float:
    """Return the floating-point operations of one image, forward and backward."""
    with torch.device("meta"):  # shapes are enough
        network = build_network(backbone, NUM_CLASSES).train()
        images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return float(counter.get_total_flops()) / len(images)


def peak_of(device_name: str) -> float | None:
    """Return operations a second at most, or None where the card is not in the table."""
    return next((peak * 1e12 for name, peak in PEAKS.items() if name in device_name), None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, save the plot, and end with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.gpu", description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "convnext_tiny"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--steps", type=int, default=40, help="of a repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cuda", help="cpu only to try the program")
    parser.add_argument("--no-compile", action="store_true")
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("torch finds no CUDA device on this machine", file=sys.stderr)
        return 1
    work = Work(given.device, given.batch_size, given.side, given.steps, given.repetitions)
    card = torch.cuda.get_device_name() if given.device.startswith("cuda") else given.device
    report = Report("training_gpu", machine=machine_facts(), versions=library_versions())
    report.machine["device"] = card
    rows: list[tuple[str, ...]] = []
    series: dict[str, list[float]] = {}
    for backbone in given.backbones:
        flops = flops_per_image(backbone, work.side)
        for is_compiled in (False,) if given.no_compile else (False, True):
            name = f"{backbone}{', compiled' if is_compiled else ''}"
            try:
                measured = _measure(backbone, work, is_compiled=is_compiled)
            except Exception as error:  # one network of several: the reason is in the report
                report.failures[name] = str(error)[-700:]
                continue
            for where, values in measured.items():
                full = f"{name}, {where}"
                series[full] = values
                rows.append(_row(full, values, flops, card, report))
    print_table(f"one training step on {card}, {work.batch_size} images", COLUMNS, rows)
    for name, reason in report.failures.items():
        print(f"{name}: {reason}")
    if series:
        print(f"plot: {save_bars('training-gpu', 'images per second', series)}")
    OUT.mkdir(exist_ok=True)
    (OUT / "training-gpu.json").write_text(report.line() + "\n")
    print(report.line())
    return 0 if series else 1


def _measure(backbone: str, work: Work, *, is_compiled: bool) -> dict[str, list[float]]:
    stepper = Stepper(backbone, work, is_compiled=is_compiled)
    try:
        return {
            "from memory": stepper.images_per_second(stepper.host_images),
            "on the device": stepper.images_per_second(stepper.device_images),
        }
    finally:
        del stepper
        gc.collect()


def _row(
    name: str, values: Sequence[float], flops: float, card: str, report: Report
) -> tuple[str, ...]:
    speed, peak = statistics.median(values), peak_of(card)
    key = name.replace(", ", "_").replace(" ", "_")
    report.figures[f"{key}_images_per_s"] = speed
    share = ""
    if peak is not None:
        report.ratios[f"{key}_of_peak"] = speed * flops / peak
        share = f"{speed * flops / peak:.1%}"
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return (
        name,
        f"{speed:,.1f}",
        f"{min(values):,.1f} to {max(values):,.1f}",
        f"{flops / 1e9:.2f}",
        share,
        f"{memory:.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())
