from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from parts import part, write_picture

from blemish.anomalies import SIMULATORS, Synthetic
from blemish.backbones import build
from blemish.bench.choosing import defects
from blemish.bench.choosing.candidates import Candidate
from blemish.bench.choosing.defects import FAINTEST, KINDS, made_of, spoilt, windows
from blemish.bench.choosing.pictures import Division, divided, halves
from blemish.bench.choosing.plan import Plan, fingerprint
from blemish.data.pictures import Pictures
from blemish.errors import DataError
from blemish.images import decode, decode_mask
from blemish.types import Sample, silent


def samples(count: int, *, category: str = "", defect: str = "") -> list[Sample]:
    return [
        Sample(path=Path(f"{category}{defect}/{at:03d}.png"), category=category, defect=defect)
        for at in range(count)
    ]


def pictures(*given: Sample) -> Pictures:
    return Pictures([one.path for one in given], given)


def paths(division: Division) -> Counter[Path]:
    return Counter(one.path for part in vars(division).values() for one in part)


def test_no_picture_has_two_purposes() -> None:
    good, bad = samples(100), samples(20, defect="dent")
    found = divided(pictures(*good), bad)
    assert max(paths(found).values()) == 1
    assert sum(paths(found).values()) == 120
    assert (len(found.good), len(found.checking_good)) == (30, 15)
    assert (len(found.defects), len(found.checking_defects)) == (10, 10)
    assert divided(pictures(*good[::-1]), bad[::-1]) == found  # however they are listed
    assert divided(pictures(*good), bad, seed=1) != found


def test_few_defects_all_choose() -> None:
    """A half of fewer than ten would be fewer than the five that can choose."""
    for count, parts in ((5, (5, 0)), (9, (9, 0)), (10, (5, 5)), (11, (6, 5))):
        found = divided(pictures(*samples(30)), samples(count, defect="dent"))
        assert (len(found.defects), len(found.checking_defects)) == parts
        assert bool(found.checking_good) == bool(parts[1])


def test_many_pictures_are_drawn_from() -> None:
    found = divided(pictures(*samples(2000)))
    assert (len(found.learned), len(found.good)) == (200, 60)


def test_every_category_is_in_every_part() -> None:
    good = pictures(*samples(60, category="a"), *samples(20, category="b"))
    found = divided(good, samples(10, category="a", defect="dent"))
    for part_ in (found.learned, found.good, found.checking_good):
        assert {one.category for one in part_} == {"a", "b"}


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="at least 12 good pictures"):
        divided(pictures(*samples(11)))


def test_halves_have_each_kind() -> None:
    kinds = [*samples(4, defect="dent"), *samples(3, defect="hole"), *samples(1, defect="stain")]
    one, other = halves(kinds, 0)
    assert Counter(each.defect for each in one) == {"dent": 2, "hole": 2} or {
        each.defect for each in one
    } == {"dent", "hole", "stain"}
    assert {*one} | {*other} == {*kinds}
    assert abs(len(one) - len(other)) <= 1
    for kind in ("dent", "hole"):
        counts = [sum(each.defect == kind for each in half) for half in (one, other)]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_defect_is_where_its_mask_is(kind: str) -> None:
    pixels, other = part(0), part(1)
    attention = np.ones((4, 4), np.float32) if SIMULATORS[kind].needs_attention else None
    sizes = []
    for seed in range(12):
        made, again = (
            spoilt(pixels, other, kind, np.random.default_rng(seed), attention) for _ in range(2)
        )
        assert made is not None
        assert again is not None
        result, mask = made
        assert (result == again[0]).all()
        assert ((result != pixels).any(2) == mask).all()
        assert (pixels == part(0)).all()
        assert mask.mean() >= 0.8 * 0.025**2
        contrast = np.subtract(*np.percentile(pixels, [99, 1]))
        assert np.abs(result[mask].astype(float) - pixels[mask]).mean() >= FAINTEST * contrast
        sizes.append(mask.mean())
    assert min(sizes) < 0.4 * max(sizes)  # small ones among them


