"""How often the service says that pictures look otherwise, where they do not and where they do.

    python benchmarks/appearance.py DATA           # DATA/mvtec/bottle and screw: some minutes each
    python benchmarks/appearance.py --page         # the table of the newest rows, as Markdown

The descriptors are those of real pictures, as a service keeps them; the streams are drawn from them
with replacement, so that it is known what is true. "unchanged": windows of the same pictures as the
reference, how many of them have a p-value up to 5 % and 1 %, and how many are an alarm. Otherwise
every picture of a window is changed, or shows another product: how many windows are an alarm.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import blemish
from blemish.data.shifts import SHIFTS
from blemish.detector.predict import Detector
from blemish.serve.appearance import Appearance
from blemish.store import Descriptor
from blemish.types import Prediction

ROWS = Path(__file__).parent / "results" / "appearance.jsonl"
FITTED, CHANGED = 20, 60  # pictures
STREAMS, WINDOWS = 40, 100  # unchanged
TIMES = 4  # windows of each change
Change = Callable[[np.ndarray], np.ndarray]


def times(factor: float) -> Change:
    return lambda pixels: np.clip(pixels * factor, 0, 255).astype(np.uint8)


def moved(pixels: np.ndarray) -> np.ndarray:
    """A twentieth of the width to the right."""
    return np.roll(pixels, pixels.shape[1] // 20, axis=1)


def blurred(pixels: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(pixels, (0, 0), 0.002 * max(pixels.shape[:2]))


CHANGES: dict[str, Change] = {
    "brightness × 0.95": times(0.95),
    "brightness × 0.9": times(0.9),
    "brightness × 1.1": times(1.1),
    "a little out of focus": blurred,
    "moved by 5 % of the width": moved,
    "noise": SHIFTS["noise"],
}


def described(
    detector: Detector, paths: Sequence[Path], change: Change | None = None
) -> list[list[float]]:
    found = []
    for one in detector.predict_many([*paths], alter=change):
        assert isinstance(one, Prediction)
        assert one.descriptor is not None
        found.append(list(Descriptor.of("0" * 32, one.descriptor).numbers))
    return found


def looks(first: np.ndarray, then: np.ndarray, windows: int, seed: int) -> list[Any]:
    """The looks of a stream that begins with one kind of pictures and goes on with another."""
    random = np.random.default_rng(seed)
    watch = Appearance("0" * 32, str(seed)).looks
    for row in random.choice(first, watch.first):
        watch.add(row)
    found = [watch.add(row) for row in random.choice(then, windows * watch.window)]
    return [one for one in found if one is not None]


def unchanged(pictures: np.ndarray) -> dict[str, Any]:
    streams = [looks(pictures, pictures, WINDOWS, seed) for seed in range(STREAMS)]
    p_values = np.array([one.comparison.p_value for each in streams for one in each])
    return {
        "change": "unchanged",
        "windows": len(p_values),
        "to 5 %": float((p_values <= 0.05).mean()),
        "to 1 %": float((p_values <= 0.01).mean()),
        "alarms": sum(one.differs for each in streams for one in each),
        "share": float(np.mean([one.comparison.share for each in streams for one in each])),
    }


def changed(name: str, first: np.ndarray, then: np.ndarray) -> dict[str, Any]:
    found = [looks(first, then, 1, seed)[0] for seed in range(TIMES)]
    return {
        "change": name,
        "windows": TIMES,
        "alarms": sum(one.differs for one in found),
        "share": float(np.mean([one.comparison.share for one in found])),
    }


def rows_of(data: Path, product: str, other: str, backbone: str) -> list[dict[str, Any]]:
    paths = sorted((data / "mvtec" / product / "train" / "good").iterdir())
    strange = sorted((data / "mvtec" / other / "train" / "good").iterdir())[:CHANGED]
    detector = blemish.fit("knn", paths[:FITTED], backbone=backbone, image_size=224)
    pictures = np.array(described(detector, paths))
    some = paths[:: max(1, len(paths) // CHANGED)][:CHANGED]
    found = [unchanged(pictures)]
    for name, change in CHANGES.items():
        found.append(changed(name, pictures, np.array(described(detector, some, change))))
    found.append(
        changed(f"another product: {other}", pictures, np.array(described(detector, strange)))
    )
    return [{"product": product, "backbone": backbone, **one} for one in found]


def page(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| product | encoder | change | windows | alarms | distance that is due to it |",
        "|---|---|---|---:|---:|---:|",
    ]
    for one in rows:
        lines.append(
            f"| {one['product']} | {one['backbone']} | {one['change']} | {one['windows']:,} | "
            f"{one['alarms']} | {100 * one['share']:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", type=Path, help="the folder with mvtec/")
    parser.add_argument("--page", action="store_true", help="print the table of the rows")
    asked = parser.parse_args()
    if asked.page or asked.data is None:
        print(page([json.loads(line) for line in ROWS.read_text().splitlines()]))
        return
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    more = {"part": "appearance", "date": datetime.now(UTC).isoformat(), "commit": commit}
    pairs = (("bottle", "screw"), ("screw", "bottle"))
    with ROWS.open("w") as file:
        for backbone in ("efficientnet_lite0", "focus_vits14"):
            for product, other in pairs:
                for row in rows_of(asked.data, product, other, backbone):
                    file.write(json.dumps({**row, **more}) + "\n")
                    file.flush()


if __name__ == "__main__":
    main()
