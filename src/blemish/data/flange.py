"""A made part: a turned steel flange on a belt, drawn from random numbers, with drawn defects.

Nothing here is a photograph, so nobody's licence holds. Sums, products, quotients, square roots and
comparisons alone make a picture, each rounded as IEEE 754 says; the random numbers are raw words of
PCG64. So the pixels are the same on every machine, with every release of numpy; tests hold that.

Coordinates: x to the right, y down, from -1 to 1 over the picture. Colours and light are float64,
1 = white.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float64]  # H×W
Colours = npt.NDArray[np.float64]  # H×W×3
Mask = npt.NDArray[np.bool_]

RIM, HUB, BORE, HOLE, BOLTS = 0.78, 0.42, 0.19, 0.066, 0.61  # radii of the part; of the bolt circle
_KEY = 0.045  # half the width of the keyway
_SIXTHS = (
    (1.0, 0.0),
    (0.5, math.sqrt(3) / 2),
    (-0.5, math.sqrt(3) / 2),
)  # directions; the others: their minus
_STEEL, _BELT = (0.97, 1.0, 1.03), (0.86, 1.0, 0.95)  # tints
_OILS = ((0.34, 0.2, 0.1), (0.13, 0.12, 0.1), (0.2, 0.26, 0.34))  # rust, grease, burnt blue
_FIBRES = ((0.12, 0.2, 0.55), (0.75, 0.15, 0.12), (0.93, 0.92, 0.88), (0.08, 0.08, 0.08))
_FAINT = 0.2  # a defect ends where it would cover less


class Draws:
    """Random numbers of a seed, the same everywhere: the stream of a bit generator is fixed, what
    numpy makes of it may change."""

    def __init__(self, *seed: int) -> None:
        """Args: seed: whole numbers, at least 0; each adds."""
        self._source = np.random.PCG64(np.random.SeedSequence(seed))

    def __call__(self, low: float, high: float) -> float:
        """Even between two numbers."""
        return low + (high - low) * (int(self._source.random_raw()) >> 11) * 2.0**-53

    def whole(self, count: int) -> int:
        """One of 0 to count - 1."""
        return min(int(self(0, count)), count - 1)

    def plane(self, height: int, width: int) -> Plane:
        """Independent ones, even in [-1, 1)."""
        raw = self._source.random_raw(height * width) >> np.uint64(11)
        return (raw.astype(np.float64) * 2.0**-52 - 1).reshape(height, width)

    def direction(self) -> tuple[float, float]:
        """A vector of length 1, each as likely."""
        while True:
            x, y = self(-1, 1), self(-1, 1)
            if 0.01 < (square := x * x + y * y) <= 1:
                return x / math.sqrt(square), y / math.sqrt(square)


def noise(draws: Draws, side: int, down: int, across: int) -> Plane:
    """Smooth noise in [-1, 1), side × side: random corners of down × across cells between which
    values blend by 3t² - 2t³ (value noise)."""
    corners = draws.plane(down + 1, across + 1)
    (top, low), (left, right) = _between(side, down), _between(side, across)
    rows = corners[top] + (corners[top + 1] - corners[top]) * low[:, None]
    first: Plane = rows[:, left]
    return first + (rows[:, left + 1] - first) * right


def _between(count: int, cells: int) -> tuple[npt.NDArray[np.intp], Plane]:
    """Of each of `count` places its cell, and how much of the cell's end is in it."""
    at = (np.arange(count) + 0.5) * (cells / count)
    cell = np.minimum(at.astype(np.intp), cells - 1)
    part = at - cell
    return cell, part * part * (3 - 2 * part)


@dataclass(frozen=True)
class Specimen:
    """A flange before the camera's noise.

    Attributes:
        colours: H×W×3. belt: the same place without the part.
        u, v: of each pixel, in the part's own coordinates. light: where it comes from, length 1.
    """

    colours: Colours
    belt: Colours
    u: Plane
    v: Plane
    light: tuple[float, float]

    @property
    def edge(self) -> float:
        """One pixel, in the part's coordinates."""
        return 2 / len(self.u)


