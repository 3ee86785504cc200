"""From a YAML file and `a.b=value` overrides to a typed, validated config.

It knows no setting of its own: the pydantic model passed in says what there is. The value of an
override is YAML too, so `a=1e-3` is a number, `a=[1,2]` a list, and `a=` is null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from rapidfuzz import fuzz

from jobs.yaml12 import Loader, setting_lines
from models.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

COMMAND_LINE = "the command line"
MIN_SIMILARITY = 60  # per cent; below it a suggestion confuses more than it helps


def load_config(
    model: type[Model],
    path: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    written: str = COMMAND_LINE,
) -> Model:
    """Read the file, if any, apply the overrides in their order, and validate. `written` is where
    the overrides stand, for messages.

    Raises `ConfigError` that lists every mistake with the place it was made at, the setting's
    dotted path and its value.
    """
    origins: dict[str, str] = {}
    values = {} if path is None else _read_yaml(Path(path), origins)
    return _validate(model, values, overrides, origins, str(path or COMMAND_LINE), written)


def load_section(
    model: type[Model], path: str | Path | None, section: str, overrides: Sequence[str] = ()
) -> Model:
    """Take one section of the file, or nothing without one, and the overrides, whose names begin
    below the section. Raises `ConfigError` as `load_config` does.
    """
    origins: dict[str, str] = {}
    values: Any = {}
    if path is not None:
        values = _read_yaml(Path(path), origins).get(section) or {}
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path}: expected settings below {section}, got a {type(values).__name__}"
            )
        origins = {
            name.removeprefix(f"{section}."): place
            for name, place in origins.items()
            if name.startswith(f"{section}.")
        }
    return _validate(model, values, overrides, origins, str(path or COMMAND_LINE))


def quoted(text: str) -> str:
    """Return a text as a value of an override that stands for it as it is, whatever is in it.

    Not as JSON: there a character beyond the first 65,536 is two escapes, which YAML takes for two
    characters.
    """
    plain = (each.isascii() and each.isprintable() and each not in '"\\' for each in text)
    escaped = zip(text, plain, strict=True)
    return '"' + "".join(e if is_plain else f"\\U{ord(e):08x}" for e, is_plain in escaped) + '"'


def _validate(
    model: type[Model],
    values: dict[str, Any],
    overrides: Sequence[str],
    origins: dict[str, str],
    file: str,
    written: str = COMMAND_LINE,
) -> Model:
    for override in overrides:
        _apply(values, override, origins, written)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        mistakes = [_explain(model, values, details, origins, file) for details in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(mistakes))) from None


def _read_yaml(path: Path, origins: dict[str, str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist{_siblings(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=Loader)
        values = yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: invalid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: invalid YAML: {str(error).splitlines()[0]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected settings (`name: value`) at the top level, got a "
            f"{type(values).__name__}"
        )
    origins.update((dotted, f"{path}:{line}") for dotted, line in setting_lines(node))
    return values


def _apply(values: dict[str, Any], override: str, origins: dict[str, str], written: str) -> None:
    """Set one `a.b=value`, making the sections on the way."""
    dotted, equals, text = override.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(
            f"override {override!r} on {written} is malformed; expected name=value or "
            "section.name=value, for example optimiser.lr=1e-3"
        )
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r} on {written}: the value {text!r} is not valid YAML; quote "
            "it if it has special characters"
        ) from error
    section = values
    for depth, name in enumerate(names[:-1], start=1):
        below = section.get(name)
        if below is None:
            below = section[name] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"override {override!r} on {written}: {'.'.join(names[:depth])} is "
                f"{below!r}, which has no settings below it"
            )
        section = below
    section[names[-1]] = value
    path = ".".join(names)
    for known in [known for known in origins if known.startswith(f"{path}.")]:
        del origins[known]
    origins[path] = written


def _explain(
    model: type[BaseModel],
    values: dict[str, Any],
    details: ErrorDetails,
    origins: dict[str, str],
    file: str,
) -> str:
    location = _real_location(values, details)
    dotted = ".".join(location)
    place = _origin(origins, location, file)
    given = repr(details["input"])
    if details["type"] == "extra_forbidden":
        return f"{place}: unknown setting {dotted} = {given}{_suggest(model, location)}"
    if details["type"] == "missing":
        return f"{place}: the setting {dotted} is missing and has no default"
    message = details["msg"].removeprefix("Value error, ")
    if isinstance(details["input"], dict) and details["type"] == "value_error":
        return f"{place}: {dotted + ': ' if dotted else ''}{message}"  # it names what it is about
    return f"{place}: {dotted or 'the config'} = {given}: {message}"


def _real_location(values: Any, details: ErrorDetails) -> list[str]:
    """Return the location without the names of union members that pydantic puts in between."""
    location: list[str] = []
    current = values
    for part in details["loc"]:
        is_key = isinstance(current, dict) and part in current
        is_position = isinstance(current, list) and isinstance(part, int) and part < len(current)
        if is_key or is_position:
            current = current[part]
            location.append(str(part))
        elif details["type"] == "missing" and part == details["loc"][-1]:
            location.append(str(part))
    return location


def _origin(origins: dict[str, str], location: Sequence[str], file: str) -> str:
    """Return where the setting, or the nearest section around it, was written."""
    for end in range(len(location), 0, -1):
        origin = origins.get(".".join(location[:end]))
        if origin is not None:
            return origin
    return file


def _suggest(model: type[BaseModel], location: Sequence[str]) -> str:
    *section, name = location
    wanted = ".".join(location)
    known = list(_known(model))
    scored = [(_similarity(name, section, candidate), candidate) for candidate in known]
    score, best = max(scored, default=(0.0, ""))
    if score >= MIN_SIMILARITY and best != wanted:
        return f"; did you mean {best}?"
    prefix = "".join(f"{part}." for part in section)
    siblings = [path for path in known if path.startswith(prefix)]
    here = sorted({path.removeprefix(prefix).split(".")[0] for path in siblings})
    return f"; {'.'.join(section) or 'the top level'} knows {', '.join(here)}" if here else ""


def _similarity(name: str, section: Sequence[str], candidate: str) -> float:
    *other_section, other_name = candidate.split(".")
    # A name that fits in the same section beats one that fits as well elsewhere.
    bonus = 5.0 if list(section) == other_section else 0.0
    return fuzz.ratio(name, other_name) + bonus


def _known(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all settings of a model and of the models inside it."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models_in(field.annotation):
            yield from _known(inner, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _siblings(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"; nor does the folder {folder}"
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    return f"; {folder} has {', '.join(names)}" if names else f"; {folder} has no YAML file"
