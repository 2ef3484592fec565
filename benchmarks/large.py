"""A made set of big pictures with small defects, in the layout of MVTec AD: nobody's licence.

    python benchmarks/large.py FOLDER [--side 4096] [--seed 0] [--format tif]

A machined plate in grey: noise of five octaves, brushed along one direction, under a light that
differs from picture to picture; over it rows of drilled holes, 32 pixels wide and 128 apart, turned
and shifted a little. Defects are 8 to 40 pixels long: `dot` (a speck, dark or bright), `scratch` (a
bright line with a dark side), `missing` (a hole that was not drilled) and `stain` (a soft dark
patch); three in each picture. A picture depends on the seed, its split and its number alone, so a
set with more pictures holds those of a smaller one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

PITCH, RADIUS = 128, 16  # of the holes, in pixels
LEAST, MOST = 8, 40  # sides of the boxes around defects, in pixels: the longer one
KINDS = ("dot", "scratch", "missing", "stain")
EACH = 3  # defects in a picture
OCTAVES = ((1024, 0.05), (256, 0.04), (64, 0.03), (12, 0.03), (3, 0.03))  # pixels, strength
TRAIN, GOOD, BAD = 0, 1, 2  # the parts of the set, which seed the pictures


@dataclass(frozen=True)
class Grid:
    """Where the holes are: turned by `angle` (radians), moved by `shift` (x, y) in pixels."""

    angle: float
    shift: tuple[float, float]

    def turned(self, x: Plane, y: Plane) -> tuple[Plane, Plane]:
        """Pixels in the grid's own coordinates."""
        cosine, sine = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        across, down = (np.float32(each) for each in self.shift)
        return x * cosine + y * sine + across, y * cosine - x * sine + down

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The middle of the hole that is nearest to a pixel."""
        at = self.turned(np.float32(x), np.float32(y))
        u, v = (PITCH * (np.floor(each / PITCH) + 0.5) for each in at)
        u, v = u - self.shift[0], v - self.shift[1]
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        return float(u * cosine - v * sine), float(v * cosine + u * sine)


def plate(rng: np.random.Generator, side: int) -> tuple[Plane, Grid]:
    """A plate without holes yet, float32 side × side about 0.55, and where they will be."""
    values = np.full((side, side), 0.55, dtype=np.float32)
    for pixels, strength in OCTAVES:
        cells = max(side // pixels, 2)
        noise = rng.standard_normal((cells, max(cells // 3, 2)), dtype=np.float32)  # brushed
        values += strength * cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    values += 0.02 * rng.standard_normal((side, side), dtype=np.float32)
    light = rng.uniform(-0.06, 0.06, 2).astype(np.float32)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    values += light[0] * ramp[:, None] + light[1] * ramp[None]
    shift = rng.uniform(0, PITCH, 2)
    return values, Grid(float(rng.uniform(-0.02, 0.02)), (float(shift[0]), float(shift[1])))


def drilled(values: Plane, grid: Grid, closed: list[tuple[float, float]] = ()) -> Plane:
    """The plate with holes: dark inside, with a bright rim; not at the places `closed`."""
    side = len(values)
    result = values.copy()
    columns = np.arange(side, dtype=np.float32)[None]
    for top in range(0, side, 512):  # in strips: coordinates of a whole plate take much memory
        rows = np.arange(top, min(top + 512, side), dtype=np.float32)[:, None]
        u, v = grid.turned(columns, rows)
        across, down = np.mod(u, PITCH) - PITCH / 2, np.mod(v, PITCH) - PITCH / 2
        away = np.hypot(across, down)
        inside = np.clip(RADIUS - away, 0, 1)  # of the hole, with a smooth edge
        rim = np.exp(-((away - RADIUS - 1) ** 2) / 3) * (1 - inside)
        for x, y in closed:
            far = (np.hypot(columns - x, rows - y) > PITCH / 2).astype(np.float32)
            inside, rim = inside * far, rim * far
        strip = result[top : top + len(rows)]
        floor = 0.12 + 0.05 * (down / RADIUS)  # the light falls in from one side
        strip += inside * (floor - strip) + 0.18 * rim
    return result


def picture(seed: int, part: int, number: int, side: int, kind: str = "") -> tuple[Plane, Mask]:
    """A picture, float32 side × side in [0, 1], and the mask of its defects, of one of `KINDS` or,
    where it is "", none."""
    rng = np.random.default_rng([seed, part, number, *map(ord, kind)])
    values, grid = plate(rng, side)
    mask = np.zeros((side, side), dtype=bool)
    if kind == "missing":
        places = [grid.nearest(*place) for place in apart(rng, side)]
        values = drilled(values, grid, places)
        for x, y in places:
            cv2.circle(mask.view(np.uint8), (round(x), round(y)), RADIUS + 1, 1, -1)
    else:
        values = drilled(values, grid)
        for x, y in apart(rng, side) if kind else []:
            spoil(rng, kind, values, mask, round(x), round(y))
    return np.clip(values, 0, 1), mask


def apart(rng: np.random.Generator, side: int) -> list[tuple[float, float]]:
    """Places for the defects of a picture, none near its border or another one."""
    found: list[tuple[float, float]] = []
    border = min(PITCH, side // 6)
    while len(found) < EACH:
        place = tuple(rng.uniform(border, side - border, 2))
        if all(np.hypot(place[0] - x, place[1] - y) > 2 * PITCH for x, y in found):
            found.append((float(place[0]), float(place[1])))
    return found


def spoil(rng: np.random.Generator, kind: str, values: Plane, mask: Mask, x: int, y: int) -> None:
    """Put one defect into a picture and its mask, at a place."""
    reach = MOST // 2 + 4
    box = (slice(y - reach, y + reach), slice(x - reach, x + reach))
    down, across = np.mgrid[-reach:reach, -reach:reach].astype(np.float32)
    part = values[box]
    if kind == "dot":
        radius = rng.uniform(LEAST, 16) / 2
        strength = np.clip(radius + 0.5 - np.hypot(across, down), 0, 1)
        goal = 0.08 if rng.random() < 0.5 else 0.95
        part += 0.85 * strength * (goal - part)
    elif kind == "scratch":
        angle, length = rng.uniform(0, np.pi), rng.uniform(24, MOST - 4)
        along = across * np.cos(angle) + down * np.sin(angle)
        beside = down * np.cos(angle) - across * np.sin(angle)
        ends = np.clip((length - 2) / 2 + 0.5 - np.abs(along), 0, 1)
        strength = ends * np.clip(2 - np.abs(beside), 0, 1)
        part += 0.35 * strength - 0.2 * ends * np.clip(1.5 - np.abs(beside - 2.5), 0, 1)
    else:
        radius = rng.uniform(24, MOST - 4) / 2
        wobble = cv2.resize(rng.standard_normal((5, 5), dtype=np.float32), (2 * reach, 2 * reach))
        strength = np.clip((radius - np.hypot(across, down) - 1.5 * np.abs(wobble)) / 4, 0, 1)
        part -= 0.25 * strength * (0.8 + 0.2 * np.abs(wobble))
    mask[box] |= strength > 0.25


def files(options: argparse.Namespace) -> Iterator[tuple[Path, int, int, str]]:
    """Of each picture its file, its part, its number there and its kind of defect."""
    ending = options.format
    for number in range(options.train):
        yield Path("train", "good", f"{number:03}.{ending}"), TRAIN, number, ""
    for number in range(options.good):
        yield Path("test", "good", f"{number:03}.{ending}"), GOOD, number, ""
    for number in range(options.defects):
        kind = KINDS[number % len(KINDS)]
        yield Path("test", kind, f"{number // len(KINDS):03}.{ending}"), BAD, number, kind


def write(file: Path, pixels: NDArray[np.uint8]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    uncompressed = [cv2.IMWRITE_TIFF_COMPRESSION, 1] if file.suffix == ".tif" else []
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if file.suffix == ".jpg" else []
    if not cv2.imwrite(str(file), pixels, uncompressed + quality):
        raise SystemExit(f"{file}: could not be written")


def make(folder: Path, options: argparse.Namespace) -> None:
    """The whole set; pictures that are there already are left as they are."""
    for file, part, number, kind in files(options):
        if (folder / file).exists():
            continue
        values, mask = picture(options.seed, part, number, options.side, kind)
        if kind:
            name = Path("ground_truth", kind, f"{file.stem}_mask.png")
            write(folder / name, mask.astype(np.uint8) * 255)
        write(folder / file, np.round(values * 255).astype(np.uint8))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("folder", type=Path)
    found.add_argument("--side", type=int, default=4096, help="of the pictures, 1024 or more")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--train", type=int, default=8, help="good pictures to learn from")
    found.add_argument("--good", type=int, default=6, help="good pictures to test on")
    found.add_argument("--defects", type=int, default=8, help="pictures with defects")
    found.add_argument("--format", choices=["tif", "png", "jpg"], default="tif")
    return found


def main() -> None:
    options = parser().parse_args()
    if options.side < 1024:
        raise SystemExit(
            f"--side {options.side}: at least 1024 pixels are needed for {EACH} defects"
        )
    make(options.folder, options)


if __name__ == "__main__":
    main()
