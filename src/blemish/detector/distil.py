"""The student of a fit: a smaller encoder, distilled on the good pictures kept to learn from
(`methods.student`, `methods.patches`); its run, how well it agrees with its teacher, and what the
artifact says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from blemish import config as configs
from blemish.backbones import Backbone, WeightsInfo
from blemish.compute import precision_name
from blemish.data.stream import PictureStream, unreadable
from blemish.data.transforms import Preprocessing
from blemish.detector.manifest import Pretraining
from blemish.detector.pretrain import digest_of, tensors_of
from blemish.errors import CollapseError, DataError
from blemish.methods.patches import Patches, PatchesConfig
from blemish.methods.student import Distillation, Distilled, Student, StudentConfig
from blemish.training import train
from blemish.training.budget import Budget
from blemish.types import Progress

FEWEST = 8  # good pictures that a student is distilled on and held against
LEAST = 0.5  # agreement below which there is no student
_MOST_HELD = 16


def distilled(
    teacher: Backbone,
    layers: Sequence[int],
    sources: Sequence[Any],
    config: Distillation,
    *,
    preprocessing: Preprocessing,
    precision: torch.dtype,
    batch_size: int,
    budget: Budget,
    checkpoint: Path | None,
    resume: bool,
    progress: Progress,
) -> tuple[Backbone, Pretraining]:
    """A student of a backbone, distilled on good pictures, in evaluation mode and frozen.

    Args:
        teacher: on the device that the student is trained on. layers: those that the method reads.
        sources: good pictures; some are held to measure by. preprocessing: as of the method.
        precision: bf16 or fp32. batch_size: pictures that the teacher looks at, at once. budget,
            checkpoint, resume: as of `training.train`.
    Returns: the student, whose `info` and `spec` say of what, and how it was trained.
    Raises: ConfigError for a backbone that can have no student; DataError where no picture can be
        read; CollapseError where it does not see what its teacher sees.
    """
    learner = learner_of(config, teacher, layers).to(teacher.device)
    learner.set_precision(precision)
    learned, held = _divided(sources, config)
    learner.held = _held(held, preprocessing)
    rotations, flips = config.copies(len(learned))
    stream = PictureStream(learned, preprocessing, batch_size, rotations=rotations, flips=flips)
    description: dict[str, Any] = {
        **{"method": learner.name, "config": configs.to_dict(config)},
        "preprocessing": preprocessing,
        "precision": precision_name(learner.precision),
    }
    training, _ = train(
        learner,
        stream,
        seed=config.seed,
        identity={
            **description,
            "preprocessing": configs.to_dict(preprocessing),
            "weights": teacher.info.sha256,
            "blocks": list(learner.backbone.spec.blocks),
        },
        budget=budget,
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
    )
    if isinstance(config, StudentConfig):
        check_agreement(training.findings)
    student = learner.backbone.eval().requires_grad_(False)
    before = teacher.info
    student.info = WeightsInfo(
        source=f"pretrained:{learner.name} on {before.source}",
        sha256=digest_of(tensors_of(student)),
        licence=before.licence,
    )
    return student, Pretraining(**description, weights=before, training=training)


def learner_of(config: Distillation, teacher: Backbone, layers: Sequence[int]) -> Distilled:
    """The student that is to be made. Raises: ConfigError for a backbone that can have none."""
    if isinstance(config, PatchesConfig):
        return Patches(config, teacher, layers)
    assert isinstance(config, StudentConfig)
    return Student(config, teacher, layers)


def check_agreement(findings: Mapping[str, float]) -> None:
    """Raises: CollapseError where a student sees too little of what its teacher sees."""
    worst = min(findings["agreement"], findings["agreement_on_anomalies"])
    if not worst >= LEAST:
        raise CollapseError(
            f"the student does not see what its teacher sees: it agrees by {worst:.2f} with it on "
            f"pictures that it has not learned (1 = the same, 0 = not at all; {LEAST} is the "
            "least); more time (--time-budget) or more good pictures may help, or leave student out"
        )


def check_pictures(count: int) -> None:
    """Raises: DataError for too few good pictures."""
    if count < FEWEST:
        raise DataError(
            f"a student needs at least {FEWEST} good pictures to learn from, got {count}; leave "
            "student out, or add pictures"
        )


def _divided(sources: Sequence[Any], config: Distillation) -> tuple[list[Any], list[Any]]:
    """What it learns from, and what it is measured by; all tiles of a picture are on one side.
    Of fewer than `FEWEST` pictures all are both."""
    groups: dict[int, list[Any]] = {}
    for source in sources:
        groups.setdefault(id(getattr(source, "picture", source)), []).append(source)
    pictures = list(groups.values())
    if len(pictures) < FEWEST:  # too few to leave any out: what is said of them is worth less
        return list(sources), [each[len(each) // 2] for each in pictures]
    count = min(max(2, round(config.held * len(pictures))), _MOST_HELD)
    held = {number * len(pictures) // count for number in range(count)}
    learned = [one for at, each in enumerate(pictures) if at not in held for one in each]
    first = [pictures[at][len(pictures[at]) // 2] for at in sorted(held)]  # of tiles the middle one
    return learned[:: -(-len(learned) // config.most_views)], first


def _held(sources: Sequence[Any], preprocessing: Preprocessing) -> torch.Tensor:
    """The pictures that it is measured by: float32 B 3 H W. Raises: DataError where none can be
    read."""
    reading = iter(PictureStream(sources, preprocessing, batch_size=len(sources)))
    images = [batch.images for batch in reading]
    if not images:
        raise unreadable("none of the pictures held can be read", reading.found.failures.values())
    return torch.cat(images)
