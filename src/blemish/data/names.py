"""What people mean by the names of their folders, and by words in the label column of a table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

Meaning = Literal["good", "bad", "mask", "split", "images", "unclear", ""]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


GOOD_NAMES = _set(
    "good goods okay ok oks normal normals pass passed passes healthy intact clean perfect accept accepted accepts "
    "undamaged unbroken faultless flawless conforming io gut gute guten fehlerfrei gesund nodefect nodefects "
    "defectfree nondefect nondefective notdefective withoutdefect withoutdefects noanomaly noanomalies anomalyfree "
    "nonanomalous nofinding nofindings nofault faultfree notbroken notbad ohnedefekt ohnefehler "
    "gutteil gutteile correct bueno buenos buena buenas bon bons bonne bonnes buono buoni buona buone bom bons "
    "conforme conformes 良品 合格 正常 良好"
)
BAD_NAMES = _set(
    "bad bads ng ngs nok noks ko notok nogood notgood nio defect defects defective defectives anomaly anomalies "
    "anomalous abnormal abnormals abnormality abnormalities fault faults faulty broken damage damages damaged fail "
    "fails failed failure failures reject rejects rejected scrap flawed diseased disease unhealthy sick outlier "
    "outliers nonconforming schlecht schlechte schlechten defekt defekte fehler fehlerhaft ausschuss kaputt "
    "krank schlechtteil schlechtteile ausschussteil ausschussteile incorrect malo malos mala malas mauvais mauvaise "
    "mauvaises defaut defauts défaut défauts nonconforme nonconformes noconforme noconformes difettoso difettosi "
    "difetto difetti defecto defectos defectuoso defectuosos ruim ruins 不良 不良品 不合格 异常 異常 缺陷 欠陥"
)
_KINDS = _set(
    "scratch scratches scratched crack cracks cracked dent dents dented contamination contaminations corrosion rust "
    "tumor tumors tumour tumours lesion lesions kratzer riss risse delle dellen"
)
SURE_MASKS = frozenset({"groundtruth", "groundtruths"})  # of MVTec AD: nothing else is called so
LABEL_MASKS = frozenset({"label", "labels"})  # a label may be what is defective
MASK_NAMES = _set(
    "mask masks gt gts segmentation segmentations seg segs annotation annotations annot annots anno annos "
    "maske masken masque masques máscara máscaras mascara mascaras maschera maschere"
)
_ALL_MASKS = MASK_NAMES | SURE_MASKS | LABEL_MASKS
_SPLITS = frozenset(
    {"train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev"}
)
# Tests call either of them the good ones: a positive finding, a positive example.
_UNCLEAR = _set("yes no positive positives negative negatives pos neg")
_IMAGES = _set(
    "image images img imgs picture pictures pic pics photo photos rgb data input inputs raw original originals "
    "jpegimages bild bilder foto fotos"
)
# Words that say what files are, not what they show.
_FILLERS = _IMAGES | _set(
    "dir dirs folder folders dataset datasets set sets sample samples part parts piece pieces product products "
    "example examples file files png jpg jpeg bmp tif tiff class classes teil teile"
)
# Folders side by side of which these words are the only difference are parts of one collection.
_SERIES = _set(
    "monday tuesday wednesday thursday friday saturday sunday mon tue wed thu fri sat sun montag dienstag mittwoch "
    "donnerstag freitag samstag sonntag january february march april may june july august september october november "
    "december jan feb mar apr jun jul aug sep oct nov dec morning noon evening night day early late left right top "
    "bottom front back upper lower middle center centre north south east west camera cam line shift batch lot series "
    "station machine week month year am pm side view inside outside inner outer first second third old new horizontal "
    "vertical wide tele januar februar märz mai juni juli oktober dezember früh frueh spät spaet nacht tag schicht "
    "frühschicht fruehschicht spätschicht spaetschicht nachtschicht tagschicht links rechts oben unten mitte vorne "
    "hinten vorn innen außen aussen seite ansicht vorderseite rückseite rueckseite oberseite unterseite kamera linie "
    "los charge serie woche monat jahr alt neu"
)
# Variants of a part, and how it is lit: beside each other they are one collection too, but only where the names say
# nothing else, as small_smear and large_smear are kinds of defects.
_VARIANTS = _set(
    "red green blue yellow orange brown grey gray black white silver small medium large light lighting led on off "
    "bright dark color colour rot grün gruen blau gelb braun grau schwarz weiß weiss silber klein mittel groß gross "
    "licht an aus hell dunkel farbe"
)
_NEGATIONS = _set("no not non un without free ohne kein keine frei")

_MEANINGS: tuple[tuple[Meaning, frozenset[str]], ...] = (
    ("good", GOOD_NAMES),
    ("bad", BAD_NAMES),
    ("mask", _ALL_MASKS),
    ("split", _SPLITS),
    ("unclear", _UNCLEAR),
)


@lru_cache(4096)  # asked of every picture for each folder above it
def meaning(name: str) -> Meaning:
    """What the name of a folder says of its pictures; "" = it is a name of the user's own.

    Upper and lower case, punctuation, numbers and words such as "images" or "dir" make no
    difference. "images" says that pictures are in it, and nothing else. "unclear" are names by
    which some mean the good ones, some the others.

    Example:
        >>> [meaning(name) for name in ("OK", "abnormal_dir", "Ground Truth", "NG_masks", "images", "scratch")]
        ['good', 'bad', 'mask', 'mask', 'images', '']
    """
    if (owner := mask_owner(name)) is not None and (not owner or meaning(owner) in ("good", "bad")):
        return "mask"
    if compact(name) in _IMAGES:
        return "images"
    if re.fullmatch(r"(pos|neg|dev)[\W_]*\d+", name.lower()):
        return ""  # a position or a device, more often than a positive or a split
    found = {word: said for said, words in _MEANINGS for word in words}
    telling = _telling(name)
    readings = (
        _words(name),
        telling,
        [word for word in telling if word not in _SPLITS],
    )  # test_good
    return next((found[word] for words in readings if (word := "".join(words)) in found), "")


def may_be_good(name: str) -> bool:
    """Whether a name of the user's own speaks of good ones, and not of their absence: good_rotated."""
    words = set(_words(name))
    return not meaning(name) and bool(words & {"good", "ok", "normal"}) and not words & _NEGATIONS


