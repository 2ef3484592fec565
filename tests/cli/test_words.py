"""What several commands print."""

from __future__ import annotations

from blemish.cli import words


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
