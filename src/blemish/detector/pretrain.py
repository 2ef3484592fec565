"""Self-supervised pre-training of an encoder on pictures of good parts (APMask): its run, its log,
its file.

What `blemish pretrain` writes, for an encoder called `encoder.safetensors`:

    encoder.safetensors   the weights by timm's names, and in the header a manifest of how they came
                          about
    encoder.log.jsonl     a line a step: {"step", "steps", "loss", the readings of `APMask`}; and
                          after the first step and every eighth of the run {"step", "attention"},
                          where the encoder looks in one picture; with the first of these "picture",
                          that picture as a PNG file in base 64
    encoder.health.png    the same as a figure (`blemish.report.health`)
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from io import BufferedRandom
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from blemish import artifact
from blemish import config as configs
from blemish.backbones import Backbone, WeightsInfo, build
from blemish.compute import pick_device, pick_precision, precision_name
from blemish.data.pictures import good_pictures
from blemish.data.stream import Found, PictureStream, fingerprint, of_picture
from blemish.data.transforms import Preprocessing, prepare
from blemish.detector.manifest import (
    BackboneRecord,
    EncoderManifest,
    Pretrained,
    Pretraining,
    broken,
)
from blemish.errors import ConfigError, DataError, unknown_name
from blemish.files import cannot_write
from blemish.methods.apmask import APMask, APMaskConfig
from blemish.training import distributed, train
from blemish.types import Failure, Progress, silent

_LOOKS = 8  # how often the fixed picture's attention is logged, after the first step


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A pre-trained encoder, made by `blemish.pretrain`.

    Attributes:
        backbone: in evaluation mode, frozen.
        record: everything that its file says of itself: `backbone` has the weights that it started
            from, `training` how it went, `data` the pictures and those that could not be read.
    """

    backbone: Backbone
    record: EncoderManifest

    @property
    def manifest(self) -> dict[str, Any]:
        """The record, JSON-ready."""
        return self.record.to_dict()

    def save(self, path: str | Path) -> Path:
        """Write it as a safetensors file, whole or not at all, that every method takes as its
        `weights`.

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
    """An encoder pre-trained further on good pictures, without labels; any method takes its file as
    `weights`.

    Bozorgtabar and Mahapatra 2023, "Attention-Conditioned Augmentations for Self-Supervised Anomaly
    Detection and Localization" (APMask). See `blemish.methods.apmask`.

    Args:
        good, window, device, precision: as of `blemish.fit`; all of the pictures are learned from.
        recipe, settings: the recipe and single settings of it, as `backbone="focus_vits14"`,
            `masking="random"`; or `config`, a whole config object.
        weights: what it starts from: a local weights file instead of the backbone's own source, or
            "random".
        seed: of everything random.
        time_budget: minutes that it may take; its schedules are shaped to end there.
        checkpoint: file in which it is kept so that it can be gone on from; None = nowhere. It
            stays when the training is done: whoever has saved the encoder removes it.
        resume: go on from the checkpoint.
        log: a JSON-lines file that gets a line a step; None = none. `blemish.report.health` draws
            it.
        progress: called with (stage, done, total).
    Raises: ConfigError, WeightsError; DataError when there is no usable picture; CollapseError when
        all pictures come to look alike to it; OutputError for a log or checkpoint that cannot be
        written.

    Example:
        >>> import blemish, numpy as np
        >>> draw = np.random.default_rng(0).integers
        >>> good = [draw(256, size=(32, 32, 3), dtype=np.uint8) for _ in range(4)]
        >>> tiny = {"backbone": "test_vit", "picture_size": 32, "image_size": 32, "local_size": 16}
        >>> brief = {"hidden": 8, "epochs": 1, "min_steps": 1, "train_batch_size": 4}
        >>> encoder = blemish.pretrain(good, weights="random", **tiny, **brief)
        >>> encoder.record.training.steps
        1
    """
    started = time.perf_counter()
    chosen = chosen_config(config, recipe, settings) or configure(recipe=recipe, values=settings)
    chosen = chosen if seed is None else dataclasses.replace(chosen, seed=seed)
    check_window(window)
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
    backbone, made, found = pretrained(
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
        pretraining=made.method,
        recipe=recipe if config is None else None,
        config=made.config,
        preprocessing=made.preprocessing,
        backbone=BackboneRecord(spec=backbone.spec, weights=made.weights),
        seed=chosen.seed,
        precision=made.precision,
        device=torch_device.type,
        seconds=round(time.perf_counter() - started, 3),
        training=made.training,
        data=Pretrained(
            layout=pictures.note,
            count=len(found.digests),
            fingerprint=fingerprint(found.digests.values()),
            failures=broken(found.failures.values()),
        ),
    )
    return Encoder(backbone=backbone, record=record)


def chosen_config(config: Any, recipe: str, settings: Mapping[str, Any]) -> Any:
    """The whole config that was given, or None. Raises: ConfigError for one beside settings."""
    if config is not None and (settings or recipe != "best"):
        raise ConfigError("give either a whole config, or a recipe and single settings, not both")
    return config


def check_window(window: tuple[float, float] | None) -> None:
    """Raises: ConfigError for what is no range of pixel values."""
    if window is not None and not window[0] < window[1]:
        raise ConfigError(f"window: two numbers (lo, hi) with lo < hi are needed, got {window}")


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
) -> tuple[Backbone, Pretraining, Found]:
    """The backbone pre-trained on the pictures of a stream, in evaluation mode and frozen.

    Args:
        backbone: on the device that it is trained on; not to be used any more.
        stream: the pictures, which come as squares of `config.picture_size` whatever it says of
            size, angles and mirroring.
        precision: bf16 or fp32.
        minutes, checkpoint, resume: as of `training.train`. log: as of `pretrain`.
    Returns: the backbone, whose `info` names what it was before; how it was trained; and what was
        found of the pictures.
    Raises: as `pretrain`.
    """
    learner = APMask(config, backbone).to(backbone.device)
    learner.set_precision(precision)
    side = learner.config.picture_size
    preprocessing = dataclasses.replace(stream.preprocessing, height=side, width=side)
    squares = dataclasses.replace(stream, preprocessing=preprocessing, rotations=1, flips=False)
    before = backbone.info
    description: dict[str, Any] = {
        "method": learner.name,
        "config": configs.to_dict(learner.config),
        "preprocessing": preprocessing,
        "precision": precision_name(learner.precision),
    }
    identity = {
        **description,
        "preprocessing": configs.to_dict(preprocessing),
        "weights": before.sha256,
    }
    logged = log is not None and distributed.rank() == 0
    with closing(_Log(log, learner, squares)) if log and logged else nullcontext() as watch:
        training, found = train(
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
    return after, Pretraining(**description, weights=before, training=training), found


class _Log:
    """Writes down how a pre-training is doing, step by step."""

    def __init__(self, path: Path, learner: APMask, stream: PictureStream) -> None:
        self._path = path
        self._learner = learner
        self._stream = stream
        self._file: BufferedRandom | None = None

    def __call__(self, step: int, steps: int, loss: float) -> None:
        rows: list[dict[str, Any]] = [
            {"step": step, "steps": steps, "loss": loss, **self._learner.readings}
        ]
        try:
            if self._file is None:
                self._file = _from_step(self._path, step)
            if step == 1 or step * _LOOKS // steps > (step - 1) * _LOOKS // steps:
                images = self._picture[None].to(self._learner.backbone.device)
                (seen,) = self._learner.attention(images).tolist()
                attention = [[float(f"{value:.5g}") for value in line] for line in seen]
                rows.append({"step": step, "attention": attention})
                if step == 1:
                    rows[-1]["picture"] = self._shown()
            lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
            self._file.write("".join(lines).encode())
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error

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

    def _shown(self) -> str:
        """The picture in its own colours, as a PNG file in base 64."""
        preprocessing = self._stream.preprocessing
        mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
        colours = self._picture.permute(1, 2, 0).numpy() * std + mean
        pixels = np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)
        content = cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))[1]
        return base64.b64encode(content.tobytes()).decode()


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
