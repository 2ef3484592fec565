"""APMask: a whole step against naive loops in float64, its masks, views, teacher and signs of
health.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from blemish.backbones import VitBackbone, build
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
from blemish.errors import CollapseError, ConfigError
from blemish.methods import apmask
from blemish.methods.apmask import APMask, APMaskConfig
from blemish.methods.learner import TrainingBatch
from blemish.methods.views import view
from blemish.training import train

PATCH = 16
SQUARE = Preprocessing(height=64, width=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TINY: dict[str, Any] = {
    "backbone": "test_vit",
    "image_size": 48,  # 9 patches, of which 7 are kept
    "local_size": 32,  # 4 patches, of which 3 are kept
    "picture_size": 64,
    "local_views": 2,
    "prototypes": 5,
    "hidden": 32,
    "bottleneck": 16,
    "train_batch_size": 4,
}


@cache
def _sharp() -> VitBackbone:
    backbone = cast(VitBackbone, build("test_vit", weights="random", seed=3))
    with torch.no_grad():
        for block in backbone.model.blocks:
            block.attn.qkv.weight[:128] *= 12
    return backbone


def sharp() -> VitBackbone:
    """A backbone whose [CLS] token looks at some patches more than at others: with random weights
    it hardly does.
    """
    return copy.deepcopy(_sharp())


def learner(**settings: Any) -> APMask:
    return APMask(APMaskConfig(**(TINY | settings)), sharp())


def started(**settings: Any) -> APMask:
    """In training, the student a little ahead of its teacher."""
    method = learner(**settings)
    method.start_training(batch_of(pictures()))
    method.train()
    with torch.no_grad():
        for parameter in (*method.backbone.parameters(), *method.head.parameters()):
            parameter.add_(torch.randn(parameter.shape) * 0.02)
    method.head.normalise()
    return method


def pictures(count: int = 4, side: int = 64) -> Tensor:
    """Normalised noise (the test backbone's mean and deviation are 0.5), dark to bright."""
    return torch.rand(count, 3, side, side) * torch.linspace(0.6, 2, count)[:, None, None, None] - 1


def batch_of(images: Tensor) -> TrainingBatch:
    return TrainingBatch(images, {})


def step(
    method: APMask,
    images: Tensor,
    optimizer: torch.optim.Optimizer,
    number: int = 1,
    steps: int = 10,
) -> float:
    """What the engine does in a step, but for its clipping."""
    loss = method.training_step(batch_of(images), (number - 1) / steps)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    method.after_step(number, steps)
    return loss.item()


# The oracle: float64, one picture, patch, token and head at a time; only its derivative is torch's

Weights = dict[str, Tensor]


def weights_of(module: torch.nn.Module) -> Weights:
    """In float64, by name."""
    return {name: tensor.detach().double() for name, tensor in module.state_dict().items()}


def normed(x: Tensor, weights: Weights, name: str) -> Tensor:
    mean = sum(x) / len(x)
    variance = sum((x - mean) ** 2) / len(x)
    scaled = (x - mean) / torch.sqrt(variance + 1e-6) * weights[f"{name}.weight"]
    return scaled + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt(sum(x * x))


def encoded(
    weights: Weights, picture: Tensor, kept: list[int] | None = None
) -> tuple[Tensor, list[float]]:
    """The final [CLS] token D of a picture 3 H W, and the last block's attention to each patch, of
    sum 1 in each of 2 heads, whose mean it is.
    """
    side, name = picture.shape[1] // PATCH, "backbone.model"
    table = weights[f"{name}.pos_embed"][0]
    square = table[1:].T.reshape(1, -1, 10, 10)
    places = F.interpolate(square, (side, side), mode="bicubic", antialias=True)[0].flatten(1).T
    kernel = weights[f"{name}.patch_embed.proj.weight"]
    tokens = []
    for place, (row, column) in enumerate(np.ndindex(side, side)):
        top, left = row * PATCH, column * PATCH
        patch = picture[:, top : top + PATCH, left : left + PATCH].double()
        value = (kernel * patch).sum((1, 2, 3)) + weights[f"{name}.patch_embed.proj.bias"]
        if kept is None or place in kept:
            tokens.append(value + places[place])
    x = [weights[f"{name}.cls_token"][0, 0] + table[0], *tokens]
    looked: list[Tensor] = []
    for number in range(6):
        block = f"{name}.blocks.{number}"
        joint = [
            linear(normed(token, weights, f"{block}.norm1"), weights, f"{block}.attn.qkv")
            for token in x
        ]
        mixed: list[list[Tensor]] = [[] for _ in x]
        looked = []
        for head in range(2):
            q, k, v = (
                [token[64 * part + 32 * head : 64 * part + 32 * (head + 1)] for token in joint]
                for part in range(3)
            )
            for index, query in enumerate(q):
                powers = torch.exp(torch.stack([query @ key / math.sqrt(32) for key in k]))
                shares = powers / powers.sum()
                mixed[index].append(
                    cast(Tensor, sum(share * value for share, value in zip(shares, v, strict=True)))
                )
                if index == 0:
                    looked.append(shares[1:])
        x = [
            token + linear(torch.cat(parts), weights, f"{block}.attn.proj")
            for token, parts in zip(x, mixed, strict=True)
        ]
        wide = [
            linear(normed(token, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1")
            for token in x
        ]
        x = [
            token + linear(gelu(each), weights, f"{block}.mlp.fc2")
            for token, each in zip(x, wide, strict=True)
        ]
    over_patches = [row.detach() / row.sum().detach() for row in looked]  # each head counts alike
    return normed(x[0], weights, f"{name}.norm"), (sum(over_patches) / 2).tolist()


def projected(weights: Weights, cls: Tensor) -> Tensor:
    hidden = gelu(linear(gelu(linear(cls, weights, "head.layers.0")), weights, "head.layers.2"))
    return unit(linear(hidden, weights, "head.layers.4"))


def most_attended(attention: list[float]) -> list[int]:
    """All but ⌊0.3 N⌋, by putting them in order."""
    ascending = sorted(range(len(attention)), key=lambda place: attention[place])
    return sorted(ascending[int(0.3 * len(attention)) :])


def log_shares(scores: Tensor, temperature: float) -> Tensor:
    return torch.stack(
        [
            score / temperature - torch.log(sum(torch.exp(other / temperature) for other in scores))
            for score in scores
        ]
    )


def sinkhorn(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores / 0.05)
    for _ in range(3):
        shares /= shares.sum(0) * shares.shape[1]
        shares /= shares.sum(1, keepdims=True) * shares.shape[0]
    return np.asarray(shares * shares.shape[0])


def expected_loss(
    student: Weights,
    teacher: Weights,
    views: tuple[Tensor, Tensor, Tensor],
    config: APMaskConfig,
    centre: np.ndarray,
) -> tuple[Tensor, dict[str, float]]:
    """Eq. 1, and the readings but for the usage, of the first step."""
    whole, wide, narrow = views
    count = len(whole)
    seen = [encoded(teacher, picture)[0] for picture in whole]
    shown = [projected(teacher, cls) for cls in seen]
    judge = student if config.objective == "clusters" else teacher
    scores = np.array([(judge["head.prototypes"] @ z).tolist() for z in shown])
    if config.objective == "clusters":
        targets = sinkhorn(scores)
    else:
        powers = np.exp((scores - centre) / 0.04)
        targets = powers / powers.sum(1, keepdims=True)
    total, agreement = torch.zeros((), dtype=torch.float64), 0.0
    for number, picture in enumerate([*wide, *narrow]):
        kept = (
            most_attended(encoded(teacher, picture)[1]) if config.masking == "attention" else None
        )
        z = projected(student, encoded(student, picture, kept)[0])
        predicted = log_shares(student["head.prototypes"] @ z, 0.1)
        wanted = targets[number % count]
        for share, value in zip(wanted, predicted, strict=True):
            total = total - share * value / (count * (1 + config.local_views))
        if number < count:
            agreement += float(z.detach() @ shown[number]) / count
    entropies = [-sum(share * math.log(share) for share in row if share > 0) for row in targets]

    def spread(rows: list[Tensor]) -> float:
        values = np.array([row.tolist() for row in rows])
        return math.sqrt(sum(sum((row - values.mean(0)) ** 2) for row in values) / count)

    return total, {
        "assignment_entropy": sum(entropies) / count / math.log(config.prototypes),
        "agreement": agreement,
        "feature_spread": spread([unit(cls) for cls in seen]),
        "projection_spread": spread(shown),
    }


@pytest.mark.parametrize(
    "settings",
    [{}, {"masking": "none", "local_views": 0}, {"objective": "dino", "local_views": 0}],
    ids=["clusters", "unmasked", "dino"],
)
def test_a_whole_step_against_loops(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = started(learning_rate=0.01, layer_decay=0.5, momentum=0.9, **settings)
    assert method.teacher is not None
    with torch.no_grad():
        method.centre.copy_(torch.linspace(-0.1, 0.1, 5))
    centre = method.centre.double().numpy().copy()
    views = (pictures(2, 48), pictures(2, 48), pictures(4, 32)[: 2 * method.config.local_views])
    monkeypatch.setattr(method, "views", lambda images: views)
    before = weights_of(method)
    student = {name: before[name].requires_grad_() for name, _ in names(method)}
    teacher = weights_of(method.teacher)
    expected, readings = expected_loss(student, teacher, views, method.config, centre)
    found = torch.autograd.grad(expected, list(student.values()))
    gradients = dict(zip(student, found, strict=True))
    optimizer = method.optimizer()

    assert step(method, pictures(2), optimizer) == pytest.approx(expected.item(), rel=1e-5)
    for name, value in readings.items():
        assert method.readings[name] == pytest.approx(value, rel=1e-4), name
    after = {}
    for name, parameter in names(method):
        gradient, start = gradients[name], student[name].detach()
        assert parameter.grad is not None, name
        largest = gradient.abs().max().item()
        torch.testing.assert_close(
            parameter.grad.double(), gradient, rtol=1e-3, atol=2e-4 * largest + 1e-8
        )
        blocks = name.startswith("backbone.model.blocks.")
        distance = 6 - int(name.split(".")[3]) if blocks else 7 * name.startswith("backbone.model.")
        rate = 0.01 * 0.5 ** (0 if name.startswith("backbone.model.norm.") else distance)
        decay = 0.04 if start.ndim > 1 else 0.0
        # AdamW's first step; the sign of what is nothing but rounding is not known.
        moved = start * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        known = gradient.abs() > 1e-3 * largest + 1e-6
        if name == "head.prototypes":
            moved = torch.stack([unit(row) for row in moved])
        got = parameter.detach().double()
        torch.testing.assert_close(got[known], moved[known], rtol=1e-5, atol=1e-3 * rate)
        # The keys' bias has no effect; and few of the positions lie where such small pictures read
        # them.
        least = {"pos_embed": 0.01, "bias": 0.3}.get(name.rsplit(".", 1)[-1], 0.5)
        assert known.double().mean() > least, name
        after[name] = got
    # The teacher follows by a tenth.
    for name, tensor in method.teacher.state_dict().items():
        mean = 0.9 * teacher[name] + 0.1 * after[name]
        if name == "head.prototypes":
            mean = torch.stack([unit(row) for row in mean])
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)
    if method.config.objective == "dino":
        shown = [
            teacher["head.prototypes"] @ projected(teacher, encoded(teacher, each)[0])
            for each in views[0]
        ]
        moved_centre = 0.9 * centre + 0.1 * torch.stack(shown).mean(0).numpy()
        np.testing.assert_allclose(method.centre, moved_centre, rtol=1e-4, atol=1e-6)


def names(method: APMask) -> list[tuple[str, torch.nn.Parameter]]:
    """What is learned."""
    return [
        (name, parameter)
        for name, parameter in method.named_parameters()
        if not name.startswith("teacher.")
    ]


# Masks


@pytest.mark.parametrize(
    ("masking", "ratio", "tokens"),
    [
        ("none", 0.3, (9, 4)),
        ("random", 0.3, (7, 3)),
        ("block", 0.3, (7, 3)),
        ("attention", 0.3, (7, 3)),
        ("attention", 0.5, (5, 2)),
        ("attention", 0.0, (9, 4)),
    ],
)
def test_block_one_of_the_student_sees_only_what_is_kept(
    masking: str, ratio: float, tokens: tuple[int, int]
) -> None:
    method = started(masking=masking, mask_ratio=ratio)
    counts: dict[str, list[tuple[int, int]]] = {"student": [], "teacher": []}

    def count(who: str) -> Callable[..., None]:
        return lambda _module, inputs: counts[who].append(tuple(inputs[0].shape[:2]))

    assert method.teacher is not None
    method.backbone.model.blocks[0].register_forward_pre_hook(count("student"))
    method.teacher.backbone.model.blocks[0].register_forward_pre_hook(count("teacher"))
    method.training_step(batch_of(pictures()), 0.0)
    assert counts["student"] == [(4, 1 + tokens[0]), (8, 1 + tokens[1])]  # all local views at once
    assert counts["teacher"][0] == (4, 10)  # nothing is hidden from it
    guided = masking == "attention" and ratio > 0
    assert counts["teacher"][1:] == ([(4, 10), (8, 5)] if guided else [])


def test_it_is_the_teacher_who_attends_to_the_very_view() -> None:
    method = started()
    assert method.teacher is not None
    views = pictures(3, 48)
    kept = method.kept(views)
    teacher = weights_of(method.teacher)
    assert kept is not None
    assert kept.tolist() == [most_attended(encoded(teacher, picture)[1]) for picture in views]
    with torch.no_grad():
        for parameter in method.backbone.parameters():  # the student's attention is of no account
            parameter.copy_(torch.randn_like(parameter))
    assert torch.equal(cast(Tensor, method.kept(views)), kept)
    with torch.no_grad():
        for parameter in method.teacher.backbone.parameters():
            parameter.copy_(torch.randn_like(parameter))
    assert not torch.equal(cast(Tensor, method.kept(views)), kept)


def test_random_masks_are_each_different_and_fall_anywhere() -> None:
    kept = started(masking="random", mask_ratio=0.5).kept(torch.zeros(400, 3, 48, 48))
    assert kept is not None
    often = torch.bincount(kept.flatten(), minlength=9) / 400
    assert ((often - 5 / 9).abs() < 0.12).all()


# Views


def test_the_views_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def note(pixels: Tensor, size: tuple[int, int], **how: Any) -> Tensor:
        asked.append((size, how))
        return view(pixels, size, **how)

    monkeypatch.setattr(apmask, "view", note)
    method = learner(local_views=3, image_size=50, local_size=20)  # rounded to what 16 divides
    images = pictures(2)
    whole, wide, narrow = method.views(images)
    assert whole.shape == wide.shape == (2, 3, 48, 48)
    assert narrow.shape == (6, 3, 16, 16)
    wide_area, narrow_area = (0.4, 1.0), (0.05, 0.4)
    assert asked == [
        ((48, 48), {"area": wide_area, "blur": 1.0}),
        ((48, 48), {"area": wide_area, "blur": 0.1, "solarise": 0.2}),
        *[((16, 16), {"area": narrow_area, "blur": 0.5})] * 3,
    ]
    assert not torch.equal(whole, wide)
    for made in (whole, wide, narrow):
        assert made.min() >= -1  # pixels from 0 to 1, normalised
        assert made.max() <= 1
        assert made.std() > 0.05
    # View by view: the third and the fifth are of the first picture, which is the darker one.
    dark, bright = narrow.reshape(3, 2, -1).mean(2).T
    assert (dark < bright).all()
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            again = method.views(images)[0]
        if dtype == torch.float32:
            first = again
    assert torch.equal(first, again)
    assert len(learner(local_views=0).views(images)[2]) == 0


# The teacher


def test_gradients_never_reach_the_teacher() -> None:
    method = started()
    assert method.teacher is not None
    before = weights_of(method.teacher)
    method.training_step(batch_of(pictures()), 0.0).backward()  # type: ignore[no-untyped-call]
    own = list(method.teacher.parameters())
    assert all(each.grad is None and not each.requires_grad for each in own)
    # Several processes rely on it.
    assert all(parameter.grad is not None for _, parameter in names(method))
    learned = [each for group in method.optimizer().param_groups for each in group["params"]]
    assert not {id(each) for each in own} & {id(each) for each in learned}
    assert method.training
    assert not any(module.training for module in method.teacher.modules())
    for name, tensor in weights_of(method.teacher).items():
        assert torch.equal(tensor, before[name])


def test_the_momentum_rises_to_one() -> None:
    method = learner(momentum=0.5)
    rising = [method.momentum(number, 8) for number in range(1, 9)]
    expected = [1 - 0.5 * (math.cos(math.pi * number / 8) + 1) / 2 for number in range(8)]
    assert rising == pytest.approx(expected)
    assert rising[0] == 0.5
    short = learner()  # however short the run
    assert [short.momentum(1, steps) for steps in (10, 100, 5000, 10**6)] == pytest.approx(
        [0.996] * 4
    )


def test_in_the_end_the_encoder_is_the_teacher() -> None:
    method = started()
    assert method.teacher is not None
    kept = weights_of(method.teacher.backbone)
    method.end_training(1)
    assert method.teacher is None
    assert not any(parameter.requires_grad for parameter in method.parameters())
    for name, tensor in weights_of(method.backbone).items():
        assert torch.equal(tensor, kept[name])


def test_the_attention_of_a_picture() -> None:
    method = learner()
    images = pictures(2, 48)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = method.attention(images)
    assert torch.equal(torch.get_rng_state(), before)
    weights = weights_of(method)
    expected = [np.reshape(encoded(weights, picture)[1], (3, 3)) for picture in images]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    larger = method.attention(pictures(1, 64))  # brought to the size of the global views
    assert larger.shape == (1, 3, 3)
    method.start_training(batch_of(images))
    with torch.no_grad():
        method.backbone.model.cls_token.mul_(5)
    torch.testing.assert_close(method.attention(images), found)  # the teacher's


# Signs of health


def noted(predictions: list[float], *, apart: float = 0.5) -> Tensor:
    """Of a step; `apart`: the spread of the head's features."""
    return torch.tensor([0.5, 0.5, 0.5, apart, *predictions])


def test_usage_is_that_of_the_mean_prediction_of_recent_steps() -> None:
    method = started(prototypes=4)
    shares, spreads = torch.rand(60, 4).softmax(1), torch.rand(60).tolist()
    mean = np.zeros(5)  # the spread, then the prediction
    for number, row in enumerate(shares.tolist(), start=1):
        method._noted = noted(row, apart=spreads[number - 1])
        method.after_step(number, 60)
        newest = np.array([spreads[number - 1], *row])
        mean += (newest - mean) / min(number, 50)
    usage = math.exp(-sum(share * math.log(share) for share in mean[1:]))
    readings = {name: 0.5 for name in ("assignment_entropy", "agreement", "feature_spread")}
    readings |= {"prototype_usage": usage, "projection_spread": mean[0]}
    assert method.readings == pytest.approx(readings, rel=1e-4)
    assert list(method.findings(batch_of(pictures())).items()) == list(method.readings.items())


def test_the_mean_prediction_is_that_for_global_views(monkeypatch: pytest.MonkeyPatch) -> None:
    method = started(masking="none")
    views = (pictures(3, 48), pictures(3, 48), pictures(6, 32))
    monkeypatch.setattr(method, "views", lambda images: views)
    method.training_step(batch_of(pictures(3)), 0.0)
    method.after_step(1, 10**9)
    weights = weights_of(method)
    rows = [
        log_shares(weights["head.prototypes"] @ projected(weights, encoded(weights, each)[0]), 0.1)
        for each in views[1]
    ]
    np.testing.assert_allclose(method.recent[1:], torch.stack(rows).exp().mean(0), rtol=1e-4)


def test_few_prototypes_in_use_are_a_collapse_once_they_can_be_judged() -> None:
    method = started()
    for number in range(1, 50):
        method._noted = noted([0.9, 0.1, 0, 0, 0])
        method.after_step(number, 100)
    with pytest.raises(
        CollapseError,
        match=r"at step 50: all pictures fall on 1\.38 of 5 prototypes .*learning_rate",
    ):
        method.after_step(50, 100)
    assert method.readings["prototype_usage"] == pytest.approx(1.38, abs=0.01)


def test_pictures_that_all_look_the_same_are_a_collapse() -> None:
    method = started(masking="none")
    black = torch.full((4, 3, 64, 64), -1.0)
    with pytest.raises(
        CollapseError, match="at step 1: the encoder's features of all pictures are the same"
    ):
        step(method, black, method.optimizer())


def test_a_head_that_tells_no_picture_apart_is_a_collapse() -> None:
    """The encoder's features and the usage look well: only the biases of the head speak."""
    method = started(masking="none", learning_rate=1e-5)
    assert method.teacher is not None
    optimizer = method.optimizer()
    step(method, pictures(), optimizer)
    assert method.readings["projection_spread"] > 3 * apmask.LEAST_TOLD_APART
    method.recent.zero_()  # what it was before would count for long
    with torch.no_grad():
        for head in (method.head, method.teacher.head):
            for layer in head.layers:
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.mul_(0.1)
                    layer.bias.fill_(0.1)
    for number in range(2, apmask.SETTLED):  # what one batch says is not believed
        method._noted = noted([0.2] * 5, apart=0.0)
        method.after_step(number, 100)
    with pytest.raises(
        CollapseError, match="at step 50: the head's features of all pictures are the same"
    ) as caught:
        step(method, pictures(), optimizer, apmask.SETTLED, 100)
    assert "learning_rate" in str(caught.value)


# Training


@pytest.mark.parametrize("centred", [True, False])
def test_the_head_starts_from_how_the_pictures_differ(centred: bool) -> None:
    method = learner(centred=centred)
    first = copy.deepcopy(method.head.layers[0])
    images = pictures(8)
    torch.manual_seed(4)
    method.start_training(batch_of(images))
    torch.manual_seed(4)
    views = method.views(images)[0]
    seen = apmask.look(method.backbone, method.head, views)[0].detach()
    cls = seen.double()
    if centred:
        cls = (cls - cls.mean(0)) / cls.std(0, correction=0)
    expected = cls @ first.weight.double().T + first.bias.double()
    assert method.teacher is not None
    for head in (method.head, method.teacher.head):
        torch.testing.assert_close(head.layers[0](seen).double(), expected, rtol=1e-3, atol=1e-4)


def test_it_learns_and_the_seed_decides(picture: Callable[..., np.ndarray]) -> None:
    def run(seed: int, masking: str = "attention") -> tuple[float, dict[str, Tensor]]:
        method = learner(
            epochs=1,
            min_steps=3,
            local_views=1,
            learning_rate=1e-3,
            momentum=0.0,
            masking=masking,
            seed=seed,
        )
        stream = PictureStream([picture(each) for each in range(8)], SQUARE, batch_size=4)
        training, _ = train(method, stream, seed=seed, identity={})
        assert training.findings == method.readings
        assert all(math.isfinite(value) for value in training.findings.values())
        return training.loss, method.backbone.model.state_dict()

    loss, state = run(0)
    again, same = run(0)
    assert loss == again
    assert all(torch.equal(state[name], same[name]) for name in state)
    before = sharp().model.state_dict()
    assert any((state[name] - before[name]).abs().max() > 1e-4 for name in state)
    others = [run(1)[0], *(run(0, masking)[0] for masking in ("none", "random", "block"))]
    assert len({loss, *others}) == 5


def test_in_bf16_the_weights_stay_float32() -> None:
    method = started()
    method.set_precision(torch.bfloat16)
    assert method.precision == torch.bfloat16
    torch.manual_seed(4)
    plain = method.training_step(batch_of(pictures()), 0.0)
    torch.manual_seed(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.training_step(batch_of(pictures()), 0.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in method.parameters())


def test_the_learning_rate_rises_then_falls() -> None:
    method = learner(learning_rate=1e-3, learning_rate_start=1e-4, warmup=0.2)
    factors = [method.learning_rate_factor(share) for share in (0, 0.1, 0.2, 0.6, 1)]
    assert factors == pytest.approx([0.1, 0.55, 1, 0.5, 0])


def test_a_new_head_does_not_depend_on_torchs_state_but_on_the_seed() -> None:
    first, second, third = learner(), learner(), learner(seed=1)
    assert torch.equal(first.head.prototypes, second.head.prototypes)
    assert not torch.equal(first.head.prototypes, third.head.prototypes)
    torch.testing.assert_close(first.head.prototypes.norm(dim=1), torch.ones(5))


# Settings


OUT_OF_RANGE: dict[str, Any] = {
    "image_size": 0,
    "local_views": -1,
    "mask_ratio": 1.0,
    "prototypes": 2,
    "train_batch_size": 1,
    "temperature": 0.0,
    "epsilon": math.inf,
    "iterations": 0,
    "momentum": 1.5,
    "learning_rate_start": -1.0,
    "warmup": 1.0,
    "layer_decay": 0.0,
    "epochs": 0,
}


@pytest.mark.parametrize("setting", OUT_OF_RANGE)
def test_settings_out_of_range(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        APMaskConfig(**{setting: OUT_OF_RANGE[setting]})


@pytest.mark.parametrize("recipe", APMaskConfig.recipes())
def test_no_view_is_enlarged(recipe: str) -> None:
    """What is decoded is as large as the smallest crop needs (the papers crop from 700 to 1,024
    pixels).
    """
    config = APMaskConfig.recipes()[recipe]()
    for size, least in ((config.image_size, 0.4), (config.local_size, 0.05)):
        assert config.picture_size * math.sqrt(least * 3 / 4) >= size


def test_it_needs_a_vit_with_cls() -> None:
    with pytest.raises(
        ConfigError, match=r"apmask needs a ViT with a \[CLS\] token, which test_resnet is not"
    ):
        APMask(APMaskConfig(), build("test_resnet", weights="random"))
