"""Alignment of features: its formulas in float64, and its rules on a tiny ViT with registers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from naive import f64
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import BackboneSpec, VitBackbone, WeightsInfo
from blemish.errors import ConfigError
from blemish.methods.adaptation import LEAST
from blemish.methods.alignment import Aligner, between_blocks, drift, moments, recorded, summary
from blemish.methods.reference import Reference
from blemish.types import Scores

Mode = Literal["online", "episodic"]
SIDE, PATCH, DIM, DEPTH, PREFIX = 16, 4, 8, 3, 3  # [CLS] and two registers
KNOWN = 40


def tiny() -> VitBackbone:
    """Its weights are so large that every block changes much."""
    torch.manual_seed(1)
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH}
    kinds = {"reg_tokens": 2, "no_embed_class": True, "dynamic_img_size": True, "num_classes": 0}
    model: Any = VisionTransformer(num_heads=2, **sizes, **kinds)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.3)
    spec = BackboneSpec(
        name="tiny", timm_name="tiny", kind="vit", layers=(), licence="none", about=""
    )
    info = WeightsInfo(source="random", sha256="", licence="none")
    return VitBackbone(spec, model, info).eval().requires_grad_(False)


def pictures(count: int, seed: int, shift: float = 0.0) -> Tensor:
    """Noise, each picture of its own brightness and contrast; a shift adds to both in all."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    bright, strong = torch.randn(2, count, 3, 1, 1, generator=generator) * 0.2
    return (noise * strong.exp() + bright) * (1 + shift / 2) + shift


