"""How well vectors find their own: each image asks for its nearest among all others of a set.

Recall@k says how often one of the k nearest is of the same class. mAP@R looks at the R nearest,
where R is how many others of its class there are, and counts the right ones by how early they come
(Musgrave et al. 2020, "A Metric Learning Reality Check", arXiv 2003.08505, section 3.2): it is 1
only where all of them come first, so it still tells models apart whose recall@1 is near 1.

Similarities are computed for a block of asking images at a time; nothing of N x N is in memory.

Shape legend: N images, D numbers in a vector, B asking images of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 22  # similarities in memory at once: 16 MB, and a few times that while they are ranked
MAX_QUERIES = 20_000  # images that ask; shares are known to a third of a percent by then
Figures = dict[str, float]


@dataclass(frozen=True)
class Retrieval:
    """Figures over the images that ask, 0 to 1. An image that is alone in its class cannot ask."""

    num_images: int
    num_queries: int
    recall_at_1: float
    recall_at_5: float
    map_at_r: float

    def flat(self) -> Figures:
        """Return the figures by name, as they go into a manifest and a history."""
        return {
            "recall_at_1": self.recall_at_1,
            "recall_at_5": self.recall_at_5,
            "map_at_r": self.map_at_r,
            "num_images": float(self.num_images),
        }


def retrieve(vectors: Tensor, labels: Tensor, *, rank: int = 0, world: int = 1) -> Retrieval | None:
    """Return the figures of unit vectors (N, D) with labels (N,), or None where no two images are
    of one class.

    Of more than `MAX_QUERIES` images, that many ask, at even distances, all of the others. Where
    torch has connected several workers (`world`), each has all vectors and asks for its part.
    """
    counts = torch.bincount(labels) if len(labels) else labels
    asking = torch.nonzero(counts[labels] > 1).view(-1)
    if len(asking) > MAX_QUERIES:
        asking = asking[torch.linspace(0, len(asking) - 1, MAX_QUERIES).long()]
    sums = torch.zeros(3, dtype=torch.float64, device=vectors.device)
    # Those of large classes together: how far a block is ranked follows from its largest class.
    mine = asking[rank::world]
    mine = mine[torch.argsort(counts[labels[mine]], stable=True)]
    size = max(1, BLOCK // max(1, len(labels)))
    for start in range(0, len(mine), size):
        sums += _block(vectors, labels, counts, mine[start : start + size])
    if world > 1:
        torch.distributed.all_reduce(sums)
    if not len(asking):
        return None
    found = (sums / len(asking)).tolist()
    return Retrieval(len(labels), len(asking), *found)


def _block(vectors: Tensor, labels: Tensor, counts: Tensor, rows: Tensor) -> Tensor:
    """Return the sums of the three figures (3,) over some images (B,) that ask."""
    alike = vectors[rows] @ vectors.T
    alike[torch.arange(len(rows), device=rows.device), rows] = float("-inf")
    wanted = counts[labels[rows]] - 1  # R of each
    depth = min(len(labels) - 1, max(5, int(wanted.max())))
    nearest = alike.topk(depth, dim=1).indices
    hits = labels[nearest] == labels[rows].view(-1, 1)
    ranks = torch.arange(1, depth + 1, device=rows.device)
    precision = hits.cumsum(dim=1) / ranks
    counted = precision * (hits & (ranks <= wanted.view(-1, 1)))
    return torch.stack(
        [
            hits[:, :1].any(dim=1).double().sum(),
            hits[:, :5].any(dim=1).double().sum(),
            (counted.double().sum(dim=1) / wanted).sum(),
        ]
    )


def retrieve_shared(
    parts: Iterable[tuple[Tensor, Tensor]],
    size: int,
    device: torch.device,
    *,
    rank: int = 0,
    world: int = 1,
) -> Figures | None:
    """Return the figures of all workers' vectors (n, `size`) and labels (n,), or None where no two
    images are of one class. Every worker has to ask.
    """
    pairs = [(vectors.float().cpu(), labels.cpu()) for vectors, labels in parts]
    mine = (
        torch.cat([torch.zeros(0, size), *(vectors for vectors, _ in pairs)]),
        torch.cat([torch.zeros(0, dtype=torch.int64), *(labels for _, labels in pairs)]),
    )
    gathered = [mine] * world
    if world > 1:
        torch.distributed.all_gather_object(gathered, mine)
    found = retrieve(
        torch.cat([vectors for vectors, _ in gathered]).to(device),
        torch.cat([labels for _, labels in gathered]).to(device),
        rank=rank,
        world=world,
    )
    return None if found is None else found.flat()
