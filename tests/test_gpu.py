"""What every method promises, on a CUDA device: `pytest -n 0 -m gpu`. Other tests use the CPU.

Tolerances are those of float32 with sums in another order; bf16 and fp16 are held to a share of how
far a defect lies from a good part.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import blemish
from blemish.backbones import build
from blemish.bench import costs as efficiency
from blemish.bench import run as bench
from blemish.bench.plan import Run
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
from blemish.detector.learned import place
from blemish.detector.predict import Detector
from blemish.methods import METHODS, selfsupervised
from blemish.methods.apmask import APMask, APMaskConfig
from blemish.methods.trained import TrainedMethod
from blemish.training import feed, loop, train
from blemish.types import Prediction

DEVICE = "cuda"
Part = Callable[..., np.ndarray]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
of_every_method = pytest.mark.parametrize("method", list(METHODS))
of_the_trained = pytest.mark.parametrize(
    "method",
    [
        "agpnet",
        "guided",
        "atacnet",
        "simplenet",
        "rd4ad",
        "dinomaly",
        "vitad",
        "uniad",
        "efficientad",
        "dra",
        "ahl",
        "draem",
    ],
)


@pytest.fixture
def there(small: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `blemish.fit` on the GPU."""
    return {**small, "device": DEVICE}


def scores_of(detector: Detector, asked: list[np.ndarray], **options: Any) -> list[float]:
    found = list(detector.predict_many(asked, **options))
    assert all(isinstance(one, Prediction) for one in found), found
    return [one.score for one in found if isinstance(one, Prediction)]


def on(device: str, tensors: dict[str, torch.Tensor]) -> set[str]:
    """The names of those that are not on the device."""
    return {name for name, tensor in tensors.items() if tensor.device.type != device}


@of_every_method
def test_fitted_there_it_scores_alike_everywhere(
    method: str, picture: Part, there: dict[str, Any], tmp_path: Path
) -> None:
    detector = blemish.fit(method, [picture(seed) for seed in range(24)], **there)
    assert not on(DEVICE, detector.method.state_dict())
    asked = [picture(seed, defect=seed % 2 == 1) for seed in range(60, 68)]
    scores = scores_of(detector, asked)
    assert all(defect > good for good, defect in zip(scores[::2], scores[1::2], strict=True))
    assert scores_of(detector, asked, batch_size=3) == pytest.approx(scores, rel=1e-3, abs=1e-4)
    path = detector.save(tmp_path / "part.blemish")
    maps = [detector.predict(one).heatmap for one in asked[:2]]
    for device in (DEVICE, "cpu"):
        loaded = blemish.load(path, device=device, precision="fp32")
        assert loaded.device.split(":")[0] == device
        assert not on(device, loaded.method.state_dict())
        assert scores_of(loaded, asked) == pytest.approx(scores, rel=2e-3, abs=2e-3)
        for one, heatmap in zip(asked, maps, strict=False):
            assert np.allclose(loaded.predict(one).heatmap, heatmap, rtol=2e-3, atol=2e-3)
    assert loaded.save(tmp_path / "again.blemish").read_bytes() == path.read_bytes()


