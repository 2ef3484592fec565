"""Synthetic anomalies for a person to judge by eye, and for others to use.

A folder of them holds, for every picture drawn (n counts from 1)

    <n>_<stem>.png         the picture with its anomaly, 8 bit
    <n>_<stem>_mask.png    255 where it is anomalous, 0 elsewhere
    contact-sheet.png      a row a picture: original, attention, result, mask; then
                           contact-sheet-2.png and so on
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from blemish.anomalies import Synthetic, simulate_batch, simulator
from blemish.backbones import VitBackbone, build
from blemish.compute import pick_device, pick_precision
from blemish.data.ahead import map_ahead, of_picture
from blemish.data.pictures import good_pictures
from blemish.data.splits import few_shot
from blemish.data.stream import unreadable
from blemish.data.transforms import Preprocessing, prepare
from blemish.errors import ConfigError, OutputError
from blemish.files import check_writable, taken_back, write_whole
from blemish.images import Picture
from blemish.methods.adaptation import attention_entropy
from blemish.report.heatmap import ATTENTION_SCALE, attention_overlay, save_png
from blemish.report.predictions import safe_stem
from blemish.types import Failure, Progress, silent

FLAT = 0.99  # an entropy above this guides nothing
ROWS = 8  # of a contact sheet
_PAPER = "#e6e6e6"  # pictures are often white at their edges
# In pixels: the longer side of a picture on the sheet, what is left free, and the letters.
_TILE, _GAP, _TEXT = 320, 12, 18

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What was made.

    Attributes:
        simulator: its name.
        files: everything written: of each contact sheet the single pictures with their masks, then
            the sheet.
        entropy: of the attention that guided, mean over the pictures, in units of log N: 1 = it
            looks everywhere alike. None where none was needed.
        failures: the pictures that were drawn but could not be read.
    """

    simulator: str
    files: tuple[Path, ...]
    entropy: float | None
    failures: tuple[Failure, ...]

    @property
    def guides_nothing(self) -> bool:
        """Whether attention was needed, but is nearly flat."""
        return self.entropy is not None and self.entropy > FLAT

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready document."""
        files = [str(file) for file in self.files]
        return {
            **vars(self),
            "files": files,
            "failures": [failure.to_dict() for failure in self.failures],
        }


def simulate(
    good: Any,
    folder: str | Path,
    *,
    name: str = "guided",
    count: int = 16,
    seed: int = 0,
    backbone: str = "dinov2_vits14",
    weights: str | Path | None = None,
    image_size: Sequence[int] = (448,),
    guide_layers: Sequence[int] = (),
    window: tuple[float, float] | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = silent,
) -> Simulation:
    """Make synthetic anomalies in good pictures, as methods that learn from them see them.

    Args:
        good, window: as of `blemish.fit`.
        name: a simulator of `blemish.anomalies`. One that needs a second picture takes it from the
            same contact sheet.
        count: pictures to draw by the seed; all where there are fewer.
        backbone, weights, guide_layers, device, precision: of the [CLS] attention that guides, mean
            over the heads and the layers (none given = the last one); unused without attention.
        image_size: height and width (or one number for both) that pictures are brought to; rounded
            to what the backbone divides where there is one.
    Raises: DataError without a readable picture; OutputError where a contact sheet is already.
    """
    chosen = simulator(name)
    if count < 1:
        raise ConfigError(f"count: at least 1 picture is needed, got {count}")
    if _sheet(folder, 1).exists():
        raise OutputError(f"{folder}: holds a contact sheet already; name another folder")
    pictures = good_pictures(good)
    every, paths = range(len(pictures.sources)), [sample.path for sample in pictures.samples]
    positions = few_shot(every, min(count, len(every)), seed, path=lambda at: paths[at])
    drawn = [pictures.sources[position] for position in positions]
    check_writable(_sheet(folder, 1), picture=True)
    size, maps = (image_size[0], image_size[-1]), None
    if chosen.needs_attention:
        progress("loading the backbone", 0, 0)
        guide = _Guide(backbone, weights, guide_layers, seed, device, precision)
        size = guide.size_near(*size)
    files, failures, entropies = list[Path](), list[Failure](), list[float]()
    pages = _pages(drawn, size, window, seed, failures, progress)
    with _whole(files, len(drawn)):
        for number, page in enumerate(pages, start=1):
            images = torch.stack([each.image for each in page])
            if chosen.needs_attention:
                attention = guide(images)
                entropies += attention_entropy(attention.flatten(1)).tolist()
                maps = attention.numpy()
            pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
            made = simulate_batch([chosen], pixels, maps, [each.seed for each in page])
            files.extend(_write(_sheet(folder, number), page, made, maps))
    if not files:
        raise unreadable(f"none of the {len(drawn)} pictures drawn can be read", failures)
    entropy = sum(entropies) / len(entropies) if entropies else None
    return Simulation(simulator=name, files=tuple(files), entropy=entropy, failures=tuple(failures))


@contextmanager
def _whole(files: list[Path], pictures: int) -> Iterator[None]:
    """Where what is inside fails, the files go: a folder that has a contact sheet is refused, and
    without one its pictures would be taken for those of parts."""
    try:
        yield
    except BaseException as error:
        for file in files:
            file.unlink(missing_ok=True)
        if isinstance(error, OutputError):
            written = sum(file.name.endswith("_mask.png") for file in files)
            raise taken_back(error, written, pictures) from error
        raise


@dataclass(frozen=True)
class _Drawn:
    """A picture: its number from 1, where it comes from, float32 3 H W in [0, 1], and the seed of
    its anomaly."""

    number: int
    source: str
    image: Tensor
    seed: int


def _pages(
    drawn: Sequence[Any],
    size: tuple[int, int],
    window: tuple[float, float] | None,
    seed: int,
    failures: list[Failure],
    progress: Progress,
) -> Iterator[list[_Drawn]]:
    """The pictures of a contact sheet at a time; those that cannot be read join `failures`."""
    seeds = np.random.default_rng(seed).integers(2**62, size=len(drawn)).tolist()
    # Not normalised: simulators work on pixels.
    as_pixels = Preprocessing(
        height=size[0], width=size[1], mean=(0.0,) * 3, std=(1.0,) * 3, window=window
    )

    def load(index: int) -> _Drawn | Failure:
        def needed(picture: Picture) -> _Drawn:
            pixels = torch.from_numpy(prepare(picture, as_pixels))
            return _Drawn(index + 1, picture.source, pixels, seeds[index])

        return of_picture(needed, drawn[index], index, window)

    page: list[_Drawn] = []
    for done, one in enumerate(map_ahead(load, range(len(drawn)), ahead=ROWS), start=1):
        if isinstance(one, Failure):
            failures.append(one)
        else:
            page.append(one)
        if len(page) == ROWS or (page and done == len(drawn)):
            yield page
            page = []
        progress("simulating", done, len(drawn))


class _Guide:
    """What the [CLS] token of a frozen backbone looks at, mean over heads and layers."""

    def __init__(
        self,
        name: str,
        weights: str | Path | None,
        layers: Sequence[int],
        seed: int,
        device: str,
        precision: str,
    ) -> None:
        chosen = pick_device(device)
        backbone = build(name, weights=weights, seed=seed)
        if not isinstance(backbone, VitBackbone) or backbone.model.cls_token is None:
            raise ConfigError(
                f"attention guides, and {name} has none: choose a ViT with a [CLS] token, "
                "or cutpaste"
            )
        self.layers = backbone.check_layers(tuple(layers) or (backbone.depth,))
        self.backbone = backbone.to(chosen, pick_precision(precision, chosen)).eval()
        self._device = chosen

    def size_near(self, height: int, width: int) -> tuple[int, int]:
        """A size that the backbone divides. Raises: ConfigError for one of a single patch."""
        height, width = self.backbone.round_size(height, width)
        if max(height, width) == self.backbone.stride:
            raise ConfigError(
                f"image_size {height}×{width}: the backbone sees one patch and looks nowhere else"
            )
        return height, width

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Of pictures B 3 H W in [0, 1]: B h w, sum 1, on the CPU."""
        colours = self.backbone.mean, self.backbone.std
        mean, std = (torch.tensor(values)[:, None, None] for values in colours)
        normalised = ((images - mean) / std).to(self._device)
        return self.backbone.guidance(normalised, self.layers).cpu()


