"""The method that is asked for, before it learns, and how pictures come to it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from blemish.backbones import build
from blemish.backbones.weights import RANDOM
from blemish.compute import pick_device, pick_precision
from blemish.data.ahead import map_ahead, of_picture
from blemish.data.cutting import chosen
from blemish.data.geometry import fitted_size
from blemish.data.pictures import Pictures
from blemish.data.stream import unreadable
from blemish.data.tiling import AUTO
from blemish.data.transforms import Preprocessing
from blemish.detector.learned import check_foreground
from blemish.detector.predict import BATCH_SIZE
from blemish.detector.request import Request
from blemish.methods import Method
from blemish.methods.capabilities import TakesSecond
from blemish.methods.student import StudentConfig, blocks_of
from blemish.training import distributed
from blemish.types import Failure

_SHAPE_PICTURES = 100  # good pictures, at most, whose shapes decide that of the input
_X_RAYS = {"nih"}  # data layouts of X-ray pictures


@dataclass(frozen=True, kw_only=True)
class Built:
    """A method before it learns, and how pictures come to it then.

    Attributes:
        device, precision: what it computes on, and in.
        why_tiles: why pictures are cut into tiles, or not, where that was chosen; else "".
    """

    method: Method
    preprocessing: Preprocessing
    device: torch.device
    precision: torch.dtype
    why_tiles: str = ""

    @property
    def scoring(self) -> Preprocessing:
        """How pictures come to it when they are scored."""
        height, width = self.method.scoring_size
        return dataclasses.replace(self.preprocessing, height=height, width=width)


def build_method(request: Request, good: Pictures, defects: Pictures) -> Built:
    """The method, with its backbone. Raises: ConfigError for what it cannot work with."""
    device = distributed.own_device(pick_device(request.device))
    precision = pick_precision(request.precision, device)
    request.progress("loading the backbone", 0, 0)
    config = request.chosen.for_pictures(x_rays=good.layout in _X_RAYS)
    backbone = build(config.backbone, weights=request.weights, seed=config.seed)
    height, width = backbone.round_size(*config.height_width)
    if request.resize == "fit":
        height, width = _fitted_size(request, good, (height, width), backbone.stride)
    layers = backbone.check_layers(config.layers or request.kind.usual_layers(backbone))
    config = dataclasses.replace(config, image_size=(height, width), layers=layers)
    preprocessing = Preprocessing(
        height=height, width=width, mean=backbone.mean, std=backbone.std, window=request.window,
        area=request.area, tiling=request.tiling, resize=request.resize,
    )  # fmt: skip
    why = ""
    if request.tile == AUTO:
        request.progress("looking whether to cut the pictures into tiles", 0, 0)
        tiling, why = chosen(good, defects, preprocessing, request.share_in_common)
        preprocessing = dataclasses.replace(preprocessing, tiling=tiling)
    method = request.kind(config, backbone)
    _join_second(request, method)
    if isinstance(request.distillation, StudentConfig):
        blocks_of(backbone, method.layers, request.distillation)
    method.set_area(preprocessing.area_of_input, framed=preprocessing.is_framed)
    if request.foreground == "auto":
        check_foreground(method)
    return Built(
        method=method,
        preprocessing=preprocessing,
        device=device,
        precision=precision,
        why_tiles=why,
    )


def _join_second(request: Request, method: Method) -> None:
    """Give the method the second encoder that its config names, if any."""
    if not isinstance(method, TakesSecond) or not method.wants_second:
        return
    request.progress("loading the second encoder", 0, 0)
    random = RANDOM if request.weights == RANDOM else None  # a file is the backbone's
    method.take_second(build(method.wants_second, weights=random, seed=method.config.seed))


def _fitted_size(
    request: Request, good: Pictures, size: tuple[int, int], step: int
) -> tuple[int, int]:
    """As `fitted_size`, of some of the good pictures, evenly from all. Raises: DataError where none
    of these can be read."""
    some = good.sources[:: -(-len(good.sources) // _SHAPE_PICTURES)]

    def look(at: int) -> tuple[int, int] | Failure:
        return of_picture(lambda picture: picture.size, some[at], at, request.window)

    found = []
    for one in map_ahead(look, range(len(some)), ahead=BATCH_SIZE):
        found.append(one)
        request.progress("looking at the shapes", len(found), len(some))
    sizes = [one for one in found if not isinstance(one, Failure)]
    if not sizes:
        failures = [one for one in found if isinstance(one, Failure)]
        raise unreadable("none of the good pictures can be read", failures)
    return fitted_size(sizes, size, step)