class Small:
    """Looks at pictures in squares of these sides, and scores what is in the patches after the last
    block.

    `put_out` and `handed_on` are of the last call, for every block of every size: tokens B T D as
    the block put them out, and as they went on.
    """

    def __init__(self, *sides: int) -> None:
        self.backbone = tiny()
        self.sides = sides or (SIDE,)
        self.put_out: list[Tensor] = []
        self.handed_on: list[Tensor] = []
        seen: dict[int, list[Tensor]] = {}
        with recorded(self.backbone, seen):
            self.score(pictures(KNOWN, 0))
        aims = [summary(torch.cat(each)) for each in seen.values()]
        self.reference = Reference()
        self.reference.moments, self.reference.drift_limits = (
            torch.stack(parts) for parts in zip(*aims, strict=True)
        )
        self.reference.patch_counts = torch.tensor(list(seen))
        self.reference.pictures = torch.tensor(float(KNOWN))
        self._listen(lambda: self.put_out)  # before anything that changes them

    @property
    def changed(self) -> list[bool]:
        """Of every block, whether other tokens went on than it had put out."""
        return [one is not other for one, other in zip(self.put_out, self.handed_on, strict=True)]

    def _listen(self, heard: Callable[[], list[Tensor]]) -> list[Any]:
        blocks = self.backbone.model.blocks
        return [
            block.register_forward_hook(lambda _m, _i, output: heard().append(output))
            for block in blocks
        ]

    def score(self, images: Tensor) -> Scores:
        self.put_out, self.handed_on = [], []
        handles = self._listen(lambda: self.handed_on)  # after what changes them
        maps = []
        try:
            for side in self.sides:
                (patches,) = self.backbone(F.interpolate(images, (side, side)), (DEPTH,)).tokens
                maps.append(patches.square().mean(-1).reshape(len(images), side // PATCH, -1))
        finally:
            for handle in handles:
                handle.remove()
        return Scores(torch.stack([each.mean((1, 2)) for each in maps]).sum(0), maps[0])


def aligner(model: Small, mode: Mode = "episodic") -> Aligner:
    return Aligner(model, mode, {(side // PATCH) ** 2 for side in model.sides})


def same(one: Scores, other: Scores) -> bool:
    return torch.equal(one.image, other.image) and torch.equal(one.maps, other.maps)


def hooks_on(backbone: VitBackbone) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in backbone.modules()
    )


# Oracles in float64


def naive_moments(patches: np.ndarray) -> np.ndarray:
    """B N D to B 2 D."""
    return np.stack([patches.mean(1), np.log(np.maximum(patches.std(1), 1e-6))], axis=1)


def naive_drift(found: np.ndarray, usual: np.ndarray, error: float) -> float:
    """Of 2 D from 2 2 D; `usual[1] ** 2 * error` is the variance of a difference of two means."""
    return float(((found - usual[0]) ** 2 / (usual[1] ** 2 * error)).mean())


def naively_aligned(
    patches: np.ndarray, found: np.ndarray, usual: np.ndarray, share: float
) -> np.ndarray:
    (mean, log_deviation), (wanted, log_wanted) = found, usual[0]
    scale = np.exp(log_wanted - log_deviation) ** share
    return np.asarray((patches - mean) * scale + mean + share * (wanted - mean))


# Formulas


def test_moments() -> None:
    patches = torch.randn(3, 9, 4) * 3 + 1
    patches[1, :, 2] = 0.25  # a channel that is the same everywhere
    got = moments(patches)
    assert got.shape == (3, 2, 4)
    np.testing.assert_allclose(f64(got), naive_moments(f64(patches)), rtol=1e-5, atol=1e-6)
    assert got[1, :, 2].tolist() == pytest.approx([0.25, math.log(1e-6)])


def test_what_is_kept_of_training_pictures() -> None:
    seen = torch.randn(7, 3, 2, 4)
    seen[:, 1, 0, 3] = 0.5  # which never changes
    usual, limits = summary(seen)
    assert (usual.shape, limits.shape) == ((3, 2, 2, 4), (3,))
    assert {usual.dtype, limits.dtype} == {torch.float32}
    expected = [f64(seen).mean(0), np.maximum(f64(seen).std(0, ddof=1), 1e-6)]
    np.testing.assert_allclose(f64(usual), np.stack(expected, axis=1), rtol=1e-5)


@pytest.mark.parametrize("known", [9, math.inf])
def test_drift(known: float) -> None:
    found, (usual, _) = torch.randn(3, 2, 4), summary(torch.randn(9, 3, 2, 4))
    got = drift(found, usual, 1 / 6 + 1 / known)
    expected = [
        naive_drift(f64(found[block]), f64(usual[block]), 1 / 6 + 1 / known) for block in range(3)
    ]
    assert got.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_limits_are_seldom_passed_by_training_pictures() -> None:
    seen = torch.randn(50, 3, 2, 5) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    seen[:, 2] = seen[:, 2, :, :1]  # channels that go together wander further
    usual, limits = summary(seen)
    rng = np.random.default_rng(0)
    draws = (rng.integers(50, size=16) for _ in range(1500))
    passed = torch.stack([drift(seen[some].mean(0), usual, 1 / 16) > limits for some in draws])
    assert all(0.001 < share < 0.03 for share in passed.float().mean(0))
    assert 1 < limits[0] < limits[2]
    assert torch.equal(summary(seen)[1], limits)  # its draws are its own


def test_the_moments_of_every_pass_are_recorded_by_size() -> None:
    backbone, into = tiny(), dict[int, list[Tensor]]()
    large, small, more = pictures(5, 1), pictures(3, 2)[..., :12, :8], pictures(2, 3)
    with recorded(backbone, into):
        for images in (large, small, more):
            backbone(images, (DEPTH,))
    assert hooks_on(backbone) == 0
    backbone(large, (DEPTH,))
    assert {size: [each.shape for each in seen] for size, seen in into.items()} == {
        16: [(5, DEPTH, 2, DIM), (2, DEPTH, 2, DIM)],
        6: [(3, DEPTH, 2, DIM)],
    }
    for images, got in ((large, into[16][0]), (small, into[6][0]), (more, into[16][1])):
        expected = [naive_moments(f64(tokens)) for tokens in backbone(images, (1, 2, 3)).tokens]
        np.testing.assert_allclose(f64(got), np.stack(expected, axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_changed_goes_on_to_the_next_block(dtype: torch.dtype) -> None:
    model = Small()
    model.backbone.to(dtype)
    plain = model.score(pictures(2, 1))
    given: list[tuple[int, Tensor]] = []

    def change(block: int, patches: Tensor) -> Tensor | None:
        given.append((block, patches))
        return patches + 1 if block == 1 else None

    with between_blocks(model.backbone, change):
        changed = model.score(pictures(2, 1))
    assert [block for block, _ in given] == [0, 1, 2]
    for (_, patches), put_out in zip(given, model.put_out, strict=True):
        assert patches.dtype == torch.float32
        assert torch.equal(patches, put_out[:, PREFIX:].float())
    assert model.changed == [False, True, False]
    handed_on = model.handed_on[1]
    assert handed_on.dtype == dtype
    assert torch.equal(handed_on[:, PREFIX:], (given[1][1] + 1).to(dtype))
    assert torch.equal(handed_on[:, :PREFIX], model.put_out[1][:, :PREFIX])
    assert not same(changed, plain)
    assert same(model.score(pictures(2, 1)), plain)


# How far features are brought back


def test_brought_back_all_the_way_the_moments_are_the_usual_ones() -> None:
    model = Small(16, 12)
    model.reference.drift_limits.zero_()  # no chance, so the share is 1
    assert aligner(model).score(pictures(12, 1, shift=3.0)).adapted
    for index, tokens in enumerate(zip(model.put_out, model.handed_on, strict=True)):
        usual, deviation = f64(model.reference.moments[index // DEPTH, index % DEPTH])
        before, after = (naive_moments(f64(each[:, PREFIX:])).mean(0) for each in tokens)
        assert (np.abs(before - usual) / deviation).max() > 0.1
        np.testing.assert_allclose(after, usual, rtol=0, atol=1e-4)
        assert torch.equal(tokens[0][:, :PREFIX], tokens[1][:, :PREFIX])


@pytest.mark.parametrize(
    ("shift", "least", "most"), [(0.3, 0.1, 0.9), (1.0, 0.9, 0.99), (50.0, 0.999, 1.0)]
)
def test_how_far_they_are_brought_back(shift: float, least: float, most: float) -> None:
    """Limit / drift of the way is left: next to nothing of large shifts."""
    model = Small()
    result = aligner(model).score(pictures(12, 1, shift))
    assert (result.adapted, result.note) == (True, "")
    shares = []
    for block, tokens in enumerate(zip(model.put_out, model.handed_on, strict=True)):
        usual = f64(model.reference.moments[0, block])
        limit = float(model.reference.drift_limits[0, block])
        before, after = (naive_moments(f64(each[:, PREFIX:])).mean(0) for each in tokens)
        left = min(1.0, limit / naive_drift(before, usual, 1 / 12 + 1 / KNOWN))
        shares.append(1 - left)
        expected = usual[0] + left * (before - usual[0])
        np.testing.assert_allclose(after - usual[0], expected - usual[0], rtol=2e-3, atol=2e-4)
    assert least < shares[0] < most  # later blocks get what is brought back already


@pytest.mark.parametrize("sides", [(16,), (16, 12)])
@pytest.mark.parametrize("mode", ["episodic", "online"])
def test_tokens_by_hand(mode: Mode, sides: tuple[int, ...]) -> None:
    """Of several batches and sizes: online, after about 64 pictures the oldest are forgotten."""
    model = Small(*sides)
    adapter = aligner(model, mode)
    remembered: dict[int, tuple[np.ndarray, float]] = {}
    changed = set()
    rows = enumerate([(8, 1.0), (30, 0.0), (50, 0.4), (20, -0.3), (9, 0.0)], start=1)
    for seed, (count, shift) in rows:
        shifted = adapter.score(pictures(count, seed, shift)).adapted
        for index, tokens in enumerate(zip(model.put_out, model.handed_on, strict=True)):
            put_out, handed_on = tokens
            size, block = divmod(index, DEPTH)
            if block > 0 and not shifted:  # which the first block, a third of them, decides
                assert handed_on is put_out
                continue
            usual, patches = f64(model.reference.moments[size, block]), f64(put_out[:, PREFIX:])
            found, weight = naive_moments(patches).mean(0), float(count)
            if mode == "online" and index in remembered:
                earlier, before = remembered[index]
                weight = count + min(before, 64.0)
                found = (found * count + earlier * (weight - count)) / weight
            remembered[index] = found, weight
            limit = float(model.reference.drift_limits[size, block])
            share = max(0.0, 1 - limit / naive_drift(found, usual, 1 / weight + 1 / KNOWN))
            changed.add((share > 0, handed_on is not put_out))
            expected = naively_aligned(patches, found, usual, share)
            np.testing.assert_allclose(f64(handed_on[:, PREFIX:]), expected, rtol=1e-3, atol=1e-3)
            assert torch.equal(handed_on[:, :PREFIX], put_out[:, :PREFIX])
    assert remembered[0][1] == (9.0 if mode == "episodic" else 73.0)
    assert changed == {(False, False), (True, True)}


def test_what_lies_within_the_limits_goes_on_as_it_is() -> None:
    """The very same tokens, so scores are the same bit for bit."""
    model, images = Small(), pictures(KNOWN, 0)
    plain = model.score(images)
    result = aligner(model).score(images)
    assert (result.adapted, result.note) == (False, "not adapted: as the training pictures")
    assert same(result.scores, plain)
    assert model.changed == [False] * DEPTH


@pytest.mark.parametrize(("factor", "adapted"), [(1.01, False), (0.99, True)])
def test_only_what_passes_its_own_limit_is_changed(factor: float, adapted: bool) -> None:
    model, images = Small(), pictures(12, 1, 0.3)
    plain = model.score(images)
    found, reference = moments(model.put_out[0][:, PREFIX:]).mean(0), model.reference
    reference.drift_limits.fill_(math.inf)
    away = drift(found, reference.moments[0, 0], 1 / 12 + 1 / KNOWN)
    reference.drift_limits[0, 0] = factor * away
    result = aligner(model).score(images)
    assert result.adapted is adapted
    assert same(result.scores, plain) is not adapted
    assert model.changed == [adapted, False, False]


@pytest.mark.parametrize(
    ("off", "changed"),
    [
        ([False, True, True], [False, False, False]),
        ([True, False, True], [True, False, True]),
        ([True, True, True], [True, True, True]),
    ],
)
def test_later_blocks_are_brought_back_only_after_one_of_the_first_third(
    off: list[bool], changed: list[bool]
) -> None:
    model, images = Small(), pictures(12, 1, 0.3)
    plain = model.score(images)
    model.reference.drift_limits[0] = torch.where(torch.tensor(off), 0.0, math.inf)
    result = aligner(model).score(images)
    assert model.changed == changed
    assert result.adapted is any(changed)
    assert same(result.scores, plain) is not any(changed)


# Batches, one after the other


def test_episodes_depend_on_their_own_batch_only_and_online_ones_on_earlier_ones() -> None:
    batches = [pictures(10, 1, 0.6), pictures(12, 2, 0.2), pictures(10, 1, 0.6)]
    online, episodic = aligner(Small(), "online"), aligner(Small(), "episodic")
    first, _, third = (episodic.score(batch).scores for batch in batches)
    before, _, after = (online.score(batch).scores for batch in batches)
    assert same(first, third)
    assert same(first, before)
    assert not same(third, after)


def test_after_a_restoration_it_starts_anew() -> None:
    adapter, fresh = aligner(Small(), "online"), aligner(Small(), "online")
    adapter.score(pictures(20, 1, 0.6))
    adapter.restore()
    for seed in (2, 3):
        batch = pictures(10, seed, 0.3)
        assert same(adapter.score(batch).scores, fresh.score(batch).scores)


def test_few_pictures_are_scored_as_they_are_and_not_remembered() -> None:
    model = Small()
    adapter, undisturbed = aligner(model, "online"), aligner(Small(), "online")
    few = pictures(LEAST - 1, 5, 2.0)
    plain = model.score(few)
    for seed in (1, 2):
        assert same(adapter.score(few).scores, plain)
        one, two = (each.score(pictures(10, seed, 0.6)) for each in (adapter, undisturbed))
        assert one.adapted
        assert same(one.scores, two.scores)
    assert adapter.score(pictures(LEAST, 5, 2.0)).adapted


def test_an_exception_leaves_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Small()
    batch = pictures(10, 1, 0.6)
    plain, hooks = model.score(batch), hooks_on(model.backbone)
    adapter, inside = aligner(model), []

    def fails(*_given: object) -> None:
        inside.append(hooks_on(model.backbone))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.backbone.model.blocks[-1].mlp, "forward", fails)
        with pytest.raises(KeyboardInterrupt):
            adapter.score(batch)
        with pytest.raises(KeyboardInterrupt), recorded(model.backbone, {}):
            model.score(batch)
    assert inside[0] > hooks + DEPTH  # so that there is something to be left
    assert hooks_on(model.backbone) == hooks
    assert same(model.score(batch), plain)


# What cannot be


def test_sizes_that_cannot_be_aligned() -> None:
    model = Small(16, 12)
    Aligner(model, "online", {9})
    with pytest.raises(ConfigError, match=r"no statistics to adapt to.*at other sizes"):
        Aligner(model, "online", {9, 25})
    # As it is before it is fitted, or on a single picture.
    model.reference.patch_counts = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"no statistics to adapt to.*on a single picture"):
        Aligner(model, "online", {16})
