"""The section `workers` of a training: how many processes take its steps, and what each holds."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

READING = {"CPU": 1.0}  # what Ray reserves for a task that reads images


class WorkersConfig(BaseModel):
    """Where the steps run. 0 workers: in this process. Otherwise Ray Train starts that many.

    [least, most]: as many as the cluster has room for, more or fewer as nodes come and go. The
    learning rate is meant for the most; fewer take a smaller step in proportion, since they see
    fewer images in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_workers: int | tuple[int, int] = 0
    use_gpu: bool = False
    cpus_per_worker: float = Field(1.0, gt=0)
    max_failures: int = Field(2, ge=0)  # a dead worker restarts the group from the last checkpoint
    resize_seconds: float = Field(60.0, gt=0)  # between looks at whether more workers fit
    wait_seconds: float = Field(600.0, ge=0)  # for nodes, where a cluster has too few at the start
    # Each worker keeps a part of the weights, gradients, moments and averages only, for a network
    # that does not fit: slower, and the same results. A group of one has nobody to split with.
    shard: bool = False

    @property
    def least(self) -> int:
        """The fewest workers that train."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most(self) -> int:
        """The most workers that train; 0: none, but this process."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def bundle(self) -> dict[str, float]:
        """What each of them reserves, by Ray's names; without workers, what this process would."""
        return {"CPU": self.cpus_per_worker} | ({"GPU": 1.0} if self.use_gpu else {})

    @field_validator("num_workers")
    @classmethod
    def _is_number_or_range(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(value, int):
            if value < 0:
                raise ValueError(f"must not be negative, got {value}")
        elif not 1 <= value[0] <= value[1]:
            raise ValueError(f"[least, most] must be 1 <= least <= most, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _has_somebody_to_split_with(self) -> WorkersConfig:
        if self.shard and self.most < 2:
            raise ValueError(
                "workers.shard: true splits the network over workers, and workers.num_workers is "
                f"{self.num_workers}; set it to 2 or more, or set workers.shard: false"
            )
        return self
