"""What was measured so far, one JSON line per step, so that a run that was killed goes on where it
was.

A step is known by a tuple of words and numbers; its value is an object of figures. The first line
of the file says what is measured: with other settings, on another machine or after a change of the
code, the file is begun anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Key = tuple[str | int | float, ...]
Figures = Mapping[str, Any]


class Steps:
    """The steps of one run, on disk as soon as they are known."""

    def __init__(self, path: Path, setting: Mapping[str, Any], *, is_fresh: bool = False) -> None:
        self._path = path
        self._found: dict[Key, Figures] = {}
        self.on_step: Callable[[], None] = lambda: None
        if not is_fresh:
            self._read(setting)
        self.num_resumed = len(self._found)
        if not self._found:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(setting) + "\n")

    def __contains__(self, key: Key) -> bool:
        return key in self._found

    def __getitem__(self, key: Key) -> Figures:
        return self._found[key]

    def __len__(self) -> int:
        return len(self._found)

    def add(self, key: Key, figures: Figures) -> None:
        """Keep a step for good."""
        self._found[key] = figures
        with self._path.open("a") as file:
            file.write(json.dumps([key, figures]) + "\n")
        self.on_step()

    def below(self, *start: str | int | float) -> Iterator[tuple[Key, Figures]]:
        """Yield the steps whose key begins so, with the rest of the key."""
        for key, figures in self._found.items():
            if key[: len(start)] == start:
                yield key[len(start) :], figures

    def series(self, figure: str, *start: str | int | float) -> list[float]:
        """Return one figure of the steps whose key begins so, in the order of measurement; steps
        without it are left out.
        """
        return [float(found[figure]) for _, found in self.below(*start) if figure in found]

    def finish(self) -> None:
        """Let the next run begin anew."""
        self._path.replace(self._path.with_suffix(".done.jsonl"))

    def _read(self, setting: Mapping[str, Any]) -> None:
        try:
            first, *lines = self._path.read_text().splitlines()
            if json.loads(first) != json.loads(json.dumps(setting)):
                return
            for line in lines:
                key, figures = json.loads(line)
                self._found[tuple(key)] = figures
        except FileNotFoundError:
            return
        except ValueError:  # the line at which the run was killed
            kept = [json.dumps([key, figures]) for key, figures in self._found.items()]
            self._path.write_text("\n".join([json.dumps(setting), *kept]) + "\n")
