"""Self-supervised pre-training of an encoder on pictures of good parts (APMask): its run, its health, its file.

What `blemish pretrain` writes, for an encoder called `encoder.safetensors`:

    encoder.safetensors   the weights by timm's names, and in the header a manifest of how they came about
    encoder.log.jsonl     a line a step: {"step", "steps", "loss", the readings of `APMask`}; and after the first step
                          and every eighth of the run {"step", "attention"}, where the encoder looks in one picture
    encoder.health.png    the same as a figure
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from io import BufferedRandom
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blemish import artifact
from blemish import config as configs
from blemish.backbones import Backbone, WeightsInfo, build
from blemish.compute import pick_device, pick_precision, precision_name
from blemish.data.good import good_pictures
from blemish.data.stream import PictureStream, of_picture
from blemish.data.transforms import Preprocessing, prepare
from blemish.detector.manifest import (
    BackboneRecord,
    Broken,
    EncoderManifest,
    Pretrained,
    Pretraining,
    TrainingRecord,
)
from blemish.errors import CollapseError, ConfigError, DataError, NonFiniteError, unknown_name
from blemish.files import ROWS_BYTES, cannot_write, open_regular, write_whole
from blemish.methods.apmask import APMask, APMaskConfig
from blemish.report.heatmap import attention_overlay
from blemish.training import distributed, train
from blemish.types import Failure, Progress, silent

_LOOKS = 8  # how often the fixed picture's attention is logged, after the first step
_TITLES = {
    "loss": "loss",
    "assignment_entropy": "entropy of the targets / log K",
    "prototype_usage": "prototypes in use",
    "agreement": "agreement of teacher and student",
    "feature_spread": "spread of the features",
    "projection_spread": "spread of the head's features",
}


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A pre-trained encoder, made by `blemish.pretrain`.

    Attributes:
        backbone: in evaluation mode, frozen.
        manifest: everything that its file says of itself (JSON-ready): "backbone" has the weights that it started
            from, "training" how it went, "data" the pictures and those that could not be read.
    """

    backbone: Backbone
    manifest: Mapping[str, Any]

    def save(self, path: str | Path) -> Path:
        """Write it as a safetensors file, whole or not at all, that every method takes as its `weights`.

        Raises: OutputError.
        """
        return artifact.write(path, _tensors(self.backbone), self.manifest)