def test_a_second_encoder_scores_alike_everywhere(picture: Part, tmp_path: Path) -> None:
    how = {"backbone": "test_vit", "weights": "random", "image_size": 64, "layers": (2, 4)}
    good = [picture(seed) for seed in range(24)]
    detector = blemish.fit(
        "patchcore", good, second="test_efficientnet", device=DEVICE, precision="fp32", **how
    )
    assert not on(DEVICE, detector.method.state_dict())
    asked = [picture(seed, defect=seed % 2 == 1) for seed in range(60, 68)]
    scores = scores_of(detector, asked)
    path = detector.save(tmp_path / "part.blemish")
    for device in (DEVICE, "cpu"):
        loaded = blemish.load(path, device=device, precision="fp32")
        assert scores_of(loaded, asked) == pytest.approx(scores, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@of_every_method
def test_half_precision_scores_nearly_alike(
    method: str, precision: str, picture: Part, fitted: Callable[..., Detector], tmp_path: Path
) -> None:
    detector = fitted(method)
    path = detector.save(tmp_path / "part.blemish")
    asked = [picture(seed, defect=seed % 2 == 1) for seed in range(60, 68)]
    scores = np.array(scores_of(detector, asked))
    half = np.array(scores_of(blemish.load(path, device=DEVICE, precision=precision), asked))
    apart = (scores[1::2] - scores[::2]).min()
    assert np.abs(half - scores).max() < 0.25 * apart


@of_the_trained
def test_training_in_bf16_and_an_interruption(
    method: str,
    picture: Part,
    there: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Resumed it ends with the weights of one go, as close as a GPU gives them twice."""
    good, path = [picture(seed) for seed in range(12)], tmp_path / "part.training"
    settings = {**there, "precision": "bf16", "min_steps": 6}
    whole = blemish.fit(method, good, **settings)
    assert whole.manifest["precision"] == "bf16"
    steps, take = [], loop._Run.take

    def stopped(self: loop._Run, *arguments: Any) -> float:
        steps.extend([1] * (self.steps == 6))  # not those of a teacher before
        if sum(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return take(self, *arguments)

    monkeypatch.setattr(loop._Run, "take", stopped)
    with pytest.raises(KeyboardInterrupt):
        blemish.fit(method, good, checkpoint=path, **settings)
    resumed = blemish.fit(method, good, checkpoint=path, resume=True, **settings)
    assert resumed.manifest["training"]["resumed_at"] == 3
    asked = [picture(seed, defect=seed % 2 == 1) for seed in range(60, 64)]
    first, second = np.array(scores_of(whole, asked)), np.array(scores_of(resumed, asked))
    assert np.allclose(first, second, rtol=0.05, atol=0.05 * np.abs(first).max())


@pytest.mark.parametrize("limit", [0.0, 1.0])
@of_the_trained
def test_a_time_budget_and_a_cache_that_is_too_small(
    method: str, limit: float, picture: Part, there: dict[str, Any]
) -> None:
    good = [picture(seed) for seed in range(12)]
    detector = blemish.fit(method, good, time_budget=0.03, **{**there, "cache_gib": limit})
    assert detector.manifest["training"]["cached"] == (limit > 0)
    assert np.isfinite(scores_of(detector, good)).all()


def test_what_is_kept_comes_back_as_it_was(picture: Part, there: dict[str, Any]) -> None:
    detector = blemish.fit("agpnet", [picture(seed) for seed in range(12)], **there)
    method = detector.method
    assert isinstance(method, TrainedMethod)
    stream = PictureStream([picture(seed) for seed in range(12)], detector.preprocessing, 4)
    kept = feed.read(method, stream, limit=2**30, progress=lambda *_: None)
    assert kept.kept is not None
    assert all(part.device.type == DEVICE for part in kept.kept.features.values())
    anew = replace(kept, kept=None)
    pairs = zip(
        kept.batches(5, seed=1, skip=0), anew.batches(5, seed=1, skip=0), range(4), strict=False
    )
    for one, other, _ in pairs:
        for name, part in one.features.items():
            assert part.device.type == DEVICE
            assert torch.allclose(part, other.features[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("masking", ["attention", "block"])
def test_pretraining(masking: str, precision: str, picture: Part) -> None:
    """The encoder changes, stays healthy, and is what a method then reads."""
    config = APMaskConfig(
        backbone="test_vit", image_size=64, local_size=32, local_views=2, picture_size=96,
        epochs=1, min_steps=6, train_batch_size=8, masking=masking, hidden=32, bottleneck=16,
    )  # fmt: skip
    learner = APMask(config, build("test_vit", weights="random"))
    before = {name: tensor.clone() for name, tensor in learner.backbone.state_dict().items()}
    place(learner, torch.device(DEVICE), {"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    size = Preprocessing(height=96, width=96, mean=learner.backbone.mean, std=learner.backbone.std)
    stream = PictureStream([picture(seed) for seed in range(24)], size, 8)
    made, _ = train(learner, stream, seed=0, identity={})
    assert made.findings["prototype_usage"] > selfsupervised.LEAST_USAGE
    after = learner.backbone.state_dict()
    assert not on(DEVICE, after)
    assert any(not torch.equal(before[name], tensor.cpu()) for name, tensor in after.items())


@pytest.mark.parametrize("mode", ["online", "episodic"])
@pytest.mark.parametrize("adaptation", ["features", "entropies"])
@pytest.mark.parametrize("method", ["guided"])
def test_adapting(
    method: str, adaptation: str, mode: Any, picture: Part, there: dict[str, Any]
) -> None:
    """Afterwards the detector is as before."""
    good = [picture(seed) for seed in range(16)]
    detector = blemish.fit(method, good, adaptation=adaptation, adaptation_guard=False, **there)
    asked = [picture(seed) // 2 for seed in range(60, 76)]
    before = scores_of(detector, asked)
    adapted = list(detector.predict_many(asked, adapt=mode))
    assert all(isinstance(one, Prediction) and one.adapted for one in adapted)
    assert scores_of(detector, asked) == pytest.approx(before, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("method", ["lda"])
def test_what_defects_teach_and_refining(
    method: str, picture: Part, there: dict[str, Any], tmp_path: Path
) -> None:
    good, bad = ([picture(s, defect=d) for s in range(24)] for d in (False, True))
    detector = blemish.fit(method, good[:20], anomalies=bad[:3], **there)
    refined = blemish.refine(detector, good=good[20:], anomalies=bad[3:5])
    path = refined.detector.save(tmp_path / "refined.blemish")
    asked = [picture(60), picture(61, defect=True)]
    scores = scores_of(refined.detector, asked)
    assert scores[1] > scores[0]
    assert scores_of(blemish.load(path, device="cpu", precision="fp32"), asked) == pytest.approx(
        scores, rel=2e-3
    )


@of_every_method
def test_what_it_costs_there(
    method: str, picture: Part, fitted: Callable[..., Detector], tmp_path: Path
) -> None:
    """The counts are those of a CPU."""
    detector = fitted(method)
    path = detector.save(tmp_path / "part.blemish")
    loaded = blemish.load(path, device=DEVICE, precision="fp32")
    costs, usual = (efficiency.measure(one, picture(70), repeats=2) for one in (loaded, detector))
    for name in ("learnable_parameters", "parameters", "flops"):
        assert costs[name] == usual[name], name
    assert costs["latency_p50_ms"] > 0


@pytest.mark.parametrize("method", ["agpnet"])
def test_a_row_of_a_bench(method: str, mvtec: Path, small: dict[str, Any]) -> None:
    settings = {
        name: it for name, it in small.items() if name not in ("device", "precision", "weights")
    }
    row = bench.measure(
        Run(method=method, data="part", path=mvtec, settings=settings, weights="random")
    )
    assert row["status"] == "ok"
    assert row["device"]["type"] == DEVICE
    assert row["peak_gpu_memory_mib"] > 0
    assert row["precision"] == "bf16"
    assert "error" not in row["efficiency"]


@pytest.mark.parametrize("method", ["patchcore"])
def test_where_its_memory_runs_out_batches_are_halved(
    method: str, picture: Part, there: dict[str, Any]
) -> None:
    detector = blemish.fit(method, [picture(seed) for seed in range(12)], **there)
    asked = [picture(seed) for seed in range(40, 48)]
    expected = scores_of(detector, asked)
    judge = detector.method.judge

    def hungry(seen: Any, images: torch.Tensor) -> Any:
        if len(images) > 2:
            torch.empty(2**44, dtype=torch.uint8, device=DEVICE)
        return judge(seen, images)

    detector.method.judge = hungry  # type: ignore[method-assign]
    assert scores_of(detector, asked) == pytest.approx(expected, rel=1e-4, abs=1e-5)
