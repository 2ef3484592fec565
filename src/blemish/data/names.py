"""What people mean by the names of their folders, and by words in the label column of a table."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

Meaning = Literal["good", "bad", "mask", "split", "images", "unclear", ""]


_TEXT = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
_WORDS = {name: frozenset(words.split()) for name, words in tomllib.loads(_TEXT).items()}
SURE_MASKS = frozenset({"groundtruth", "groundtruths"})  # of MVTec AD: nothing else is called so
_LABEL_MASKS = frozenset({"label", "labels"})  # a label may be what is defective
_MASKS = _WORDS["masks"] | SURE_MASKS | _LABEL_MASKS
_BAD = _WORDS["bad"] | _WORDS["kinds"]
_FILLERS = _WORDS["fillers"] | _WORDS["images"]
_MEANINGS: dict[str, Meaning] = {
    **dict.fromkeys(_WORDS["good"], "good"),
    **dict.fromkeys(_WORDS["bad"], "bad"),
    **dict.fromkeys(_MASKS, "mask"),
    **dict.fromkeys(_WORDS["splits"], "split"),
    **dict.fromkeys(_WORDS["unclear"], "unclear"),
}


@lru_cache(4096)  # asked of every picture for each folder above it
def meaning(name: str) -> Meaning:
    """What the name of a folder says of its pictures; "" = it is a name of the user's own.

    Upper and lower case, punctuation, numbers and words such as "images" or "dir" make no
    difference. "images" says that pictures are in it, and nothing else. "unclear" are names by
    which some mean the good ones, some the others.

    Example:
        >>> [meaning(name) for name in ("OK", "abnormal_dir", "NG_masks", "images", "scratch")]
        ['good', 'bad', 'mask', 'images', '']
    """
    if (owner := mask_owner(name)) is not None and (not owner or meaning(owner) in ("good", "bad")):
        return "mask"
    if compact(name) in _WORDS["images"]:
        return "images"
    if re.fullmatch(r"(pos|neg|dev)[\W_]*\d+", name.lower()):
        return ""  # a position or a device, more often than a positive or a split
    telling = _telling(name)
    without_split = [word for word in telling if word not in _WORDS["splits"]]  # test_good
    for words in (_words(name), telling, without_split):
        if (word := "".join(words)) in _MEANINGS:
            return _MEANINGS[word]
    return ""


def may_be_good(name: str) -> bool:
    """Whether a name of the user's own speaks of good ones: good_rotated, and not no_good."""
    words = set(_words(name))
    return (
        not meaning(name)
        and bool(words & {"good", "ok", "normal"})
        and not words & _WORDS["negations"]
    )


@lru_cache(4096)
def mask_owner(name: str) -> str | None:
    """What else the name of a folder of masks says: "ng" for NG_mask, "" for masks; None where it
    speaks of none.

    A label is a mask only where the name says nothing else: missing_label is a defect.

    Example:
        >>> mask_owner("scratch-masks"), mask_owner("GT"), mask_owner("missing_label")
        ('scratch', '', None)
    """
    words = _telling(name)
    if "".join(words) in _MASKS:
        return ""
    joined = re.sub("ground_truths?", "groundtruth", "_".join(words)).split("_")
    others = [word for word in joined if word not in _WORDS["masks"] | SURE_MASKS]
    return "".join(others) if len(others) < len(joined) else None


def is_label(name: str) -> bool:
    """Whether the name of a folder of masks is one of a kind of defect, too."""
    return "".join(_telling(name)) in _LABEL_MASKS


def compact(name: str) -> str:
    """A name as names are compared: its letters and digits in lower case."""
    return re.sub(r"[\W_]+", "", name.lower())


def says_bad(name: str) -> bool:
    """Whether any word of a name speaks of defects or masks, and none of their absence.

    Example:
        >>> [says_bad(name) for name in ("test_bad", "ng2024", "scratch", "no_defects", "badge")]
        [True, True, True, False, False]
    """
    if (said := meaning(name)) in ("good", "bad"):
        return said == "bad"
    words = set(_words(name))
    return (bool(words & _BAD) or mask_owner(name) is not None) and not words & _WORDS["negations"]


def is_series(names: Iterable[str]) -> bool:
    """Whether folders of these names, side by side, may be parts of one collection: cam1 and cam2,
    days, dates.

    Example:
        >>> is_series(["2024-05-01", "2024-05-02"]), is_series(["scratch", "dent"])
        (True, False)
    """
    names = list(names)
    if all(set(_words(name)) <= _WORDS["series"] | _WORDS["variants"] | _FILLERS for name in names):
        return True
    kinds = set()
    for name in names:
        # One letter is a number, too, and two are part of one: LineA, SN-12AB7.
        shortest = 3 if re.search(r"\d", name) else 2
        telling = (word for word in _telling(name) if len(word) >= shortest)
        kinds.add("".join(word for word in telling if word not in _WORDS["series"]))
    return len(kinds) < 2


def is_binary(names: Iterable[str]) -> bool:
    """Whether folders side by side are called 0 and 1, as the classes good and bad are, whichever
    is which.

    Example:
        >>> is_binary(["0", "1"]), is_binary(["class_0", "class_1"]), is_binary(["cam0", "cam1"])
        (True, True, False)
    """
    names = list(names)
    return {re.sub(r"\D", "", name) for name in names} == {"0", "1"} and not any(
        set(_words(name)) - {"class", "label", "klasse"} for name in names
    )


def file_says_bad(stem: str) -> bool:
    """Whether the name of a file speaks of defects: a word of it, between underscores and the like,
    and no negation.

    Example:
        >>> [file_says_bad(stem) for stem in ("000_NG", "scratch-12", "000", "no_defect_3")]
        [True, True, False, False]
    """
    words = set(re.split(r"[\W_]+", stem.lower()))
    return bool(words & (_BAD | {"mask", "masks"})) and not words & _WORDS["negations"]


def _words(name: str) -> list[str]:
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[\W_\d]+", split.lower()) if word]


def _telling(name: str) -> list[str]:
    return [word for word in _words(name) if word not in _FILLERS]