def configure(
    *,
    recipe: str = "best",
    values: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> APMaskConfig:
    """The config of a pre-training: a recipe, then `values`, then key=value `assignments`.

    Raises: ConfigError for an unknown recipe or key (the nearest name is suggested) or a bad value.

    Example:
        >>> configure(values={"masking": "random"}, assignments=["mask_ratio=0.5"]).mask_ratio
        0.5
    """
    recipes = APMaskConfig.recipes()
    if recipe not in recipes:
        raise unknown_name(f"recipe of {APMask.name}", recipe, recipes)
    return configs.override(
        configs.from_dict(APMaskConfig, values or {}, base=recipes[recipe]()), assignments
    )


def pretrain(
    good: Any,
    *,
    recipe: str = "best",
    config: APMaskConfig | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
    window: tuple[float, float] | None = None,
    device: str = "auto",
    precision: str = "auto",
    time_budget: float | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    log: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Encoder:
    """An encoder pre-trained further on good pictures, without labels; any method takes its file as `weights`.

    Bozorgtabar and Mahapatra 2023, "Attention-Conditioned Augmentations for Self-Supervised Anomaly Detection and
    Localization" (APMask). See `blemish.methods.apmask`.

    Args:
        good, window, device, precision: as of `blemish.fit`; all of the pictures are learned from.
        recipe, settings: the recipe and single settings of it, as `backbone="focus_vits14"`, `masking="random"`; or
            `config`, a whole config object.
        weights: what it starts from: a local weights file instead of the backbone's own source, or "random".
        seed: of everything random.
        time_budget: minutes that it may take; its schedules are shaped to end there.
        checkpoint: file in which it is kept so that it can be gone on from; None = nowhere. It stays when the training
            is done: whoever has saved the encoder removes it.
        resume: go on from the checkpoint.
        log: a JSON-lines file that gets a line a step, with a figure beside it (`figure_of`) at the end, or where the
            training fails; None = neither.
        progress: called with (stage, done, total).
    Raises: ConfigError, WeightsError; DataError when there is no usable picture; CollapseError when all pictures come
        to look alike to it; OutputError for a log or checkpoint that cannot be written.

    Example:
        >>> import blemish, numpy as np
        >>> good = [np.random.default_rng(i).integers(256, size=(32, 32, 3), dtype=np.uint8) for i in range(4)]
        >>> tiny = {"backbone": "test_vit", "picture_size": 32, "image_size": 32, "local_size": 16, "hidden": 8}
        >>> encoder = blemish.pretrain(good, weights="random", epochs=1, min_steps=1, train_batch_size=4, **tiny)
        >>> encoder.manifest["training"]["steps"]
        1
    """
    started = time.perf_counter()
    if config is not None and (settings or recipe != "best"):
        raise ConfigError("give either a whole config, or a recipe and single settings, not both")
    chosen = config if config is not None else configure(recipe=recipe, values=settings)
    chosen = chosen if seed is None else dataclasses.replace(chosen, seed=seed)
    if window is not None and not window[0] < window[1]:
        raise ConfigError(f"window: two numbers (lo, hi) with lo < hi are needed, got {window}")
    pictures = good_pictures(good)
    torch_device = distributed.own_device(pick_device(device))
    dtype = pick_precision(precision, torch_device)
    progress("loading the backbone", 0, 0)
    backbone = build(chosen.backbone, weights=weights, seed=chosen.seed).to(torch_device)
    side = chosen.picture_size
    preprocessing = Preprocessing(
        height=side, width=side, mean=backbone.mean, std=backbone.std, window=window
    )
    stream = PictureStream(pictures.sources, preprocessing, batch_size=chosen.train_batch_size)
    backbone, told = pretrained(
        backbone,
        stream,
        chosen,
        precision=dtype,
        minutes=time_budget,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        resume=resume,
        log=None if log is None else Path(log),
        progress=progress,
    )
    record = EncoderManifest(
        **artifact.provenance(),
        pretraining=told.method,
        recipe=recipe if config is None else None,
        config=told.config,
        preprocessing=told.preprocessing,
        backbone=BackboneRecord(spec=backbone.spec, weights=told.weights),
        seed=chosen.seed,
        precision=told.precision,
        device=torch_device.type,
        seconds=round(time.perf_counter() - started, 3),
        training=told.training,
        data=Pretrained(
            layout=pictures.note,
            count=len(stream.digests),
            fingerprint=hashlib.sha256(
                "".join(sorted(stream.digests.values())).encode()
            ).hexdigest(),
            failures=tuple(
                Broken(path=each.source, error=each.reason)
                for _, each in sorted(stream.failures.items())
            ),
        ),
    )
    return Encoder(backbone=backbone, manifest=record.to_dict())


def pretrained(
    backbone: Backbone,
    stream: PictureStream,
    config: APMaskConfig,
    *,
    precision: torch.dtype,
    minutes: float | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    log: Path | None = None,
    progress: Progress = silent,
) -> tuple[Backbone, Pretraining]:
    """The backbone pre-trained on the pictures of a stream, in evaluation mode and frozen, and how that went.

    Args:
        backbone: on the device that it is trained on; not to be used any more.
        stream: the pictures, which come as squares of `config.picture_size` whatever it says of size, angles and
            mirroring. Those that cannot be read and the digests of the others are noted in it.
        precision: bf16 or fp32.
        minutes, checkpoint, resume: as of `training.train`. log: as of `pretrain`.
    Returns: the backbone, whose `info` names what it was before; and how it was trained.
    Raises: as `pretrain`.
    """
    learner = APMask(config, backbone).to(next(backbone.parameters()).device)
    learner.set_precision(precision)
    side = learner.config.picture_size
    preprocessing = dataclasses.replace(stream.preprocessing, height=side, width=side)
    squares = dataclasses.replace(stream, preprocessing=preprocessing, rotations=1, flips=False)
    before = backbone.info
    identity = {
        "method": learner.name,
        "config": configs.to_dict(learner.config),
        "preprocessing": configs.to_dict(preprocessing),
        "weights": before.sha256,
        "precision": precision_name(learner.precision),
    }
    with _logged(log, learner, squares) as watch:
        training = train(
            learner,
            squares,
            seed=config.seed,
            identity=identity,
            minutes=minutes,
            checkpoint=checkpoint,
            resume=resume,
            progress=progress,
            watch=watch,
        )
    after = learner.backbone.eval().requires_grad_(False)
    after.info = WeightsInfo(
        source=f"pretrained:{learner.name} on {before.source}",
        sha256=_digest(_tensors(after)),
        licence=before.licence,
    )
    told = Pretraining(
        method=learner.name,
        config=configs.to_dict(learner.config),
        preprocessing=preprocessing,
        weights=before,
        precision=precision_name(learner.precision),
        training=configs.from_dict(TrainingRecord, training.to_dict()),
    )
    return after, told


def figure_of(log: Path) -> Path:
    """Where the figure of a log lies.

    Example:
        >>> figure_of(Path("encoder.log.jsonl")).name
        'encoder.health.png'
    """
    return log.with_name(log.name.removesuffix(".jsonl").removesuffix(".log") + ".health.png")


def read_log(path: Path) -> tuple[dict[str, array[float]], dict[int, npt.NDArray[np.float64]]]:
    """What a log holds: by name the values of all steps ("step" among them), and by step the attention h w."""
    curves: dict[str, array[float]] = {}
    attention: dict[int, npt.NDArray[np.float64]] = {}
    with open_regular(path, limit=ROWS_BYTES, error=DataError) as file:
        for row in map(json.loads, file):
            if "attention" in row:
                attention[row["step"]] = np.array(row["attention"])
            else:
                for name, value in row.items():
                    curves.setdefault(name, array("d")).append(value)
    return curves, attention


@contextmanager
def _logged(path: Path | None, learner: APMask, stream: PictureStream) -> Iterator[_Log | None]:
    """What `train` is to call after every step; the figure is drawn at the end, a bad one too."""
    if path is None or distributed.rank() != 0:
        yield None
        return
    with closing(_Log(path, learner, stream)) as log:
        try:
            yield log
        except (CollapseError, NonFiniteError) as error:
            if not log.began:
                raise
            log.draw()
            raise type(error)(f"{error}\n  how it came about: {figure_of(path)}") from error
        log.draw()


class _Log:
    """Writes down how a pre-training is doing, step by step."""

    def __init__(self, path: Path, learner: APMask, stream: PictureStream) -> None:
        self._path = path
        self._learner = learner
        self._stream = stream
        self._file: BufferedRandom | None = None

    @property
    def began(self) -> bool:
        return self._file is not None

    def __call__(self, step: int, steps: int, loss: float) -> None:
        rows: list[dict[str, Any]] = [
            {"step": step, "steps": steps, "loss": loss, **self._learner.readings}
        ]
        if step == 1 or step * _LOOKS // steps > (step - 1) * _LOOKS // steps:
            (seen,) = self._learner.attention(
                self._picture[None].to(_device(self._learner))
            ).tolist()
            rows.append(
                {
                    "step": step,
                    "attention": [[float(f"{value:.5g}") for value in line] for line in seen],
                }
            )
        try:
            if self._file is None:
                self._file = _from_step(self._path, step)
            self._file.write(
                "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
            )
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def draw(self) -> None:
        """The figure of all steps in the file."""
        from blemish.report import figures  # not for every fit: matplotlib takes time and memory

        if (
            not self._path.exists()
        ):  # removed by the user, and a resumed training had no step left to take
            return
        curves, attention = read_log(self._path)
        mean, std = (
            np.array(values)
            for values in (self._stream.preprocessing.mean, self._stream.preprocessing.std)
        )
        colours = self._picture.permute(1, 2, 0).numpy() * std + mean
        picture = np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)
        tiles = [("the picture", picture)]
        tiles += [
            (f"step {step:,}", attention_overlay(picture, seen)) for step, seen in attention.items()
        ]
        shown = {title: curves[name] for name, title in _TITLES.items() if name in curves}
        write_whole(figure_of(self._path), figures.health(curves["step"], shown, tiles))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @cached_property
    def _picture(self) -> Tensor:
        """The first picture that can be read, 3 H W, as a global view would have it."""
        height, width = self._learner.global_size
        preprocessing = dataclasses.replace(self._stream.preprocessing, height=height, width=width)
        for index, source in enumerate(self._stream.sources):
            window = preprocessing.decode_window()
            image = of_picture(partial(prepare, preprocessing=preprocessing), source, index, window)
            if not isinstance(image, Failure):
                return image
        raise DataError("no training picture can be read any more")


def _from_step(path: Path, step: int) -> BufferedRandom:
    """The log, open for writing after the lines of all steps before `step`.

    Those of later steps come again, and a line may be torn where the process was killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
    file.seek(0)
    kept = 0
    for line in file:
        try:
            earlier = line.endswith(b"\n") and json.loads(line)["step"] < step
        except (ValueError, TypeError, KeyError):
            earlier = False
        if not earlier:
            break
        kept += len(line)
    file.truncate(kept)
    return file


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    """The weights by timm's names, float32 on the CPU."""
    return {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in backbone.model.state_dict().items()
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _device(learner: APMask) -> torch.device:
    return next(learner.backbone.parameters()).device
