"""APMask: a whole step against an oracle; its masks, views, teacher and signs of health."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from naive_apmask import (
    Weights,
    encoded,
    expected_loss,
    log_shares,
    most_attended,
    projected,
    weights_of,
)
from small_objectives import (
    batch_of,
    check_a_step,
    learner,
    names,
    pictures,
    sharp,
    started,
    step,
)
from torch import Tensor

from blemish.backbones import build
from blemish.data.stream import PictureStream
from blemish.data.transforms import Preprocessing
from blemish.errors import CollapseError, ConfigError
from blemish.methods import selfsupervised
from blemish.methods.apmask import APMask, APMaskConfig
from blemish.methods.dino import DINO
from blemish.methods.objectives import OBJECTIVES
from blemish.methods.views import Augmentation, view
from blemish.training import train

SQUARE = Preprocessing(height=64, width=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (APMask, {}),
        (APMask, {"masking": "none", "local_views": 0}),
        (DINO, {"local_views": 0}),
        (DINO, {"masking": "attention", "local_views": 0}),
    ],
    ids=["clusters", "unmasked", "dino", "dino masked"],
)
def test_a_whole_step_against_loops(
    kind: type[APMask | DINO], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = started(kind, learning_rate=0.01, layer_decay=0.5, momentum=0.9, **settings)
    centre = np.linspace(-0.1, 0.1, 5)
    if isinstance(method, DINO):
        method.centre.copy_(torch.as_tensor(centre))

    def expected(student: Weights, teacher: Weights, views: Any) -> Any:
        return expected_loss(student, teacher, views, method.config, centre)

    teacher, views = check_a_step(method, expected, monkeypatch)  # the teacher follows by a tenth
    if isinstance(method, DINO):
        shown = [
            teacher["head.prototypes"] @ projected(teacher, encoded(teacher, each)[0])
            for each in views[0]
        ]
        moved_centre = 0.9 * centre + 0.1 * torch.stack(shown).mean(0).numpy()
        np.testing.assert_allclose(method.centre, moved_centre, rtol=1e-4, atol=1e-6)


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

    def note(pixels: Tensor, size: tuple[int, int], how: Augmentation) -> Tensor:
        asked.append((size, how))
        return view(pixels, size, how)

    monkeypatch.setattr(selfsupervised, "view", note)
    method = learner(local_views=3, image_size=50, local_size=20)  # rounded to what 16 divides
    images = pictures(2)
    whole, wide, narrow = method.views(images)
    assert whole.shape == wide.shape == (2, 3, 48, 48)
    assert narrow.shape == (6, 3, 16, 16)
    wide_area, narrow_area = (0.4, 1.0), (0.05, 0.4)
    assert asked == [
        ((48, 48), Augmentation(area=wide_area, blur=1.0)),
        ((48, 48), Augmentation(area=wide_area, blur=0.1, solarise=0.2)),
        *[((16, 16), Augmentation(area=narrow_area, blur=0.5))] * 3,
    ]
    assert not torch.equal(whole, wide)
    for made in (whole, wide, narrow):
        assert made.min() >= -1  # pixels from 0 to 1, normalised
        assert made.max() <= 1
        assert made.std() > 0.05
    # View by view: the third and the fifth are of the first picture, which is the darker one.
    dark, bright = narrow.reshape(3, 2, -1).mean(2).T
    assert (dark < bright).all()
    torch.manual_seed(5)
    first = method.views(images)[0]
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.views(images)[0], first)
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
    says = r"at step 50: all pictures fall on 1\.38 of 5 prototypes .*learning_rate"
    with pytest.raises(CollapseError, match=says):
        method.after_step(50, 100)
    assert method.readings["prototype_usage"] == pytest.approx(1.38, abs=0.01)


def test_pictures_that_all_look_the_same_are_a_collapse() -> None:
    method = started(masking="none")
    black = torch.full((4, 3, 64, 64), -1.0)
    with pytest.raises(CollapseError, match="at step 1: the encoder's features of all"):
        step(method, black, method.optimizer())


def test_a_head_that_tells_no_picture_apart_is_a_collapse() -> None:
    """The encoder's features and the usage look well: only the biases of the head speak."""
    method = started(masking="none", learning_rate=1e-5)
    assert method.teacher is not None
    optimizer = method.optimizer()
    step(method, pictures(), optimizer)
    assert method.readings["projection_spread"] > 3 * selfsupervised.LEAST_TOLD_APART
    method.recent.zero_()  # what it was before would count for long
    with torch.no_grad():
        for head in (method.head, method.teacher.head):
            for layer in head.layers:
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.mul_(0.1)
                    layer.bias.fill_(0.1)
    for number in range(2, selfsupervised.SETTLED):  # what one batch says is not believed
        method._noted = noted([0.2] * 5, apart=0.0)
        method.after_step(number, 100)
    with pytest.raises(CollapseError, match=r"at step 50: the head's features of all.*learning_r"):
        step(method, pictures(), optimizer, selfsupervised.SETTLED, 100)


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
    seen = selfsupervised.look(method.backbone, method.head, views)[0].detach()
    cls = seen.double()
    if centred:
        cls = (cls - cls.mean(0)) / cls.std(0, correction=0)
    expected = cls @ first.weight.double().T + first.bias.double()
    assert method.teacher is not None
    for head in (method.head, method.teacher.head):
        torch.testing.assert_close(head.layers[0](seen).double(), expected, rtol=1e-3, atol=1e-4)


def test_it_learns_and_the_seed_decides(picture: Callable[..., np.ndarray]) -> None:
    def run(seed: int, masking: str = "attention") -> tuple[float, dict[str, Tensor]]:
        quick = {"epochs": 1, "min_steps": 3, "local_views": 1, "momentum": 0.0}
        method = learner(learning_rate=1e-3, masking=masking, seed=seed, **quick)
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
    **dict.fromkeys(["image_size", "iterations", "epochs", "temperature", "layer_decay"], 0),
    **dict.fromkeys(["local_views", "learning_rate_start"], -1),
    **dict.fromkeys(["mask_ratio", "warmup", "train_batch_size"], 1),
    **{"prototypes": 2, "momentum": 1.5, "epsilon": math.inf},
}


@pytest.mark.parametrize("setting", OUT_OF_RANGE)
def test_settings_out_of_range(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        APMaskConfig(**{setting: OUT_OF_RANGE[setting]})


@pytest.mark.parametrize("recipe", APMaskConfig.recipes())
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_view_is_enlarged(objective: str, recipe: str) -> None:
    """What is decoded is as large as the smallest crop needs (the papers crop from 700 to 1,024
    pixels).
    """
    kind = OBJECTIVES[objective]
    config = kind.Config.recipes()[recipe]()
    for size, how in (
        *((config.image_size, each) for each in kind.global_views),
        (config.local_size, kind.local_view),
    ):
        assert config.picture_size * math.sqrt(how.area[0] * 3 / 4) >= size


def test_it_needs_a_vit_with_cls() -> None:
    with pytest.raises(
        ConfigError, match=r"apmask needs a ViT with a \[CLS\] token, which test_resnet is not"
    ):
        APMask(APMaskConfig(), build("test_resnet", weights="random"))
