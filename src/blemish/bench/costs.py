"""What a fitted detector costs: parameters, arithmetic, latency and the size of its artifact."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blemish.data.transforms import prepare
from blemish.detector.predict import Detector
from blemish.errors import ConfigError
from blemish.images import Picture, Source, decode
from blemish.methods import Method
from blemish.methods.learner import TrainingBatch
from blemish.methods.trained import TrainedMethod
from blemish.training.arithmetic import counting
from blemish.types import Scores

# Runs that are not timed: the first ones choose kernels, and make what is kept from then on.
_WARM_UP = 3


def measure(
    detector: Detector, picture: Picture | Source, *, repeats: int = 20
) -> dict[str, float | int]:
    """What scoring one picture costs, and what the detector holds, as in Table 9 of AGPNet's paper.

    The detector and torch's random state stay as they are. It needs as much memory again as the
    detector, for a while: the peak of a run is to be read before.

    Args:
        picture: like those to be scored; the time to decode it is in no figure.
        repeats: how often it is timed, >= 1, after a few runs that are not.
    Returns:
        learnable_parameters: numbers that gradients teach in the training (not in a pre-training).
        parameters: numbers in the fitted tensors that scoring reads: weights, statistics, bank.
        flops: of scoring one picture, a multiply-add counts 2: matrix products, convolutions,
            attention and the search of a bank, but not what works element by element. It does not
            depend on the machine: attention is computed as two matrix products for it.
        latency_p50_ms, latency_p95_ms: of one picture at a time, from decoded pixels to score and
            map in main memory, with as many threads as torch has.
        artifact_mib: size of the file that `Detector.save` writes, in MiB (2^20 bytes).
    Raises: ConfigError for `repeats` below 1; ImageError for a picture that cannot be decoded;
        OutputError when there is no room for a temporary file.

    Example:
        >>> import blemish, numpy as np
        >>> good = [np.full((32, 32, 3), 90 + i, dtype=np.uint8) for i in range(3)]
        >>> tiny = {"backbone": "test_vit", "weights": "random", "image_size": 32}
        >>> detector = blemish.fit("knn", good, **tiny)
        >>> costs = measure(detector, good[0], repeats=2)
        >>> costs["learnable_parameters"], costs["flops"] > costs["parameters"] > 0
        (0, True)
    """
    if repeats < 1:
        raise ConfigError(f"repeats: at least 1 is needed, got {repeats}")
    if not isinstance(picture, Picture):
        picture = decode(picture, window=detector.preprocessing.decode_window())
    images = torch.from_numpy(prepare(picture, detector.preprocessing))[None].to(detector.device)

    def score() -> None:
        images = torch.from_numpy(prepare(picture, detector.preprocessing))[None].to(
            detector.device
        )
        scores = _scored(detector, images)
        scores.image.cpu(), scores.maps.cpu()  # a GPU is waited for

    middle, late = np.percentile(_milliseconds(score, repeats), [50, 95])
    fitted = detector.method.state_dict()
    # After the timing, so that what a method makes once, when first asked, is counted in neither.
    with counting() as counter, _Reading(fitted) as reading:
        _scored(detector, images)
    return {
        "learnable_parameters": _learnable(detector.method, images),
        "parameters": sum(fitted[name].numel() for name in reading.names),
        "flops": int(counter.get_total_flops()),
        "latency_p50_ms": round(float(middle), 3),
        "latency_p95_ms": round(float(late), 3),
        "artifact_mib": round(_artifact_bytes(detector) / 2**20, 3),
    }


def _scored(detector: Detector, images: Tensor) -> Scores:
    with torch.inference_mode():
        return detector.method.score(images)


def _milliseconds(work: Callable[[], None], repeats: int) -> list[float]:
    for _ in range(_WARM_UP):
        work()
    marks = [time.perf_counter()]
    for _ in range(repeats):
        work()
        marks.append(time.perf_counter())
    return [1000 * each for each in np.diff(marks)]


class _Reading(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open: the `names` of those tensors that any operation is given."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self._name_of = {
            tensor.data_ptr(): name for name, tensor in tensors.items() if tensor.numel()
        }

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for each in tree_leaves((args, kwargs)):
            # The whole tensor or a view from its beginning; an operation that makes another view is
            # given the whole.
            if (
                isinstance(each, Tensor)
                and (name := self._name_of.get(each.data_ptr())) is not None
            ):
                self.names.add(name)
        return func(*args, **(kwargs or {}))


def _learnable(method: Method, images: Tensor) -> int:
    """How many numbers the training engine gives to the optimiser: asked of a copy, which starts to
    be trained."""
    if not isinstance(method.learner, TrainedMethod):
        return 0
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        learner = copy.deepcopy(method.learner)
        # As when it was made: what it adds can learn, and of the encoder only what it asks for at
        # the start.
        learner.requires_grad_(True).backbone.requires_grad_(False)
        with torch.no_grad():
            learner.prepare_training()
            features = learner.encode(images)
        learner.start_training(TrainingBatch(images, features))
        groups = learner.optimizer().param_groups
    return sum(parameter.numel() for group in groups for parameter in group["params"])


def _artifact_bytes(detector: Detector) -> int:
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        return detector.save(Path(folder) / "measured.blemish").stat().st_size