def test_where_nothing_can_be_seen_there_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)

    def made(window: np.ndarray, *_: object, **__: object) -> Synthetic:
        size = window.shape[:2]
        brighter = window + np.float32(1 / 255)
        return Synthetic(brighter, np.ones(size, bool), np.ones(size, np.float32))

    monkeypatch.setattr(defects, "simulator", lambda _: made)
    assert spoilt(part(0), part(1), "nsa", random) is None


def test_small_defects_are_made_where_they_are_asked_for() -> None:
    large = cv2.resize(part(0), (512, 512)), cv2.resize(part(1), (512, 512))
    means = []
    for smallest in (0.1, 0.01):
        found = [
            spoilt(*large, "cutpaste", np.random.default_rng(seed), None, smallest)
            for seed in range(12)
        ]
        means.append(np.median([made[1].mean() for made in found if made is not None]))
    assert windows(0.1) == (1.0,)
    assert means[1] < 0.3 * means[0]


def test_defects_are_written_with_their_masks_and_the_pictures_without(tmp_path: Path) -> None:
    good = [write_picture(tmp_path / f"{at}.png", part(at)) for at in range(4)]
    (tmp_path / "2.png").write_bytes(b"no picture")
    given = [Sample(path=path) for path in good]
    backbone = build("test_vit", weights="random", seed=0)
    rows, failures = made_of(given, tmp_path / "made", backbone, seed=0, progress=silent)
    assert [failure.source for failure in failures] == [str(good[2])]
    clean = {row["of"]: row for row in rows if "kind" not in row}
    assert list(clean) == [0, 1, 3]
    for at, row in clean.items():
        assert (decode(row["path"]).pixels == part(at)).all()
    spoilt_ones = [row for row in rows if "kind" in row]
    assert {row["kind"] for row in spoilt_ones} == set(KINDS)
    for row in spoilt_ones:
        changed = (decode(row["path"]).pixels != part(row["of"])).any(2)
        assert (changed == decode_mask(row["mask"])).all()
    again, _ = made_of(given, tmp_path / "again", backbone, seed=0, progress=silent)
    for one, other in zip(rows, again, strict=True):
        assert Path(one["path"]).read_bytes() == Path(other["path"]).read_bytes()


def test_a_backbone_without_attention_guides_nothing(tmp_path: Path) -> None:
    good = [write_picture(tmp_path / f"{at}.png", part(at)) for at in range(4)]
    backbone = build("resnet18", weights="random", seed=0)
    given = [Sample(path=path) for path in good]
    rows, _ = made_of(given, tmp_path / "made", backbone, seed=0, progress=silent)
    assert {row["kind"] for row in rows if "kind" in row} == set(KINDS) - {"guided"}


def test_sixteen_bits_stay_sixteen(tmp_path: Path) -> None:
    deep = part(0).astype(np.uint16) * 16  # twelve bits in sixteen
    path = tmp_path / "0.png"
    cv2.imwrite(str(path), deep[..., ::-1])
    backbone = build("test_vit", weights="random", seed=0)
    given = [Sample(path=path)]
    rows, failures = made_of(given, tmp_path / "made", backbone, seed=0, progress=silent)
    assert failures == []
    assert (decode(rows[0]["path"]).pixels == decode(path).pixels).all()
    assert len(rows) == 3
    for row in rows[1:]:
        changed = (decode(row["path"]).pixels != decode(path).pixels).any(2)
        assert (changed == decode_mask(row["mask"])).all()


def test_large_pictures_are_made_smaller_with_and_without_a_defect(tmp_path: Path) -> None:
    large = cv2.resize(part(0), (2000, 1000), interpolation=cv2.INTER_NEAREST)
    given = [Sample(path=write_picture(tmp_path / "0.png", large))]
    backbone = build("test_vit", weights="random", seed=0)
    rows, _ = made_of(given, tmp_path / "made", backbone, seed=0, progress=silent)
    assert {decode(row["path"]).size for row in rows} == {(672, 1344)}


