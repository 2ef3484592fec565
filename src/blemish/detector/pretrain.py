"""Self-supervised pre-training of an encoder on pictures of good parts: its run, its log, its file.

What `blemish pretrain` writes, for an encoder called `encoder.safetensors`:

    encoder.safetensors   the weights by timm's names, and in the header a manifest of how they came
                          about
    encoder.log.jsonl     a line a step: {"step", "steps", "loss", the readings}; and
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
from collections.abc import Iterable, Mapping, Sequence
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
from blemish.area import Area
from blemish.backbones import Backbone, WeightsInfo, build
from blemish.compute import pick_device, pick_precision, precision_name
from blemish.data.ahead import of_picture
from blemish.data.geometry import Resize
from blemish.data.pictures import Pictures, good_pictures
from blemish.data.stream import Found, PictureStream, fingerprint
from blemish.data.transforms import Preprocessing, prepare
from blemish.detector.manifest import (
    BackboneRecord,
    EncoderManifest,
    Pretrained,
    Pretraining,
    broken,
)
from blemish.detector.request import check_whole, check_window, of_recipe
from blemish.errors import ConfigError, DataError
from blemish.files import cannot_write
from blemish.methods.objectives import OBJECTIVES, objective_class, objective_of
from blemish.methods.selfsupervised import SelfSupervised, SelfSupervisedConfig
from blemish.training import distributed, train
from blemish.training.budget import Budget
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
        return artifact.write(path, tensors_of(self.backbone), self.manifest)


def configure(
    *,
    objective: str = "apmask",
    recipe: str = "best",
    values: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> SelfSupervisedConfig:
    """The config of a pre-training, as `blemish.configure` makes that of a method.

    Args: objective: a name of `blemish.methods.objectives.OBJECTIVES`.

    Example:
        >>> configure(objective="msn", recipe="paper", assignments=["mask_ratio=0.5"]).prototypes
        1024
    """
    kinds = {name: kind.Config for name, kind in OBJECTIVES.items()}
    recipes = objective_class(objective).Config.recipes()
    return of_recipe(objective, recipes, recipe, kinds, values, assignments)


def pretrain(
    good: Any,
    *,
    objective: str = "apmask",
    recipe: str = "best",
    config: SelfSupervisedConfig | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
    window: tuple[float, float] | None = None,
    device: str = "auto",
    precision: str = "auto",
    time_budget: float | None = None,
    compute_budget: float | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    log: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Encoder:
    """An encoder pre-trained further on good pictures, without labels; any method takes its file as
    `weights`.

    Args:
        objective: what it learns by: "apmask", "dino", "ibot", "msn" or "swav", each a file in
            `blemish.methods`; a whole `config` is of one.
        good, recipe, config, settings, seed, window, device, precision, progress: as of
            `blemish.fit`; all of the pictures are learned from.
        weights: what it starts from: a local weights file instead of the backbone's own source, or
            "random".
        time_budget, compute_budget, checkpoint, resume: as of `blemish.fit`.
        log: a JSON-lines file that gets a line a step; None = none. `blemish.report.health` draws
            it.
    Raises: ConfigError, WeightsError; DataError when there is no usable picture; CollapseError when
        all pictures come to look alike to it; OutputError for a log or checkpoint that cannot be
        written.

    Example:
        >>> import blemish, numpy as np
        >>> good = [np.full((32, 32, 3), 90 + i, dtype=np.uint8) for i in range(4)]
        >>> tiny = {"backbone": "test_vit", "picture_size": 32, "image_size": 32, "local_size": 16}
        >>> brief = {"hidden": 8, "epochs": 1, "min_steps": 1, "train_batch_size": 4}
        >>> blemish.pretrain(good, weights="random", **tiny, **brief).record.training.steps
        1
    """
    started = time.perf_counter()
    budget = Budget(minutes=time_budget, teraflops=compute_budget)
    chosen = _chosen(objective, recipe, config, settings)
    chosen = chosen if seed is None else dataclasses.replace(chosen, seed=seed)
    check_window(window)
    pictures = good_pictures(good)
    torch_device = distributed.own_device(pick_device(device))
    dtype = pick_precision(precision, torch_device)
    progress("loading the backbone", 0, 0)
    backbone = build(chosen.backbone, weights=weights, seed=chosen.seed).to(torch_device)
    backbone, made, found = pretrained(
        backbone, pictures.sources, chosen, window=window, precision=dtype, budget=budget,
        checkpoint=checkpoint, resume=resume, log=log, progress=progress,
    )  # fmt: skip
    record = _record(backbone, made, found, pictures, None if config else recipe)
    seconds = round(time.perf_counter() - started, 3)
    return Encoder(backbone=backbone, record=dataclasses.replace(record, seconds=seconds))


def _chosen(
    objective: str, recipe: str, config: SelfSupervisedConfig | None, settings: Mapping[str, Any]
) -> SelfSupervisedConfig:
    check_whole(config, recipe, settings)
    if config is None:
        return configure(objective=objective, recipe=recipe, values=settings)
    if objective not in ("apmask", objective_of(config).name):
        raise ConfigError(
            f"objective {objective} and a config of {objective_of(config).name}: give one of them"
        )
    return config


def _record(
    backbone: Backbone, made: Pretraining, found: Found, pictures: Pictures, recipe: str | None
) -> EncoderManifest:
    """What an encoder's file says of itself."""
    return EncoderManifest(
        **artifact.provenance(),
        pretraining=made.method,
        recipe=recipe,
        config=made.config,
        preprocessing=made.preprocessing,
        backbone=BackboneRecord(spec=backbone.spec, weights=made.weights),
        seed=made.config["seed"],
        precision=made.precision,
        device=backbone.device.type,
        seconds=0.0,
        training=made.training,
        data=Pretrained(
            layout=pictures.note,
            count=len(found.digests),
            fingerprint=fingerprint(found.digests.values()),
            failures=broken(found.failures.values()),
        ),
    )


