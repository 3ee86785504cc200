"""Label names that may be one label, that are no class, or that say which way up a part lies.

Pure: works on names alone. Four ways two names can be one, the surest first: the same but for case,
width and spaces at the ends (training refuses those); the same to the eye (punctuation, accents,
letters of another alphabet); synonyms, by a list that users extend; one or two letters apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import combinations, groupby

import yaml
from rapidfuzz.distance import DamerauLevenshtein

from jobs.data.audit.findings import Finding
from jobs.data.transforms import AugmentConfig
from jobs.yaml12 import Loader
from models.errors import ConfigError
from models.labels import fold
from models.storage import read_uri

Synonyms = tuple[frozenset[str], ...]

# Letters of other alphabets that look like Latin ones, and digits that look like letters.
LOOK_LIKE = str.maketrans(
    "авеікмнорстухѕјԁɡαβεηικνορτυχ",
    "abeikmhopctyxsjdgabenikvoptux",
)
UNCLEAR = frozenset(
    [
        "not sure",
        "unsure",
        "unclear",
        "uncertain",
        "unknown",
        "undefined",
        "undecided",
        "maybe",
        "other",
        "others",
        "misc",
        "miscellaneous",
        "various",
        "rest",
        "skip",
        "ignore",
        "todo",
        "tbd",
        "to do",
        "to be defined",
        "na",
        "n a",
        "null",
        "unlabeled",
        "unlabelled",
        "no label",
        "dont know",
        "do not know",
        "unassigned",
        "unsorted",
        "unbekannt",
        "sonstiges",
    ]
)
NEGATIONS = ("un", "non", "in", "im", "not", "no", "dis", "mis", "ir")
LEAST_LETTERS = 4  # of names whose spelling is compared: "cat" and "car" are two words
MOST_NAMES = 2000  # of which every two are compared: two million pairs
LONG = 8  # letters from which on two may differ


@dataclass(frozen=True)
class Orientation:
    """Words of labels that say how a part lies, and the augmentations that make them untrue."""

    words: frozenset[str]
    destroyed_by: frozenset[str]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split("|"))


FLIPS = _words("horizontal_flip|vertical_flip")
TURNS = _words("right_angles|rotate_degrees")
# Each line is one question that labels answer; two answers, or one word that leaves no doubt.
ORIENTATIONS = (
    Orientation(_words("left|right|leftward|rightward|links|rechts"), FLIPS | TURNS),
    Orientation(_words("up|down|upward|downward|oben|unten"), _words("vertical_flip") | TURNS),
    Orientation(_words("horizontal|vertical|landscape|portrait"), TURNS),
    Orientation(_words("clockwise|counterclockwise|anticlockwise|cw|ccw"), FLIPS),
    Orientation(_words("0deg|90deg|180deg|270deg|rot0|rot90|rot180|rot270"), FLIPS | TURNS),
)
CERTAIN = Orientation(
    _words(
        "upright|tilted|fallen|toppled|lying|upside down|upsidedown|flipped|mirrored|rotated|"
        "inverted|slanted|skewed|crooked|askew|facing left|facing right|left side|right side"
    ),
    FLIPS | TURNS,
)


def check_names(names: Sequence[str], synonyms: Synonyms) -> Iterator[Finding]:
    """Yield the pairs of names that may be one label, each with the surest reason, and the names
    that are no class.
    """
    for one, other in _pairs(sorted(names)):
        if fold(one) == fold(other):
            yield Finding("same_name", f"{one!r} and {other!r}: the same to training", label=one)
        elif reason := _why_similar(one, other, synonyms):
            yield Finding("similar_name", f"{one!r} and {other!r}: {reason}", label=one)
    for name in sorted(names):
        if not plain(name) or plain(name) in UNCLEAR:
            yield Finding("unclear_label", f"{name!r} is no class to learn", label=name)


def check_orientation(names: Sequence[str], augment: AugmentConfig) -> Iterator[Finding]:
    """Yield what flips and turns would do to labels that say how a part lies."""
    on = {name for name in FLIPS | TURNS if getattr(augment, name)}
    for labels, destroyed_by in _oriented(names):
        shown = ", ".join(map(repr, labels))
        if destroying := sorted(on & destroyed_by):
            yield Finding(
                "augmented_orientation",
                f"{shown}: {', '.join(f'augment.{name}' for name in destroying)} makes one of "
                "another; turn it off",
            )
        else:
            yield Finding(
                "orientation",
                f"{shown}: keep off {', '.join(f'augment.{n}' for n in sorted(destroyed_by))}",
            )


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the pairs to compare: of very many names those only that are the same to the eye."""
    if len(names) <= MOST_NAMES:
        yield from combinations(names, 2)
        return
    for _, same in groupby(sorted(names, key=plain), key=plain):
        yield from combinations(same, 2)


