"""From a search space to trials: which settings each of them has.

Points are drawn by a scrambled Halton sequence, which covers a space more evenly than independent
draws do, most of all with few trials (Bousquet et al. 2017, arXiv 1706.03200). The first trials of
a longer sweep are those of a shorter one with the same seed, so that a sweep can be made longer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from jobs.config import load_config
from jobs.train.config import TrainConfig
from jobs.tune.config import TuneConfig
from models.errors import ConfigError

Settings = dict[str, Any]  # by dotted name; several with commas share a value

# What trials have in common, and why.
COMMON = {
    "name": "all trials are of one model",
    "kind": "all trials are of one model",
    "store": "one trial is published",
    "runs": "trials share the cache of features there",
    "run": "each trial is a run of its own",
    "data": "the images are read once, for all trials",
    "workers": "they say what each trial may take of the machine",
    "export": "it does not change what is learnt",
    "monitor": "trials are compared by it",
}
DRAWS_PER_TRIAL = 50


@dataclass(frozen=True)
class Trial:
    """One point of the space, counted from 1, and the training it stands for."""

    number: int
    settings: Settings
    config: TrainConfig


def check_base(training: TrainConfig, written: str) -> None:
    """Raise `ConfigError` for a training that cannot be searched."""
    if training.embedding is not None:
        raise ConfigError(
            f"{written}: kind: embedding cannot be searched yet, only the kinds that tell classes "
            "apart; compare a few runs of jobs.train by their recall_at_1"
        )


def check_space(config: TuneConfig, overrides: list[str], written: str) -> None:
    """Raise `ConfigError` for names that the training does not have, naming the nearest, for values
    that it does not take, and for settings that trials have in common. `overrides` are those of the
    base configuration; `written` is where the space stands.
    """
    if all(parameter.is_fixed for parameter in config.space.values()):
        raise ConfigError(
            f"{written}: space has nothing to try; give at least one setting several values, as "
            "space.optimiser.lr={loguniform: [1e-4, 1e-2]}"
        )
    seen: set[str] = set()
    for key, parameter in config.space.items():
        for name in names_of(key):
            _check_name(name, seen, written)
        for example in parameter.examples():
            given = [f"{name}={json.dumps(example)}" for name in names_of(key)]
            try:
                load_config(TrainConfig, config.base, [*overrides, *given], written=written)
            except ConfigError as error:
                # That two settings contradict each other may be true of this pair alone.
                if any(f" {name} = " in str(error) for name in names_of(key)):
                    raise ConfigError(f"space: {error}") from None


def _check_name(name: str, seen: set[str], written: str) -> None:
    if name in seen:
        raise ConfigError(f"{written}: space has {name} twice; give it once")
    seen.add(name)
    reason = COMMON.get(name.partition(".")[0])
    if reason is not None:
        raise ConfigError(
            f"{written}: space has {name}, but {reason}; set it for all of them with "
            f"train.{name}=..., and remove it from space"
        )


def names_of(key: str) -> list[str]:
    """Return the settings that one entry of the space is for."""
    return [name.strip() for name in key.split(",")]


def draw_trials(config: TuneConfig, base: TrainConfig) -> list[Trial]:
    """Return different trials, as many as are wanted, or as there are.

    Points whose settings contradict each other are passed over. Raises `ConfigError` when all are.
    """
    trials: list[Trial] = []
    seen: set[str] = set()
    refusal: ValidationError | None = None
    for settings in _points(config):
        digest = json.dumps(settings, sort_keys=True)
        if digest in seen:
            continue
        seen.add(digest)
        try:
            trials.append(Trial(len(trials) + 1, settings, with_settings(base, settings)))
        except ValidationError as error:
            refusal = error
        if len(trials) == config.trials:
            break
    if not trials:
        assert refusal is not None
        raise ConfigError(
            "every point of the space contradicts itself, for example: "
            f"{refusal.errors()[0]['msg']}"
        )
    return trials


def with_settings(base: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """Return the training with other settings. Raises pydantic's `ValidationError`."""
    values = base.model_dump(mode="json")
    for key, value in settings.items():
        for name in names_of(key):
            *path, last = name.split(".")
            section = values
            for part in path:
                section[part] = section.get(part) or {}
                section = section[part]
            section[last] = value
    return TrainConfig.model_validate(values)


def _points(config: TuneConfig) -> Iterator[Settings]:
    from scipy.stats import qmc  # here, because it takes a second to load

    free = [key for key, parameter in config.space.items() if not parameter.is_fixed]
    halton = qmc.Halton(len(free), scramble=True, rng=np.random.default_rng(config.seed))
    for _ in range(config.trials * DRAWS_PER_TRIAL):
        shares = dict(zip(free, halton.random(1)[0].tolist(), strict=True))
        yield {key: parameter.value(shares.get(key, 0)) for key, parameter in config.space.items()}