def specimen(draws: Draws, side: int) -> Specimen:
    """A good part: turned by at most 12°, moved by at most 4 % of the picture, under a light that
    differs a little from picture to picture, side × side pixels."""
    place = (np.arange(side) + 0.5) * (2 / side) - 1
    x, y = np.meshgrid(place, place)
    half = draws(-0.105, 0.105)  # the tangent of half the angle
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    size, across, down = draws(0.97, 1.03), draws(-0.08, 0.08), draws(-0.08, 0.08)
    u = ((x - across) * cosine + (y - down) * sine) / size
    v = ((y - down) * cosine - (x - across) * sine) / size
    light = (-0.6 + draws(-0.1, 0.1), -0.8 + draws(-0.1, 0.1))
    ramp = draws(0.9, 1.1) * (1 + draws(-0.08, 0.08) * x + draws(-0.08, 0.08) * y)
    belt = _belt(draws, x, y, u, v, light)
    steel, cover = _steel(draws, u, v, light)
    colours = belt + cover[..., None] * (steel[..., None] * np.array(_STEEL) - belt)
    return Specimen(colours * ramp[..., None], belt * ramp[..., None], u, v, light)


def _belt(
    draws: Draws, x: Plane, y: Plane, u: Plane, v: Plane, light: tuple[float, float]
) -> Colours:
    """A ribbed rubber belt, on which the part throws a soft shadow."""
    side = len(x)
    values = np.full_like(x, 0.3 + draws(-0.03, 0.03))
    for cells, strength in ((3, 0.03), (9, 0.025), (40, 0.03), (side // 2, 0.035)):
        values += strength * noise(draws, side, cells, cells)
    ribs = (x + 0.35 * y + draws(0, 1)) * 14
    values += 0.035 * (np.abs(2 * (ribs - np.floor(ribs)) - 1) - 0.5)
    away = _length(u + 0.05 * light[0], v + 0.05 * light[1]) - RIM
    dark = np.clip(1 - away / 0.1, 0, 1)
    values *= 1 - 0.55 * dark * dark
    belt: Colours = values[..., None] * np.array(_BELT)
    return belt


def _steel(draws: Draws, u: Plane, v: Plane, light: tuple[float, float]) -> tuple[Plane, Plane]:
    """The turned face, and how much of each pixel it covers, in [0, 1]."""
    side = len(u)
    edge = 2 / side
    radius = _length(u, v)
    out = (u / (radius + 1e-9), v / (radius + 1e-9))
    toward = out[0] * light[0] + out[1] * light[1]
    square = toward * toward
    values = 0.56 + 0.2 * square * square * square  # turned metal shines along the light
    grooves = draws.plane(1, 400)[0]
    at = np.clip(radius, 0, 1) * 390
    cell = at.astype(np.intp)
    values += 0.025 * (grooves[cell] + (grooves[cell + 1] - grooves[cell]) * (at - cell))
    values += 0.02 * noise(draws, side, 5, 5) + 0.012 * noise(draws, side, side // 2, side // 2)
    values -= 0.3 * np.clip(1 - np.abs(radius - 0.475) / 0.018, 0, 1)  # a groove
    for ring, width, slope in (
        (RIM - 0.02, 0.022, 0.3),
        (HUB, 0.025, 0.22),
        (BORE + 0.02, 0.02, -0.3),
    ):
        values += slope * toward * np.clip(2 - 2 * np.abs(radius - ring) / width, 0, 1)
    bore = np.minimum(radius - BORE, np.maximum(np.abs(u) - _KEY, np.maximum(-v, v - BORE - 0.07)))
    inside = np.minimum(RIM - radius, bore)
    for across, down in (*_SIXTHS, *((-x, -y) for x, y in _SIXTHS)):
        du, dv = u - BOLTS * across, v - BOLTS * down
        away = _length(du, dv)
        chamfer = np.clip(2 - 2 * np.abs(away - HOLE - 0.012) / 0.014, 0, 1)
        values -= 0.28 * chamfer * (du * light[0] + dv * light[1]) / (away + 1e-9)
        inside = np.minimum(inside, away - HOLE)
    return values, np.clip(inside / edge + 0.5, 0, 1)


def _length(x: Plane, y: Plane) -> Plane:
    length: Plane = np.sqrt(x * x + y * y)
    return length


# --- defects: each gives what a pixel becomes, and how much of it is covered, in [0, 1]


def _scratch(draws: Draws, part: Specimen) -> tuple[Colours, Plane]:
    """A bent line, bright in the middle and dark beside."""
    x, y = _place(draws)
    across, down = draws.direction()
    length, bend, width = draws(0.15, 0.5), draws(-0.5, 0.5), draws(0.006, 0.016)
    along = (part.u - x) * across + (part.v - y) * down
    beside = (part.v - y) * across - (part.u - x) * down - bend * (along * along - 0.1)
    width = width + part.edge / 2
    ends = np.clip((length / 2 - np.abs(along)) / 0.05, 0, 1)
    core = np.clip(1.5 - np.abs(beside) / width, 0, 1)
    flank = np.clip(1.5 - np.abs(beside - 2 * width) / width, 0, 1)
    change = draws(0.14, 0.4) * core - 0.14 * flank
    return part.colours + change[..., None], ends * np.maximum(core, flank)


def _dent(draws: Draws, part: Specimen) -> tuple[Colours, Plane]:
    """A hollow: dark towards the light, bright on the other side."""
    x, y = _place(draws)
    radius = draws(0.05, 0.11)
    du, dv = (part.u - x) / radius, (part.v - y) / (radius * draws(0.8, 1.2))
    away = _length(du, dv)
    slope = (du * part.light[0] + dv * part.light[1]) * np.clip(2 - 2 * away, 0, 1)
    change = -draws(0.45, 0.9) * slope - 0.05
    return part.colours + change[..., None], np.clip(3 - 3 * away, 0, 1)


def _stain(draws: Draws, part: Specimen) -> tuple[Colours, Plane]:
    """A blot with a ragged edge: rust, grease or a burn."""
    x, y = _place(draws)
    radius, side = draws(0.07, 0.19), len(part.u)
    ragged = 0.35 * noise(draws, side, 9, 9) + 0.25 * noise(draws, side, 31, 31)
    away = _length(part.u - x, part.v - y) / radius + ragged
    colour = np.array(_OILS[draws.whole(len(_OILS))])
    return np.broadcast_to(colour, part.colours.shape), draws(0.35, 0.75) * np.clip(
        3 - 3 * away, 0, 1
    )


def _missing_piece(draws: Draws, part: Specimen) -> tuple[Colours, Plane]:
    """A piece broken out of the rim: the belt is seen."""
    across, down = draws.direction()
    radius, side = draws(0.06, 0.16), len(part.u)
    away = _length(part.u - RIM * across, part.v - RIM * down) / radius
    away += 0.22 * noise(draws, side, 14, 14)
    inside = np.clip((RIM - _length(part.u, part.v)) / part.edge, 0, 1)
    return 0.75 * part.belt, np.clip(6 - 6 * away, 0, 1) * inside


def _contamination(draws: Draws, part: Specimen) -> tuple[Colours, Plane]:
    """A fibre of some colour that lies in a curl, and a few specks."""
    colour = np.array(_FIBRES[draws.whole(len(_FIBRES))])
    x, y = _place(draws)
    cover = np.zeros_like(part.u)
    across, down = draws.direction()
    turn, width = draws(-0.35, 0.35), 0.005 + part.edge / 2
    for _ in range(6 + draws.whole(8)):  # short pieces, each turned a little more
        ends = (x + 0.05 * across, y + 0.05 * down)
        along = np.clip(((part.u - x) * across + (part.v - y) * down) / 0.05, 0, 1) * 0.05
        away = _length(part.u - x - along * across, part.v - y - along * down)
        cover = np.maximum(cover, np.clip(1.5 - away / width, 0, 1))
        (x, y), scale = ends, 1 / math.sqrt(1 + turn * turn)
        across, down = (across - turn * down) * scale, (down + turn * across) * scale
    for _ in range(draws.whole(5)):
        radius = draws(0.008, 0.02) + part.edge / 2
        away = _length(part.u - x - draws(-0.12, 0.12), part.v - y - draws(-0.12, 0.12))
        cover = np.maximum(cover, np.clip(2 - 2 * away / radius, 0, 1))
    return np.broadcast_to(colour, part.colours.shape), 0.85 * cover


def _place(draws: Draws) -> tuple[float, float]:
    """Somewhere on the steel: on the flange or on the hub, not in a hole."""
    while True:
        x, y = draws(-RIM, RIM), draws(-RIM, RIM)
        radius = math.sqrt(x * x + y * y)
        bolts = [(abs(x) - BOLTS * across, abs(y) - BOLTS * down) for across, down in _SIXTHS[:2]]
        far = min(math.sqrt(across * across + down * down) for across, down in bolts)
        if BORE + 0.09 < radius < RIM - 0.06 and far > HOLE + 0.02:
            return x, y


DEFECTS: dict[str, Callable[[Draws, Specimen], tuple[Colours, Plane]]] = {
    "scratch": _scratch,
    "dent": _dent,
    "stain": _stain,
    "missing_piece": _missing_piece,
    "contamination": _contamination,
}


@dataclass(frozen=True)
class Picture:
    """Attributes:
    pixels: uint8 H×W×3, RGB. mask: H×W, exactly where it differs from the same part without a
        defect.
    """

    pixels: npt.NDArray[np.uint8]
    mask: Mask


def picture(seed: int, part: int, number: int, side: int, defect: str = "") -> Picture:
    """One picture. The defect has random numbers of its own: without it the same part is drawn.

    Args:
        seed, part, number: what the part is drawn from, at least 0.
        side: pixels, at least 32.
        defect: a name of `DEFECTS`, or "" for a good part.
    Example:
        >>> good, bad = picture(0, 1, 2, 64), picture(0, 1, 2, 64, "dent")
        >>> differs = (good.pixels != bad.pixels).any(axis=2)
        >>> bool((differs == bad.mask).all()), bool(bad.mask.any()), bool(good.mask.any())
        (True, True, False)
    """
    draws = Draws(seed, part, number)
    made = specimen(draws, side)
    grain = sum((draws.plane(side, side) for _ in range(3)), start=np.zeros((side, side)))
    good = _developed(made.colours, grain)
    if not defect:
        return Picture(good, np.zeros((side, side), dtype=bool))
    draws = Draws(seed, part, number, 1 + list(DEFECTS).index(defect))
    while True:
        colours, cover = DEFECTS[defect](draws, made)
        cover = np.where(cover < _FAINT, 0, cover)
        mask: Mask = cover > 0
        if mask.sum() >= 6:
            break
    bad = _developed(made.colours + cover[..., None] * (colours - made.colours), grain)
    same = mask & (good == bad).all(axis=2)  # by chance; the mask is to say what differs
    bad[same] += np.where(bad[same] < 128, 1, -1).astype(np.uint8)
    return Picture(np.where(mask[..., None], bad, good), mask)


def _developed(colours: Colours, grain: Plane) -> npt.NDArray[np.uint8]:
    """What a camera makes of light: its noise, and 8 bits."""
    values = np.clip(colours + 0.008 * grain[..., None], 0, 1) * 255
    return np.floor(values + 0.5).astype(np.uint8)