@lru_cache(maxsize=65_536)
def plain(name: str) -> str:
    """Return a name without all that is hard to see: case, width, accents, punctuation, other
    alphabets.
    """
    separate = unicodedata.normalize("NFKD", fold(name))
    letters = "".join(letter for letter in separate if not unicodedata.combining(letter))
    words = re.sub(r"[\W_]+", " ", letters.translate(LOOK_LIKE).replace("'", ""))
    return " ".join(words.split())


def load_synonyms(uri: str | None = None) -> Synonyms:
    """Return the lists that come with Sightline and those of a file. Raises `ConfigError`."""
    own = (files("jobs.data.audit") / "synonyms.yaml").read_bytes()
    found = _parse_synonyms("synonyms.yaml", own)
    return found + (_parse_synonyms(uri, read_uri(uri)) if uri else ())


def _parse_synonyms(where: str, data: bytes) -> Synonyms:
    try:
        lists = yaml.load(data.decode("utf-8-sig"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"audit.synonyms {where} is not YAML: {first}") from error
    is_fitting = isinstance(lists, list) and all(isinstance(one, list) for one in lists)
    if not is_fitting:
        raise ConfigError(
            f"audit.synonyms {where}: expected a list of lists of names, as - [ok, good, pass]"
        )
    return tuple(frozenset(plain(str(name)) for name in one) for one in lists)


def _why_similar(one: str, other: str, synonyms: Synonyms) -> str | None:
    left, right = plain(one), plain(other)
    if left == right or left.replace(" ", "") == right.replace(" ", ""):
        return "the same to the eye"
    if any(left in group and right in group for group in synonyms):
        return "they often mean the same"
    return "one is nearly spelt as the other" if _nearly_spelt(left, right) else None


def _nearly_spelt(left: str, right: str) -> bool:
    short, long = sorted((left, right), key=len)
    if len(short) < LEAST_LETTERS or _numbered(left, right) or _negated(short, long):
        return False
    is_substitution = len(short) == len(long) and sorted(short) != sorted(long)
    if is_substitution and len(short) < LONG:
        return False  # "shirt" and "skirt" are two words; "scratch" and "scrtch" are one
    edits = DamerauLevenshtein.distance(left, right)
    return edits <= (2 if len(short) >= LONG else 1)


def _numbered(left: str, right: str) -> bool:
    """Say whether two names differ in a number or a single letter that stands by itself, as
    "type a" and "type b", "m10" and "m12".
    """
    return _without_numbers(left) == _without_numbers(right)


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "0", re.sub(r"\b[a-z]\b", "0", name))


def _negated(short: str, long: str) -> bool:
    return any(long.replace(" ", "") == prefix + short.replace(" ", "") for prefix in NEGATIONS)


def _oriented(names: Sequence[str]) -> Iterator[tuple[list[str], frozenset[str]]]:
    """Yield the labels that say how a part lies, with the augmentations that destroy them."""
    said = {name: f" {plain(name)} " for name in sorted(names)}
    certain = [name for name in said if _says(said[name], CERTAIN)]
    if certain:
        yield certain, CERTAIN.destroyed_by
    for each in ORIENTATIONS:
        labels = [name for name in said if _says(said[name], each) and name not in certain]
        if len(labels) > 1:
            yield labels, each.destroyed_by


def _says(text: str, orientation: Orientation) -> bool:
    return any(f" {word} " in text for word in orientation.words)
