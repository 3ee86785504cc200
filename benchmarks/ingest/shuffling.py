"""How well a pass is shuffled, in three numbers, each 1 or 0 for a uniform permutation.

Let a pass visit images by their position in storage, in batches of B.

- `correlation`: Spearman's between position in storage and place in the pass, 0 if uniform (its
  standard deviation then is 1/sqrt(n-1)). It sees drift over the whole pass, as of a small buffer.
- `blocks`: distinct blocks of B neighbours in storage per batch, over what simple random sampling
  without replacement is expected to give: sum over blocks of 1 - C(N-n, B)/C(N, B). It sees
  neighbours that stay together; 1/B (about) where batches are read as they lie.
- `design_effect`: Kish's. Were the set stored by classes in ten equal parts, the variance of a
  batch's class shares around those of the set, over that of simple random sampling. A batch of B is
  then worth B/effect independent images: what the noise of a gradient depends on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
PARTS = 10


@dataclass(frozen=True)
class Quality:
    """How well a pass is shuffled."""

    correlation: float
    blocks: float
    design_effect: float

    def figures(self) -> dict[str, float]:
        """Return the three numbers by name."""
        return asdict(self)


def quality(positions: Positions, total: int, batch_size: int) -> Quality:
    """Judge a pass, or the beginning of one, over `total` images by their positions in storage."""
    whole = len(positions) // batch_size * batch_size
    if whole < 2 * batch_size:
        raise ValueError(f"{len(positions)} images are too few to judge batches of {batch_size}")
    batches = positions[:whole].reshape(-1, batch_size)
    return Quality(
        correlation=_correlation(positions),
        blocks=_distinct_blocks(batches, batch_size) / expected_blocks(total, batch_size),
        design_effect=_design_effect(batches, total),
    )


def expected_blocks(total: int, batch_size: int) -> float:
    """Return how many blocks of `batch_size` neighbours a random batch is expected to touch."""
    full, rest = divmod(total, batch_size)
    sizes = [batch_size] * full + ([rest] if rest else [])
    return sum(1 - _chance_of_none(total, size, batch_size) for size in sizes)


def _chance_of_none(total: int, size: int, draws: int) -> float:
    left = np.arange(draws)
    return float(np.prod(np.clip(total - size - left, 0, None) / (total - left)))


def _correlation(positions: Positions) -> float:
    ranks = np.argsort(np.argsort(positions, kind="stable"), kind="stable")
    return float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])


def _distinct_blocks(batches: Positions, size: int) -> float:
    return float(np.mean([len(np.unique(batch // size)) for batch in batches]))


def _design_effect(batches: Positions, total: int) -> float:
    num_batches, size = batches.shape
    parts = batches * PARTS // total
    shares = np.stack([(parts == part).mean(axis=1) for part in range(PARTS)], axis=1)
    each = np.bincount(np.arange(total) * PARTS // total, minlength=PARTS) / total
    observed = float(((shares - each) ** 2).sum() / num_batches)
    simple = float((each * (1 - each)).sum() / size * (total - size) / (total - 1))
    return observed / simple