def pretrained(
    backbone: Backbone,
    sources: Sequence[Any],
    config: SelfSupervisedConfig,
    *,
    window: tuple[float, float] | None,
    area: Area | None = None,
    resize: Resize = "stretch",
    precision: torch.dtype,
    budget: Budget,
    checkpoint: str | Path | None,
    resume: bool,
    log: str | Path | None,
    progress: Progress,
) -> tuple[Backbone, Pretraining, Found]:
    """The backbone pre-trained on pictures, in evaluation mode and frozen.

    Args:
        backbone: on the device that it is trained on; not to be used any more.
        precision: bf16 or fp32.
        budget, checkpoint, resume: as of `training.train`. window, log: as of `pretrain`.
        area, resize: where pictures are looked at, and how they come into squares; not "fit".
    Returns: the backbone, whose `info` names what it was before; how it was trained; what was found
        of the pictures. Raises: as `pretrain`.
    """
    learner = objective_of(config)(config, backbone).to(backbone.device)
    learner.set_precision(precision)
    side, before = config.picture_size, backbone.info
    squares = Preprocessing(
        height=side, width=side, mean=backbone.mean, std=backbone.std, window=window, area=area,
        resize=resize,
    )  # fmt: skip
    stream = PictureStream(sources, squares, batch_size=config.train_batch_size)
    description: dict[str, Any] = {
        "method": learner.name,
        "config": configs.to_dict(config),
        "preprocessing": squares,
        "precision": precision_name(learner.precision),
    }
    written = {"preprocessing": configs.to_dict(squares), "weights": before.sha256}
    logged = log if distributed.rank() == 0 else None
    with closing(_Log(Path(logged), learner, stream)) if logged else nullcontext() as watch:
        training, found = train(
            learner,
            stream,
            seed=config.seed,
            identity={**description, **written},
            budget=budget,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            resume=resume,
            progress=progress,
            watch=watch,
        )
    after = learner.backbone.eval().requires_grad_(False)
    after.info = WeightsInfo(
        source=f"pretrained:{learner.name} on {before.source}",
        sha256=digest_of(tensors_of(after)),
        licence=before.licence,
    )
    return after, Pretraining(**description, weights=before, training=training), found


class _Log:
    """Writes down how a pre-training is doing, step by step."""

    def __init__(self, path: Path, learner: SelfSupervised, stream: PictureStream) -> None:
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
            made = of_picture(partial(prepare, preprocessing=preprocessing), source, index, window)
            if not isinstance(made, Failure):
                return torch.from_numpy(made)
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


def tensors_of(backbone: Backbone) -> dict[str, Tensor]:
    """The weights by timm's names, float32 on the CPU."""
    return {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in backbone.model.state_dict().items()
    }


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