def a_plan(tmp_path: Path) -> Plan:
    """Of 40 pictures to learn from, 20 to choose by, two defects in each."""
    generated = [
        {"path": f"{at}{kind}", "of": at} | ({"kind": kind, "mask": f"{at}m"} if kind else {})
        for at in range(20)
        for kind in ("", "guided", "nsa")
    ]
    return Plan(
        fingerprint="f",
        division=Division(
            learned=tuple(samples(40, category="l")),
            good=tuple(samples(20, category="g")),
            defects=tuple(samples(7, defect="dent")),
            checking_good=tuple(samples(10, category="h")),
            checking_defects=tuple(samples(6, defect="hole")),
        ),
        generated=tuple(generated),
        smallest=0.025,
        seconds={"64x64": 0.1, "128x128": 0.4},
    )


def test_a_plan_is_kept_whole(tmp_path: Path) -> None:
    plan = a_plan(tmp_path)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_the_evidence_is_what_the_pictures_are_for(tmp_path: Path) -> None:
    plan = a_plan(tmp_path)
    generated, labelled, checking = plan.evidence()
    assert generated.paired
    assert len(generated.good) == 20
    assert generated.defective[3] == ("good 3 guided", "good 3 nsa")
    assert (labelled.good, labelled.defects) == (generated.good, 7)
    assert (len(checking.good), checking.defects) == (10, 6)
    used = {row["id"] for row in plan.judged}
    assert len(used) == len(plan.judged) == 60 + 7 + 10 + 6
    choose = {*labelled.good, *(one for group in labelled.defective for one in group)}
    assert not choose & {*checking.good, *(one for group in checking.defective for one in group)}


@pytest.mark.parametrize("what", ["schema", "division", "of", "garbage"])
def test_a_damaged_plan_is_refused(tmp_path: Path, what: str) -> None:
    place = tmp_path / "plan.json"
    a_plan(tmp_path).save(place)
    told = json.loads(place.read_text())
    if what == "schema":
        told["schema"] = 99
    elif what == "division":
        told["division"] = {"learned": [{}]}
    elif what == "of":
        told["generated"][0]["of"] = 99
    place.write_text("{" if what == "garbage" else json.dumps(told))
    with pytest.raises(DataError, match="is not the plan of a comparison"):
        Plan.load(place)


def test_a_plan_takes_as_many_pictures_as_there_is_time_for(tmp_path: Path) -> None:
    plan = a_plan(tmp_path)
    both = [
        Candidate(method="knn", settings={"backbone": "test_vit", "image_size": [side]})
        for side in (64, 128)
    ]
    needed = (40 + len(plan.judged)) * (0.1 + 0.4) / 60  # minutes to encode them all
    assert plan.within(2 * needed + 0.01, both) == plan
    half = plan.within(needed, both)
    used = 24 + 15 * 3 + 7 + 10 + 6  # to learn from, good with two defects each, labelled, checking
    assert half.reduced == pytest.approx(used / (40 + 60 + 7 + 10 + 6), abs=0.001)
    assert half.within(needed / 100, both).reduced == 1  # no fewer are worth anything: all are used
    assert len(half.division.learned) == 24  # no fewer than are worth anything
    assert half.division.learned == plan.division.learned[:24]
    assert len(half.division.good) == 15
    assert {row["of"] for row in half.generated} == set(range(15))
    assert plan.within(needed, both[:1]) == plan  # the larger size costs four times as much
    keys = {one.key_of(both[0]) for one in (plan, half)} | {plan.key_of(both[1])}
    assert len(keys) == 3


def test_other_pictures_have_another_fingerprint(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", part(0))
    one = Division(learned=(Sample(path=path),), good=())
    told = fingerprint(["x"], one)
    assert fingerprint(["x"], one) == told
    assert fingerprint(["y"], one) != told
    assert fingerprint(["x"], Division(learned=(), good=one.learned)) != told
    path.write_bytes(path.read_bytes() + b"0")
    assert fingerprint(["x"], one) != told