@lru_cache(4096)
def mask_owner(name: str) -> str | None:
    """What else the name of a folder of masks says: "ng" for NG_mask, "" for masks; None where it
    speaks of none.

    A label is a mask only where the name says nothing else: missing_label is a defect.

    Example:
        >>> mask_owner("scratch-masks"), mask_owner("GT"), mask_owner("missing_label"), mask_owner("scratch")
        ('scratch', '', None, None)
    """
    words = _telling(name)
    if "".join(words) in _ALL_MASKS:
        return ""
    joined = re.sub("ground_truths?", "groundtruth", "_".join(words)).split("_")
    others = [word for word in joined if word not in MASK_NAMES | SURE_MASKS]
    return "".join(others) if len(others) < len(joined) else None


def is_label(name: str) -> bool:
    """Whether the name of a folder of masks is one of a kind of defect, too."""
    return "".join(_telling(name)) in LABEL_MASKS


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
    return (
        bool(words & (BAD_NAMES | _KINDS)) or mask_owner(name) is not None
    ) and not words & _NEGATIONS


def is_series(names: Iterable[str]) -> bool:
    """Whether folders of these names, side by side, may be parts of one collection: cam1 and cam2,
    days, dates.

    Example:
        >>> is_series(["2024-05-01", "2024-05-02"]), is_series(["monday", "friday"]), is_series(["scratch", "dent"])
        (True, True, False)
    """
    names = list(names)
    if all(set(_words(name)) <= _SERIES | _VARIANTS | _FILLERS for name in names):
        return True
    kinds = set()
    for name in names:
        # One letter is a number, too, and two are part of one: LineA, SN-12AB7.
        shortest = 3 if re.search(r"\d", name) else 2
        telling = (word for word in _telling(name) if len(word) >= shortest)
        kinds.add("".join(word for word in telling if word not in _SERIES))
    return len(kinds) < 2


def is_binary(names: Iterable[str]) -> bool:
    """Whether folders side by side are called 0 and 1, as the classes good and bad are, whichever is which.

    Example:
        >>> is_binary(["0", "1"]), is_binary(["class_0", "class_1"]), is_binary(["1", "2"]), is_binary(["cam0", "cam1"])
        (True, True, False, False)
    """
    names = list(names)
    return {re.sub(r"\D", "", name) for name in names} == {"0", "1"} and not any(
        set(_words(name)) - {"class", "label", "klasse"} for name in names
    )


def file_says_bad(stem: str) -> bool:
    """Whether the name of a file speaks of defects: a word of it, between underscores and the like, and no negation.

    Example:
        >>> [file_says_bad(stem) for stem in ("000_NG", "scratch-12", "000", "SN12NG7", "no_defect_3")]
        [True, True, False, False, False]
    """
    words = set(re.split(r"[\W_]+", stem.lower()))
    return bool(words & (BAD_NAMES | _KINDS | {"mask", "masks"})) and not words & _NEGATIONS


def _words(name: str) -> list[str]:
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[\W_\d]+", split.lower()) if word]


def _telling(name: str) -> list[str]:
    return [word for word in _words(name) if word not in _FILLERS]
