"""The pictures of the documentation, from the drawn data set and the code itself.

    python website/figures.py [--only NAME,NAME] [--output docs/pictures]

Needs `blemish[torch,offline]`; two minutes of two cores. Made anew after a change of a method; the
pictures are committed, small, as WebP.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

import blemish
from blemish.anomalies import simulate_batch, simulator
from blemish.backbones import build
from blemish.data.flange import DEFECTS
from blemish.data.synthetic import write_synthetic
from blemish.images import decode
from blemish.report.heatmap import attention_overlay, contours, faded, overlay

BACKBONE = "focus_vits14"
SIDE, SMALL, GAP = 256, 224, 8  # pixels
PAPER = 255
GREEN = (20, 190, 90)  # over what was drawn

Pixels = np.ndarray
Rows = list[list[Pixels]]


def sheet(rows: Sequence[Sequence[Pixels]]) -> Image.Image:
    """Pictures of one size in rows, with a gap between them; the gap is transparent."""
    height, width = rows[0][0].shape[:2]
    across = max(len(row) for row in rows)
    size = (len(rows) * (height + GAP) - GAP, across * (width + GAP) - GAP, 4)
    drawn = np.zeros(size, np.uint8)
    for down, row in enumerate(rows):
        for column, tile in enumerate(row):
            y, x = down * (height + GAP), column * (width + GAP)
            drawn[y : y + height, x : x + width, :3] = tile
            drawn[y : y + height, x : x + width, 3] = PAPER
    return Image.fromarray(drawn)


def pixels_of(path: Path, side: int = SIDE) -> Pixels:
    return cv2.resize(decode(path).as_uint8(), (side, side), interpolation=cv2.INTER_AREA)


def white_where(mask: np.ndarray) -> Pixels:
    return np.repeat(mask.astype(np.uint8)[..., None] * 255, 3, axis=2)


def attention_of(pictures: Sequence[Pixels]) -> np.ndarray:
    """Of uint8 pictures B H W 3 what the [CLS] token looks at: B h w, sum 1."""
    backbone = build(BACKBONE).eval()
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (backbone.mean, backbone.std))
    with torch.inference_mode():
        found: np.ndarray = backbone.guidance((images - mean) / std, (backbone.depth,)).numpy()
    return found


def part(data: Path) -> Rows:
    """Of each kind of defect: the picture, its heatmap, and its regions over what was drawn."""
    detector = blemish.fit("patchcore", data, backbone=BACKBONE, image_size=448)
    rows: Rows = [[], [], []]
    for kind in DEFECTS:
        path = data / "test" / kind / "001.png"
        found, picture = detector.predict(path), decode(path).as_uint8()
        drawn = decode(data / "ground_truth" / kind / "001_mask.png").as_uint8()[..., 0] > 0
        assert found.mask is not None
        green = picture.copy()
        green[drawn] = picture[drawn] // 4 + np.array(GREEN, np.uint8)
        rows[0].append(picture)
        rows[1].append(overlay(picture, found.heatmap, detector.map_scale))
        rows[2].append(contours(green, found.mask))
    return rows


def attention(data: Path) -> Rows:
    """Of three parts: the picture, attention, and the three tenths of patches that APMask's student
    is not shown."""
    pictures = [pixels_of(data / "train/good" / f"00{at}.png", SMALL) for at in range(3)]
    maps = attention_of(pictures)
    rows: Rows = []
    for picture, looked in zip(pictures, maps, strict=True):
        kept = looked > np.quantile(looked, 0.3)
        blocks = np.kron(kept, np.ones((14, 14), bool))
        shown = np.where(blocks[..., None], picture, 235).astype(np.uint8)
        rows.append([picture, attention_overlay(picture, looked), shown])
    return [list(each) for each in zip(*rows, strict=True)]


def synthetic(data: Path) -> Rows:
    """Guided cut-and-paste on four parts: attention, the twin, and its mask."""
    pictures = [pixels_of(data / "train/good" / f"00{at}.png", SMALL) for at in range(4)]
    maps = attention_of(pictures)
    images = (np.stack(pictures) / 255).astype(np.float32)
    made = simulate_batch([simulator("guided")], images, maps, [3, 5, 8, 11])
    twins = [np.rint(each.image * 255).astype(np.uint8) for each in made]
    looked = [attention_overlay(*each) for each in zip(pictures, maps, strict=True)]
    return [looked, twins, [white_where(each.mask) for each in made]]


def reconstruction(data: Path) -> Rows:
    """AGPNet after a few minutes: the picture, where its noise went while it learned, and what it
    cannot give back."""
    detector = blemish.fit(
        "agpnet", data, backbone=BACKBONE, image_size=SMALL, time_budget=1.5, seed=0
    )
    kinds = ("scratch", "dent", "stain", "missing_piece")
    paths = [data / "test" / kind / "001.png" for kind in kinds]
    pictures = [pixels_of(path, SMALL) for path in paths]
    maps = attention_of(pictures)
    looked = [attention_overlay(*each) for each in zip(pictures, maps, strict=True)]
    errors = []
    for path, picture in zip(paths, pictures, strict=True):
        error = cv2.resize(detector.predict(path).anomaly_map, (SMALL, SMALL))
        errors.append(overlay(picture, error, detector.map_scale))
    return [pictures, looked, errors]


def two_looks(data: Path) -> Rows:
    """`--set coarse=224`: the picture, where it looked again, and the map of both looks."""
    detector = blemish.fit("patchcore", data, backbone=BACKBONE, image_size=448, coarse=224)
    rows: Rows = [[], [], []]
    for kind in ("scratch", "dent", "stain", "contamination"):
        path = data / "test" / kind / "006.png"
        found, picture = detector.predict(path), decode(path).as_uint8()
        assert found.saliency is not None
        looked = cv2.resize(found.saliency, (SIDE, SIDE)) > 0
        rows[0].append(picture)
        rows[1].append(faded(picture, looked))
        rows[2].append(overlay(picture, found.heatmap, detector.map_scale))
    return rows


def background(data: Path) -> Rows:
    """`--foreground auto`: what counts as the part."""
    detector = blemish.fit("patchcore", data, backbone=BACKBONE, image_size=448, foreground="auto")
    rows: Rows = [[], []]
    for at in range(4):
        path = data / "test/good" / f"00{at}.png"
        found = detector.predict(path)
        picture = decode(path).as_uint8()
        rows[0].append(picture)
        rows[1].append(picture if found.foreground is None else faded(picture, found.foreground))
    return rows


FIGURES: dict[str, Callable[[Path], Rows]] = {
    "part": part,
    "attention": attention,
    "synthetic": synthetic,
    "reconstruction": reconstruction,
    "two-looks": two_looks,
    "background": background,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(FIGURES), help="some of them")
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = write_synthetic(Path(folder, "flange"), count=60, defects=8).folder
        for name in options.only.split(","):
            drawn = sheet(FIGURES[name](data))
            file = options.output / f"{name}.webp"
            drawn.save(file, quality=82, method=6)
            print(f"{file}: {drawn.width}×{drawn.height}, {file.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
