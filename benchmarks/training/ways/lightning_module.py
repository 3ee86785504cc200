"""Lightning with its automatic optimisation, fed by PyTorch's DataLoader as above, with everything
off that it would write or print.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from benchmarks.training.ways.loops import Photos, load, loss_of, make_network, make_optimiser

if TYPE_CHECKING:
    from benchmarks.training.trainer import Request


def run(request: Request) -> dict[str, Any]:
    """Train."""
    import lightning

    photos = Photos(request)
    speeds: list[float] = []

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_network(request, len(photos.classes))
            self.started, self.count = 0.0, 0

        def on_train_epoch_start(self) -> None:
            self.started, self.count = time.perf_counter(), 0

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            self.count += len(batch[1])
            return loss_of(self.network, *batch)

        def on_train_epoch_end(self) -> None:
            speeds.append(self.count / (time.perf_counter() - self.started))

        def configure_optimizers(self) -> Optimizer:
            return make_optimiser(self.network)

    trainer = lightning.Trainer(
        max_epochs=request.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), load(photos, request.batch_size))
    return {"epochs": speeds}
