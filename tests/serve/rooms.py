"""A service whose pages are full: long names, pictures reviewed by two, and jobs that ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from live import Live, serving
from parts import Fitted

from blemish.serve.reviewing import Reviewing
from blemish.store import Job, Label

LONG = "line-7-station-12-camera-left-of-the-second-conveyor-" * 3 + "north"
WORDS = "Kratzer an der Unterseite des linken Gehaeuseteils mit langem Namen"


@contextmanager
def full(fitted: Fitted, pictures: list[Path], folder: Path, **settings: Any) -> Iterator[Live]:
    """Its pages have something of everything. Nobody has promoted a version."""
    models = folder / "models" / "part"
    models.mkdir(parents=True)
    for version in ("1", "2"):
        fitted("knn").save(models / f"{version}.blemish")
    with serving(folder / "models", store_folder=folder / "store", **settings) as live:
        rows = [row for at, path in enumerate(pictures) for row in sent(live, path, at)]
        if rows:
            fill(live, rows)
        yield live


def sent(live: Live, path: Path, at: int) -> list[dict[str, Any]]:
    """A picture that a program sent from a camera, each second one from one of a long name."""
    with live.client() as client:
        answer = client.post(
            "/v1/models/part/predict",
            files={"picture": (f"{LONG}-{at}.png" if at % 2 else f"{at}.png", path.read_bytes())},
            params={"source": LONG if at % 2 else "camera 1"},
        )
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["predictions"]
        return found


def fill(live: Live, rows: list[dict[str, Any]]) -> None:
    """All but the last two pictures are reviewed, on one of them reviewers disagree."""
    store = live.service.store
    assert store is not None
    Reviewing.of(live.service, "part").catch_up()
    for row in rows[:-2]:
        bad = bool(row["label"])
        more = {"verdict": "defect", "defect": WORDS} if bad else {"verdict": "good"}
        store.add_label(Label(picture=row["digest"], reviewer="Ada", prediction=row["id"], **more))
    store.add_label(Label(picture=rows[0]["digest"], reviewer="Bo", verdict="good"))
    store.add_label(Label(picture=rows[1]["digest"], reviewer="Bo", verdict="defect"))
    store.add_label(Label(picture=rows[2]["digest"], reviewer="Bo", verdict="unsure"))
    store.add_job(
        Job(
            **{"model": "part", "kind": "refine", "who": "Ada", "state": "failed"},
            message=f"{LONG}: cannot be read",
            settings={"base": "1", "learn": 12},
        )
    )
    store.add_job(
        Job(
            **{"model": "part", "kind": "refine", "who": "Ada", "state": "done", "progress": 1.0},
            settings={"base": "1", "learn": 12},
            result=came_out(rows),
        )
    )


def came_out(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of a job, as one that has ended tells it."""
    said = [
        {
            "picture": row["digest"],
            "defective": bool(row["label"]),
            "before": {"score": row["score"], "threshold": row["threshold"], "label": 0},
            "after": {"score": row["score"], "threshold": row["threshold"], "label": 1},
        }
        for row in rows
    ]
    return {
        "version": "2",
        "how": "refine",
        "held": {
            **{"known": 0, "good": 4, "defects": 4, "rows": said},
            "before": {"false_alarms": 1, "found": 2},
            "after": {"false_alarms": 0, "found": 4},
        },
        "learned": {
            **{"good": 8, "defects": 4, "known": 1, "failures": [], "calibrated": 25},
            **{"found_before": 2, "found_after": 4, "alarms_before": 1, "alarms_after": 1},
        },
        "thresholds": {"before": 1.25, "after": 1.5},
    }


def paths(live: Live) -> list[str]:
    """The addresses of all pages, of a picture with regions too."""
    assert live.service.store is not None
    rows = live.service.store.predictions(model="part")
    row = next(one for one in rows if one.regions)
    names = ["live", "pictures", f"pictures/{row.id}", "review", "figures", "refine", "models"]
    return [f"/{one}" for one in [*names, "pictures/999999"]]
