"""Figures of retrieval, against a computation that is slow and plain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import jobs.train.retrieval
from jobs.train.retrieval import retrieve, retrieve_shared


def cloud(count: int, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return vectors and labels of classes of unequal size, the last of one image."""
    generator = torch.Generator().manual_seed(seed)
    chances = torch.arange(1, num_classes, dtype=torch.float64)
    labels = torch.multinomial(chances, count - 1, replacement=True, generator=generator)
    labels = torch.cat([labels, torch.tensor([num_classes - 1])])
    centres = torch.randn(num_classes, 5, generator=generator)
    noise = torch.randn(count, 5, generator=generator)
    return functional.normalize(centres[labels] + noise, dim=1), labels


def plain(vectors: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Compute recall@1, recall@5 and mAP@R image by image, as the paper defines them."""
    values, names = vectors.double().numpy(), labels.tolist()
    first, fifth, precise = [], [], []
    for i in range(len(names)):
        wanted = names.count(names[i]) - 1
        if wanted == 0:
            continue
        others = [j for j in range(len(names)) if j != i]
        others.sort(key=lambda j: -float(values[i] @ values[j]))
        right = [names[j] == names[i] for j in others]
        first.append(right[0])
        fifth.append(any(right[:5]))
        found = [sum(right[: k + 1]) / (k + 1) for k in range(wanted) if right[k]]
        precise.append(sum(found) / wanted)
    return float(np.mean(first)), float(np.mean(fifth)), float(np.mean(precise))


@pytest.mark.parametrize("block", [1 << 22, 700, 1])
def test_figures_are_those_of_the_plain_computation_whatever_the_block(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.train.retrieval, "BLOCK", block)
    vectors, labels = cloud(90, 6, seed=3)
    found = retrieve(vectors, labels)
    assert found is not None
    assert (found.num_images, found.num_queries) == (90, 89)  # one is alone in its class
    figures = (found.recall_at_1, found.recall_at_5, found.map_at_r)
    assert figures == pytest.approx(plain(vectors, labels), abs=1e-6)
    assert 0 < found.map_at_r < found.recall_at_1 < found.recall_at_5 < 1


def test_no_matrix_of_all_pairs_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.train.retrieval, "BLOCK", 1000)
    vectors, labels = cloud(500, 4, seed=0)
    seen: list[int] = []
    block = jobs.train.retrieval._block

    def watched(of: Tensor, names: Tensor, counts: Tensor, rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return block(of, names, counts, rows)

    monkeypatch.setattr(jobs.train.retrieval, "_block", watched)
    retrieve(vectors, labels)
    assert max(seen) * len(labels) <= 1000
    assert sum(seen) == 499


def test_of_many_images_some_ask_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = cloud(400, 4, seed=1)
    whole = retrieve(vectors, labels)
    monkeypatch.setattr(jobs.train.retrieval, "MAX_QUERIES", 200)
    some = retrieve(vectors, labels)
    assert whole is not None
    assert some is not None
    assert (some.num_images, some.num_queries) == (400, 200)
    assert some.map_at_r == pytest.approx(whole.map_at_r, abs=0.1)


def test_classes_that_lie_apart_are_found_wholly() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    found = retrieve(torch.eye(3)[labels], labels)
    assert found is not None
    assert (found.recall_at_1, found.recall_at_5, found.map_at_r) == (1, 1, 1)


@pytest.mark.parametrize("labels", [[], [0], [0, 1, 2]])
def test_without_a_pair_there_are_no_figures(labels: list[int]) -> None:
    names = torch.tensor(labels, dtype=torch.int64)
    assert retrieve(torch.eye(3)[names], names) is None
    cpu = torch.device("cpu")
    assert retrieve_shared([(torch.eye(3)[names], names)], 3, cpu) is None
