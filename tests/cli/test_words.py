"""What several commands print."""

from __future__ import annotations

from typing import Any

from blemish.cli import words
from blemish.detector.thresholds import Method, Threshold, by_hand, calibrate


def test_of_many_failures_and_notes_the_first_are_shown() -> None:
    failures = [{"path": f"{number}.png", "error": "a\nb"} for number in range(12)]
    lines = words.broken(failures)
    assert lines[0] == "  broken: 0.png: a\\nb"
    assert lines[9:] == [
        "  broken: 9.png: a\\nb",
        "  … and 2 more, all of them listed by --json",
    ]
    assert len(words.broken(failures[:10])) == 10
    lines = words.notes({f"note {number}": number for number in range(1, 8)})
    assert (lines[0], lines[5:]) == ("  note on 7 of them: note 7", ["  … and 2 other notes"])
    assert len(words.notes({"one": 1})) == 1


def test_a_category_warning_counts_what_nobody_named() -> None:
    rows = [
        {"category": "nut", "category_assigned": True},
        {"category": "bolt"},
        {"category": "", "judged_as": ""},
    ]
    said = words.category_warning(rows, ["bolt", "nut"])
    assert said.startswith("no category of the artifact was named for 2 of the pictures: judged ")
    assert "judged 1 as nut, 1 by the common threshold; the common threshold of all" in said
    assert words.category_warning(rows, []) == ""
    assert words.category_warning(rows[1:2], ["bolt", "nut"]) == ""


def test_what_thresholds_promise_is_said_once_and_in_short() -> None:
    def of(n: int, method: Method = "split conformal") -> Threshold:
        return calibrate(range(n), 0.1, method=method, required=False)

    def lines(score: Threshold, regions: Threshold, **more: Any) -> list[str]:
        told = {"threshold": score.to_dict(), "regions": {"threshold": regions.to_dict()}}
        return words.threshold_lines({**told, **more})

    held_out = "at most 10 % of new normal {0} are above it, on average (split conformal, {1} held"
    assert lines(of(20), of(20)) == [
        f"Threshold: 18; {held_out.format('pictures', 20)}-out normal pictures)",
        "Regions above: 18; the same rate of pictures that show any",
    ]
    left_out = of(20, "leave-one-out")
    about = "about 10 % of new normal pictures are above it, usually fewer (leave-one-out, 20"
    assert lines(left_out, left_out)[0] == f"Threshold: 18; {about} training pictures: approximate)"
    assert held_out.format("pictures", 30) in lines(of(20), of(30))[1]  # another promise is said
    few = lines(of(3), of(3))
    assert few[0].startswith("Threshold: none: a false-alarm rate of 10 % needs at least 9 normal")
    assert few[1] == "Regions above: none, for the same reason"
    hand = lines(by_hand(2), by_hand(3))
    assert hand[0].startswith("Threshold: 2. Set by hand: nothing is known")
    assert hand[1] == "Regions above: 3; set by hand as well"
    of_parts = calibrate(range(10), 0.1, method="split conformal", required=True, of="part")
    said = lines(of(20), of(20), parts={"threshold": of_parts.to_dict()})
    assert said[0].endswith("normal pictures); nearly, as these are views of parts")
    assert said[1] == "Regions above: 18; the same rate of pictures that show any"
    assert said[2] == f"Parts above: 9; {held_out.format('parts', 10)}-out normal parts)"
    assert words.threshold_lines({"threshold": None}) == [
        "Threshold: none, as no picture was to be held out for it"
    ]


def test_a_proof_is_told_and_one_of_another_version_as_it_is() -> None:
    proof = {
        **{"pictures": 20, "of": "given", "engine": "onnxruntime 1.32", "score": 5.377e-6},
        **{"map": 5.1e-5, "limit": 1e-3, "map_limit": 0.25, "rank_correlation": 0.99996, "more": 1},
    }
    assert words.proof(proof) == (
        "20 given pictures in onnxruntime 1.32: scores differ by at most 5.4e-06, maps by 5.1e-05 "
        "deviations of good scores (0.001 and 0.25 are allowed); rank correlation 1.0000"
    )
    assert "rank" not in words.proof({**proof, "rank_correlation": None})
    assert words.proof({"score": "\x1b[2J"}) == 'score="\\u001b[2J"'
    assert words.proof({**proof, "limit": "much"}).startswith("pictures=20")


def test_a_training_that_saw_less_than_all_pictures_is_told() -> None:
    (told,) = words.training({"steps": 1200, "epochs": 1, "loss": 0.51234})
    assert told == "1,200 steps, 1 pass over the pictures, loss 0.5123"
    told, doubt = words.training({"steps": 1, "epochs": 0.0383, "loss": 2})
    assert told == "1 step, 0.0383 passes over the pictures, loss 2"
    assert "notice: the training ended before it had seen every picture once" in doubt
