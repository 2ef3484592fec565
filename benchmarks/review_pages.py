"""How long a person waits for the pages of a service that has kept much.

    python benchmarks/review_pages.py --results benchmarks/results/pages.jsonl

A store is filled with `--predictions` of which `--labels` are reviewed: nine of ten in the order of
the queue, the others as they are found on the pages. `blemish serve` is started on it `--starts`
times for each page and asked for it at once, then `--times` more. All times are from the request to
the last byte of the answer, in seconds.

A row has, for each page, `first`, the first answer after a start (the median of the starts; the
service is asked for nothing else before), and `warm`, the median of the later ones; `first_most`
and `warm_most`, the longest of each; `first_processor` and `warm_processor`, what the process of
the service computed meanwhile, which other work on the machine hardly moves; and `label`, which
labels a picture in the review and brings the next.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import httpx2 as httpx
import numpy as np
import torch
from serving import made, processor_seconds, service

import blemish
from blemish.bench.conditions import checkout, hardware
from blemish.cli.console import complain
from blemish.detector.predict import Detector
from blemish.serve.reviewing import Reviewing
from blemish.store import Label, Scored, Store

PAGES = ("live", "pictures", "review", "figures", "refine", "models")
_HTML = {"Accept": "text/html"}
_AT_ONCE = 2000


def season(store: Store, detector: Detector, predictions: int, labels: int) -> None:
    """A season of four cameras, one defect in fifty, reviewed in part."""
    random = np.random.default_rng(0)
    known = np.sort(detector.record.calibration_scores)
    assert detector.threshold is not None
    level = detector.threshold.value
    assert level is not None
    scores = np.quantile(known, random.random(predictions)) + random.normal(
        0, known.std() / 4, predictions
    )
    truths = random.random(predictions) < 0.02
    scores[truths] += random.exponential(2 * known.std(), int(truths.sum())) + known.std()
    began = datetime.now(UTC) - timedelta(seconds=20 * predictions)
    rows = [
        Scored(
            picture=f"{at:032x}",
            model="part",
            version="1",
            score=float(score),
            threshold=level,
            label=int(score > level),
            height=128,
            width=128,
            source=f"camera {at % 4}",
            name=f"{at:06d}.png",
            time=began + timedelta(seconds=20 * at),
            regions=(),
        )
        for at, score in enumerate(scores.tolist())
    ]
    reviewing = Reviewing(store, "part")
    reviewing.watch("1", known.tolist(), level)
    for start in range(0, predictions, _AT_ONCE):
        store.add_predictions(rows[start : start + _AT_ONCE])
        reviewing.catch_up()
    reviewing.save()
    mask = np.zeros((128, 128), np.uint8)
    mask[40:60, 50:80] = 255
    drawn = cv2.imencode(".png", mask)[1].tobytes()
    turn = [one.picture for one in store.queue("part", limit=labels * 9 // 10)]
    others = [f"{at:032x}" for at in random.permutation(predictions).tolist()]
    line = list(dict.fromkeys([*turn, *others]))[:labels]
    for picture in line:
        bad = bool(truths[int(picture, 16)])
        said = {"verdict": "defect", "defect": "scratch", "mask": drawn} if bad else {}
        store.add_label(Label(**{"picture": picture, "verdict": "good", "reviewer": "Ada", **said}))


@contextmanager
def running(folder: Path, given: argparse.Namespace) -> Iterator[tuple[int, httpx.Client]]:
    """A service that has just been started, its process, and somebody who asks it."""
    with (
        service(folder / "models", folder, given) as (pid, host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=120) as client,
    ):
        yield pid, client


def asked(client: httpx.Client, path: str) -> tuple[float, str]:
    """Seconds until the whole page is here, and its text."""
    began = time.perf_counter()
    answer = client.get(path, headers=_HTML)
    seconds = time.perf_counter() - began
    answer.raise_for_status()
    return seconds, answer.text


def labelled(client: httpx.Client, times: int) -> list[float]:
    """Seconds of labels, each of which brings the next picture."""
    _, text = asked(client, "/review")
    csrf = re.search(r'name="csrf" content="([^"]+)"', text)
    assert csrf is not None
    found = []
    for _ in range(times):
        fields = ("picture", "prediction", "then", "skipped")
        given: dict[str, Any] = {}
        for name in fields:
            value = re.search(rf'name="{name}" value="([^"]*)"', text)
            assert value is not None
            given[name] = (None, value[1])
        began = time.perf_counter()
        answer = client.post(
            "/review/label",
            files={**given, "verdict": (None, "good")},
            headers={"X-CSRF-Token": csrf[1], "HX-Request": "true"},
        )
        found.append(time.perf_counter() - began)
        answer.raise_for_status()
        text = answer.text
    return found


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The row, without its conditions."""
    models = folder / "models" / "part"
    if not models.exists():
        settings = {"backbone": "efficientnet_lite0", "image_size": 128}
        detector = blemish.fit("padim", made(200, 128, 0), precision="fp32", **settings)
        with Store.open(None, folder / "store") as store:
            season(store, detector, options.predictions, options.labels)
        models.mkdir(parents=True)
        detector.save(models / "1.blemish")
        complain("the store is filled")
    given = argparse.Namespace(threads=1, largest_batch=1, clients=1, store=True)
    pages: dict[str, dict[str, float]] = {}
    for page in options.pages:
        first, warm, computed = [], [], []
        for _ in range(options.starts):
            with running(folder, given) as (pid, client):
                before = processor_seconds(pid)
                first.append(asked(client, f"/{page}")[0])
                between = processor_seconds(pid)
                warm += [asked(client, f"/{page}")[0] for _ in range(options.times)]
                computed.append((between - before, processor_seconds(pid) - between))
        pages[page] = {
            **{"first": statistics.median(first), "first_most": max(first)},
            **{"warm": statistics.median(warm), "warm_most": max(warm)},
            "first_processor": statistics.median(one for one, _ in computed),
            "warm_processor": statistics.median(one for _, one in computed) / options.times,
        }
        complain(f"{page}: {pages[page]}")
    with running(folder, given) as (_, client):
        took = labelled(client, options.times)
    return {
        **{"predictions": options.predictions, "labels": options.labels},
        **{"starts": options.starts, "times": options.times, "seconds": pages},
        "label": {"warm": statistics.median(took), "warm_most": max(took)},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=8_000)
    parser.add_argument("--pages", nargs="+", choices=PAGES, default=PAGES)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="holds the store from one call to the next")
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args(arguments)
    commit, dirty = checkout()
    with tempfile.TemporaryDirectory() as folder:
        row = measured(options, options.folder or Path(folder))
    conditions = {
        **{"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit},
        **{"dirty": dirty, "device": hardware(torch.device("cpu"))},
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**conditions, **row}) + "\n")
    print(json.dumps(row, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
