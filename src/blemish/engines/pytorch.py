"""A fitted method, run by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blemish import artifact
from blemish.backbones import Features
from blemish.backbones.glance import features
from blemish.compute import precision_name
from blemish.engines.base import Engine, Floats, Input, Outputs, Precision
from blemish.engines.files import check_name
from blemish.methods import Method, adapter_of
from blemish.methods.adaptation import Adapter
from blemish.methods.capabilities import LeavesOneOut
from blemish.methods.descriptor import descriptor
from blemish.methods.foreground import Foreground
from blemish.methods.telling import seen_along
from blemish.types import Batch, Mode, Scores


class TorchEngine(Engine):
    """Runs a method where its weights are, in their precision.

    Attributes:
        method: what is run; foreground: whose `Outputs.part` is asked for; None = nobody's.
    """

    name = "torch"

    def __init__(self, method: Method, foreground: Foreground | None = None) -> None:
        self.method, self.foreground = method, foreground
        self.top_fraction = method.config.top_fraction
        self.scores_by_map = method.scores_by_map

    @property
    def device(self) -> str:  # type: ignore[override]
        return str(self.method.backbone.device)

    @property
    def precision(self) -> Precision:  # type: ignore[override]
        return precision_name(self.method.precision)

    @cached_property
    def offset(self) -> float:  # type: ignore[override]
        method = self.method
        return method.backbone.shapes(*method.scoring_size, method.config.layers).offsets[-1]

    def run(self, images: Input, *, category: bool = False) -> Outputs:
        return self.said(torch.from_numpy(images), category=category)

    @torch.inference_mode()
    def said(
        self, images: Tensor, *, category: bool = False, left_out: Batch | None = None
    ) -> Outputs:
        """What the method says of B 3 H W.

        Args: left_out: the batch that they are, of training pictures, each to be scored without
            what it has taught; only for what leaves one out.
        """
        method, images = self.method, images.to(self.method.backbone.device)
        if left_out is not None and self.foreground is None:
            assert isinstance(method, LeavesOneOut)
            return self._outputs(method.score_left_out(left_out), None)
        if left_out is None:
            scores, seen = self._scores(images)
        else:
            assert isinstance(method, LeavesOneOut)
            seen = method.see(images)
            scores = method.judge_left_out(seen, left_out)
        told = features(method.backbone, method.config.layers, images) if category else None
        found = self._outputs(scores, self._part(seen), told)
        return replace(found, descriptor=_array(descriptor(method, seen)))

    def adapting(self, mode: Mode) -> Engine:
        return AdaptingEngine(self.method, self.foreground, mode)

    def check_name(self, path: str | Path) -> None:
        check_name(path, None)

    def save(self, path: str | Path, manifest: Mapping[str, Any]) -> Path:
        self.check_name(path)
        held = self.method.fitted_state()
        state = {name: tensor.detach().cpu() for name, tensor in held.items()}
        return artifact.write(path, state, manifest)

    def _scores(self, images: Tensor) -> tuple[Scores, Features]:
        """Scores of B 3 H W, and what was seen for them."""
        seen = self.method.see(images)
        return self.method.judge(seen, images), seen

    def _part(self, seen: Features) -> Tensor | None:
        if self.foreground is None:
            return None
        return seen_along(self.method, seen, self.foreground.direction)

    def _outputs(self, scores: Scores, part: Tensor | None, told: Tensor | None = None) -> Outputs:
        return Outputs(
            score=_array(scores.image),
            map=_array(scores.maps),
            votes=None if scores.votes is None else _array(scores.votes),
            saliency=None if scores.saliency is None else _array(scores.saliency),
            box=None if scores.boxes is None else _array(scores.boxes),
            part=None if part is None else _array(part),
            category=None if told is None else _array(told),
        )


class AdaptingEngine(TorchEngine):
    """The same, adapting to the pictures batch by batch; see `blemish.methods.adaptation`."""

    def __init__(self, method: Method, foreground: Foreground | None, mode: Mode) -> None:
        """Raises: ConfigError for a method that cannot adapt."""
        super().__init__(method, foreground)
        self._adapter: Adapter = adapter_of(method, mode)

    def run(self, images: Input, *, category: bool = False) -> Outputs:
        method = self.method
        given = torch.from_numpy(images).to(method.backbone.device)
        found = self._adapter.score(given)
        with torch.inference_mode():
            part = None if self.foreground is None else self._part(method.see(given))
            told = features(method.backbone, method.config.layers, given) if category else None
            said = self._outputs(found.scores, part, told)
        return replace(said, adapted=found.adapted, note=found.note)


def _array(values: Tensor) -> Floats:
    found: Floats = values.detach().float().cpu().numpy()
    return found
