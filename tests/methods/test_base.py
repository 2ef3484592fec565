"""What all methods share: ranges, smoothing, the top mean, and state that goes out and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from naive import upsampled
from scipy import ndimage

from blemish.backbones import build, restore
from blemish.errors import ArtifactError, ConfigError, NotFittedError
from blemish.methods import METHODS, Method, MethodConfig, method_class
from blemish.methods.base import highest, smooth, top_mean
from blemish.methods.memory import KnnConfig, MemoryConfig, PatchCoreConfig
from blemish.methods.padim import PadimConfig
from blemish.methods.trained import MapMethod

NAN = float("nan")


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (33, 7), (3, 50)])
@pytest.mark.parametrize("fraction", [0.01, 0.03, 0.1, 0.4])
def test_smooth_is_the_gaussian_filter(shape: tuple[int, int], fraction: float) -> None:
    maps = torch.randn(3, 1, *shape, generator=torch.Generator().manual_seed(1))
    sigma = fraction * max(shape)
    radius = min(round(3 * sigma), min(shape) - 1)
    for one, got in zip(maps[:, 0], smooth(maps, fraction)[:, 0], strict=True):
        if radius < 1:
            assert torch.equal(got, one)
            continue
        expected = ndimage.gaussian_filter(
            one.double().numpy(), sigma, mode="mirror", radius=radius
        )
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-5)


def test_smooth_keeps_what_is_flat_and_what_it_is_told_to_leave() -> None:
    flat = torch.full((1, 1, 20, 30), 3.7)
    torch.testing.assert_close(smooth(flat, 0.1), flat)
    rough = torch.randn(1, 1, 20, 30)
    assert torch.equal(smooth(rough, 0.0), rough)
    assert torch.equal(smooth(torch.ones(1, 1, 1, 1), 0.3), torch.ones(1, 1, 1, 1))


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.05, 0.5, 1.0])
def test_top_mean_is_the_mean_of_the_highest(fraction: float) -> None:
    values = torch.randn(4, 237, generator=torch.Generator().manual_seed(2))
    expected = []
    for row in values.double().tolist():
        highest = sorted(row, reverse=True)[: max(1, round(fraction * 237))]
        expected.append(sum(highest) / len(highest))
    np.testing.assert_allclose(top_mean(values, fraction).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_top_mean_of_ties_and_of_one_value() -> None:
    assert top_mean(torch.tensor([[2.0, 2.0, 1.0, 2.0]]), 0.5).item() == 2.0
    assert top_mean(torch.tensor([[7.0]]), 0.0).item() == 7.0


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (MethodConfig, {"image_size": (0,)}),
        (MethodConfig, {"image_size": (32, 32, 3)}),
        (MethodConfig, {"rotations": 0}),
        (MethodConfig, {"smoothing": 0.5}),
        (MethodConfig, {"smoothing": NAN}),
        (MethodConfig, {"top_fraction": 1.1}),
        (MemoryConfig, {"bank_size": 0}),
        (PatchCoreConfig, {"pooling": 2}),
        (KnnConfig, {"pooling": -1}),
        (PadimConfig, {"channels": 0}),
        (PadimConfig, {"epsilon": 0.0}),
        (PadimConfig, {"epsilon": NAN}),
    ],
)
def test_a_value_out_of_range(kind: type[MethodConfig], values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=f"^{name}: "):
        kind(**values)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_says_of_itself(name: str) -> None:
    kind = METHODS[name]
    assert kind.name == name
    assert kind.summary
    assert kind.source
    recipes = kind.Config.recipes()
    # A default stays what artifacts have that do not name the setting yet.
    more = {"knn": {"neighbours": 4}, "patchcore": {"neighbours": 7, "centre": 0.5}}.get(name, {})
    assert recipes["best"]() == kind.Config(**more)
    for recipe in recipes.values():
        assert type(recipe()) is kind.Config


def test_published_settings() -> None:
    paper = PatchCoreConfig.recipes()["paper"]()
    assert (paper.backbone, paper.layers, paper.image_size) == ("wide_resnet50_2", (2, 3), (224,))
    padim: Any = PadimConfig.recipes()["paper"]()
    assert (padim.backbone, padim.layers, padim.channels) == ("wide_resnet50_2", (1, 2, 3), 550)


def test_an_unknown_method_suggests_the_nearest() -> None:
    assert method_class("knn") is METHODS["knn"]
    with pytest.raises(ConfigError, match="unknown method 'pachcore'; did you mean 'patchcore'"):
        method_class("pachcore")


@pytest.fixture(params=list(METHODS))
def method(request: pytest.FixtureRequest, fitted: Callable[..., Any]) -> Method:
    found: Method = fitted(request.param).method
    return found


def test_state_goes_out_and_comes_back(method: Method) -> None:
    state = method.fitted_state()
    assert any(name.startswith("backbone.") for name in state)
    assert all(tensor.is_contiguous() for tensor in state.values())
    other_weights = build("test_vit", weights="random", seed=9)
    if method.backbone.spec.patches:
        other_weights = restore(method.backbone.spec, method.backbone.info)
    fresh = type(method)(method.config, other_weights).eval()
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(NotFittedError, match=f"this {method.name} detector has not been fitted"):
        fresh.score(images)
    fresh.restore_state(state)
    one, other = method.score(images), fresh.score(images)
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.maps, other.maps)


@pytest.mark.parametrize("change", ["missing", "foreign", "another shape"])
@pytest.mark.parametrize("method", ["knn"], indirect=True)
def test_state_of_another_method_is_refused(method: Method, change: str) -> None:
    state = method.fitted_state()
    name = next(name for name in state if name.startswith("backbone.") and state[name].ndim == 2)
    if change == "missing":
        del state[name]
    elif change == "foreign":
        state["backbone.model.surplus"] = torch.ones(1)
    else:
        state[name] = state[name][:-1]
    fresh = type(method)(method.config, build("test_vit", weights="random"))
    with pytest.raises(ArtifactError, match=f"do not fit method '{method.name}'"):
        fresh.restore_state(state)


@pytest.mark.parametrize("method", ["knn", "padim", "agpnet"], indirect=True)
def test_score_finishes_the_raw_map(method: Any) -> None:
    images = torch.randn(2, 3, 64, 64)
    more = (images,) if isinstance(method, MapMethod) else ()
    raw, scores = method.anomaly_map(method.see(images), *more), method.score(images)
    assert raw.shape == (2, 4, 4)
    assert scores.maps.shape == (2, 16, 16)  # a quarter of the input's sides
    assert scores.maps.dtype == scores.image.dtype == torch.float32
    for one, got, score in zip(raw, scores.maps, scores.image, strict=True):
        grown = upsampled(one.double().numpy(), 16, 16)
        # σ = 0.015 × 16 = 0.24 pixels reaches one neighbour
        sigma = method.config.smoothing * 16
        grown = ndimage.gaussian_filter(grown, sigma, mode="mirror", radius=1)
        np.testing.assert_allclose(got.numpy(), grown, rtol=1e-4, atol=1e-4)
        highest = np.sort(grown.ravel())[::-1][: max(1, round(method.config.top_fraction * 256))]
        assert score.item() == pytest.approx(highest.mean(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_an_exported_graph_takes_the_mean_of_the_highest_alike(
    monkeypatch: pytest.MonkeyPatch, fraction: float
) -> None:
    random = torch.Generator().manual_seed(0)
    maps, inside = torch.randn(3, 6, 5, generator=random), torch.rand(3, 6, 5, generator=random)
    inside = inside > torch.tensor([0.2, 0.8, -1])[:, None, None]
    expected = [highest(maps, each, fraction) for each in (inside, inside[1])]
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)
    for each, wanted in zip((inside, inside[1]), expected, strict=True):
        torch.testing.assert_close(highest(maps, each, fraction), wanted, rtol=1e-6, atol=1e-6)