def _sheet(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"contact-sheet{'' if number == 1 else f'-{number}'}.png"


def _write(
    sheet: Path, page: Sequence[_Drawn], made: Sequence[Synthetic], maps: np.ndarray | None
) -> Iterator[Path]:
    """The pictures with their masks and then their contact sheet, as files, each as it is written.

    Args: maps: the attention that guided, B h w; None where none was needed.
    """
    rows: list[list[Pixels]] = []
    for index, (one, synthetic) in enumerate(zip(page, made, strict=True)):
        original = _as_uint8(one.image.permute(1, 2, 0).numpy())
        result, mask = _as_uint8(synthetic.image), synthetic.mask.astype(np.uint8) * 255
        stem = f"{one.number}_{safe_stem(one.source)}"
        encoded = cv2.imencode(".png", mask)[1].tobytes()
        yield save_png(sheet.with_name(f"{stem}.png"), result)
        yield write_whole(sheet.with_name(f"{stem}_mask.png"), encoded, picture=True)
        looked_at = [] if maps is None else [attention_overlay(original, maps[index])]
        rows.append([original, *looked_at, result, np.repeat(mask[..., None], 3, axis=2)])
    low, high = ATTENTION_SCALE
    # The font has no ×.
    seen = [] if maps is None else [f"attention, {low:g} to {high:g} times its mean"]
    columns = ["original", *seen, "with anomaly", "mask"]
    yield save_png(sheet, _contact_sheet(columns, [one.number for one in page], rows))


def _as_uint8(image: np.ndarray) -> Pixels:
    """Float in [0, 1], rounded to the nearest of 0…255."""
    return np.asarray(np.rint(image * 255), dtype=np.uint8)


def _contact_sheet(
    columns: Sequence[str], numbers: Sequence[int], rows: Sequence[Sequence[Pixels]]
) -> Pixels:
    """Pictures of one size in rows, with the columns' names above and the rows' numbers beside."""
    height, width = rows[0][0].shape[:2]
    factor = _TILE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST_EXACT
    font = ImageFont.load_default(_TEXT)
    cell = max([size[0], *(round(font.getlength(name)) for name in columns)]) + _GAP
    left = round(font.getlength(str(numbers[-1]))) + 2 * _GAP
    top = _TEXT + 2 * _GAP
    sheet = Image.new(
        "RGB", (left + len(columns) * cell, top + len(rows) * (size[1] + _GAP)), _PAPER
    )
    pen = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        pen.text((left + column * cell, _GAP), name, fill="black", font=font)
    for row, (number, tiles) in enumerate(zip(numbers, rows, strict=True)):
        y = top + row * (size[1] + _GAP)
        pen.text((_GAP, y), str(number), fill="black", font=font)
        for column, tile in enumerate(tiles):
            drawn = Image.fromarray(cv2.resize(tile, size, interpolation=interpolation))
            sheet.paste(drawn, (left + column * cell, y))
    return np.asarray(sheet)
