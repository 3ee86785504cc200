"""`python -m jobs.labels`: look at the label map of a model, and change it while the model serves.

    python -m jobs.labels show caps
    python -m jobs.labels merge caps scratched dented --into defective --reason "one bin"
    python -m jobs.labels rollback caps 3

Every change is a new revision in the label store; replicas take it up by themselves. `--dry-run`
shows what would change and stores nothing. Tables go to standard error; standard output is one JSON
line.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from jobs.console import make_console, print_result, readable_errors, set_up_logging
from jobs.label_tables import print_changes, print_history, print_map, print_what_if
from jobs.local_serving import LABEL_STORE
from jobs.yaml12 import Loader
from models.bundle import Bundle, newest_version, open_bundle
from models.errors import ConfigError, LabelMapError
from models.kinds import find_kind
from models.label_diff import differences, notes
from models.label_edits import parse_edits
from models.label_log import LabelLog, open_log
from models.label_map import Reading, parse_map
from models.label_revision import Author, Change, Revision
from models.validation_outputs import load_outputs
from models.what_if import compare

MODEL_STORE = ".sightline/models"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = _parser().parse_args(arguments)
    console = make_console()
    set_up_logging()
    with readable_errors(console):
        log = _open(given)
        line = given.run(log, given, console)
    print_result(line)
    return 0


def show(log: LabelLog, given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Print the labels of a revision, the newest unless told."""
    revision = _revision(log, given.revision, console)
    print_map(revision, console)
    label_map = revision.map.model_dump(mode="json")
    line = {"model": log.model, "revision": revision.number, "map": label_map}
    # What a change of this is made on: a newer one may be none that this model can use.
    return line if given.revision is not None else {**line, "base": log.head()}


def history(log: LabelLog, given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Print all revisions, newest first."""
    entries = list(log.history())
    print_history(log.model, entries, console)
    sound = [number for number, entry in entries if not isinstance(entry, LabelMapError)]
    return {"model": log.model, "revisions": sound}


def diff(log: LabelLog, given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Print what differs between two revisions: of the newest and the one before, unless told."""
    after = _revision(log, given.to, console)
    before = log.read(max(0, after.number - 1) if given.since is None else given.since)
    print_changes(before.map, after.map, console)
    return {
        "model": log.model,
        "from": before.number,
        "to": after.number,
        "changes": [vars(change) for change in differences(before.map, after.map)],
    }


def write(log: LabelLog, given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Make the change of a command and store it, unless it is a dry run."""
    author = Author(given.author, given.reason, given.request_key, given.effective_at)
    change = given.make(given)
    if given.dry_run:
        made = log.draft(change, author, given.base)
    else:
        log.check_store()
        made = log.write(change, author, given.base)
    before, _ = log.newest_sound(made.parent)
    print_changes(before.map, made.map, console)
    for note in notes(before, made):
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
    if given.dry_run:
        _tell_what_if(log, given, before, made, console)
        console.print("a dry run: nothing was stored")
        return {"model": log.model, "revision": made.parent, "dry_run": True}
    console.print(f"revision {made.number} is stored in {log.store.uri}", highlight=False)
    return {"model": log.model, "revision": made.number}


def _tell_what_if(
    log: LabelLog, given: argparse.Namespace, before: Revision, after: Revision, console: Console
) -> None:
    """Print what a change would do to the validation images, where the bundle keeps outputs."""
    outputs = load_outputs(_newest_bundle(given))
    if outputs is None:
        console.print("the bundle keeps no validation outputs to try the change on")
        return
    readings = (Reading(each.map, log.classes, each.number) for each in (before, after))
    what_if = compare(outputs, *readings)
    if what_if is not None:
        print_what_if(what_if, console)


def _edits(given: argparse.Namespace) -> Change:
    values = {name: getattr(given, name) for name in EDITS[given.op]}
    return parse_edits([{"op": given.op, **values}])


def _publish(given: argparse.Namespace) -> Change:
    try:
        value = yaml.load(given.file.read_text(), Loader)  # a safe one
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{given.file} cannot be read: {error}") from error
    return parse_map(value, str(given.file)) if isinstance(value, Mapping) else parse_edits(value)


def _rollback(given: argparse.Namespace) -> Change:
    number: int = given.revision
    return number


# The arguments that make up each edit.
EDITS: Mapping[str, tuple[str, ...]] = {
    "rename": ("label", "name", "keep_alias"),
    "merge": ("labels", "into"),
    "split-back": ("label",),
    "hide": ("label",),
    "restore": ("label",),
    "alias": ("label", "add", "remove"),
    "set-threshold": ("label", "threshold"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def reader(
        name: str, run: Callable[..., dict[str, Any]], about: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("model", help="name of the model")
        command.add_argument("--model-store", default=MODEL_STORE, help=f"default {MODEL_STORE}")
        command.add_argument("--label-store", default=LABEL_STORE, help=f"default {LABEL_STORE}")
        command.set_defaults(run=run)
        return command

    def writer(name: str, about: str) -> argparse.ArgumentParser:
        command = reader(name, write, about)
        command.add_argument("--dry-run", action="store_true", help="show, and store nothing")
        command.add_argument(
            "--base", type=int, help="the revision you looked at; refused if stale"
        )
        command.add_argument("--author", default=_user(), help="who (default: the user)")
        command.add_argument("--reason", default="", help="why")
        command.add_argument("--request-key", default="", help="the same for a write sent again")
        command.add_argument(
            "--effective-at", type=_time, help="when replicas switch, as 2026-12-01T06:00+01:00"
        )
        command.set_defaults(make=_edits, op=name)
        return command

    shown = reader("show", show, "print the labels")
    shown.add_argument("--revision", type=int)
    reader("history", history, "print all revisions")
    compared = reader("diff", diff, "print what differs between two revisions")
    compared.add_argument("--since", type=int, help="default: the one before")
    compared.add_argument("--to", type=int, help="default: the newest")

    published = writer("publish", "apply a YAML or JSON file: a list of edits, or a whole map")
    published.add_argument("file", type=Path)
    published.set_defaults(make=_publish)
    rolled = writer("rollback", "write the map of an older revision as the newest")
    rolled.add_argument("revision", type=int)
    rolled.set_defaults(make=_rollback)

    renamed = writer("rename", "give a label another name")
    renamed.add_argument("label")
    renamed.add_argument("name")
    renamed.add_argument("--keep-alias", action="store_true", help="the old name stays as an alias")
    merged = writer("merge", "let one label gather what others gathered")
    merged.add_argument("labels", nargs="+", metavar="label")
    merged.add_argument("--into", required=True)
    for name, about in (
        ("split-back", "give a merged label back what it had gathered"),
        ("hide", "answer unknown where a label wins"),
        ("restore", "show a hidden label again"),
    ):
        writer(name, about).add_argument("label")
    aliased = writer("alias", "add other names of a label, or remove them")
    aliased.add_argument("label")
    aliased.add_argument("--add", action="append", default=[], metavar="NAME")
    aliased.add_argument("--remove", action="append", default=[], metavar="NAME")
    limited = writer("set-threshold", "set the probability below which the answer is unknown")
    limited.add_argument("threshold", type=_threshold, help="0 to 1, or `none`")
    limited.add_argument("--label", help="default: all labels that have none of their own")
    return parser


def _newest_bundle(given: argparse.Namespace) -> Bundle:
    version = newest_version(given.model_store, given.model)
    return open_bundle(f"{given.model_store.rstrip('/')}/{given.model}/{version}")


def _open(given: argparse.Namespace) -> LabelLog:
    manifest = _newest_bundle(given).manifest
    if not find_kind(manifest.kind).has_label_map:
        raise ConfigError(
            f"model {manifest.label} is of kind {manifest.kind!r}, which has no label map; train "
            "it with kind=dynamic"
        )
    return open_log(given.label_store, manifest.name, manifest.classes)


def _revision(log: LabelLog, number: int | None, console: Console) -> Revision:
    if number is not None:
        return log.read(number)
    revision, problem = log.newest_sound(log.head())
    if problem:
        console.print(f"[red]broken:[/] {escape(problem)}", highlight=False)
    return revision


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return ""


def _threshold(text: str) -> float | None:
    return None if text == "none" else float(text)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text} has no time zone, as in {text}+00:00")
    return time


if __name__ == "__main__":
    sys.exit(main())
