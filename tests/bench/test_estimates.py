from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blemish.bench import estimates
from blemish.bench.estimates import FROZEN, LEARNED, OVERHEAD, duration, estimate, total
from blemish.bench.plan import Run
from blemish.bench.results import Row
from blemish.errors import ConfigError

HERE = {"device": "cpu", "precision": "fp32"}
TINY = {"backbone": "test_vit", "image_size": [32]}
FORWARD = 0.5  # seconds, of the forward pass that is not tried here
TRAIN, TEST = 24, 13  # pictures of `mvtec`


@pytest.fixture(autouse=True)
def forward(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """The forward pass that is tried, which no test here needs to wait for; gives the real one."""
    real = estimates._forward_seconds
    monkeypatch.setattr(estimates, "_forward_seconds", lambda *_: FORWARD)
    return real


def a_run(path: Path, **changes: Any) -> Run:
    return Run(**{"method": "knn", "data": "part", "path": path, "settings": TINY, **changes})


def a_row(**changes: Any) -> Row:
    """Of a run that has taken 100 seconds, 50 of them to score."""
    row = {
        "status": "ok",
        "method": "knn",
        "recipe": "best",
        "data": "part",
        "settings": {"backbone": "test_vit"},
    }
    row |= {
        "changed": dict(TINY),
        "shots": None,
        "time_budget": None,
        "device": {"type": "cpu"},
        "precision": "fp32",
    }
    row |= {
        "counts": {"fitted": 30, "pictures": 20},
        "seconds_to_fit": 50.0,
        "images_per_second": 0.4,
    }
    return {**row, **changes}


def seconds(one: Run, *rows: Row, **more: Any) -> tuple[float | None, str]:
    (found,) = estimate([one], rows, **HERE, **more)
    assert found.run == one
    return found.seconds, found.basis


def test_a_run_takes_what_rows_on_the_same_data_took(mvtec: Path) -> None:
    rows = [
        a_row(),
        a_row(seconds_to_fit=70.0),
        a_row(seconds_to_fit=900.0),
        a_row(data="other", seconds_to_fit=1.0),
    ]
    assert seconds(a_run(mvtec), *rows) == (OVERHEAD + 120, "3 earlier rows")


def test_rows_with_the_same_settings_go_first(mvtec: Path) -> None:
    slow = a_row(changed={**TINY, "bank_size": 9}, seconds_to_fit=950.0)
    assert seconds(a_run(mvtec), slow, a_row()) == (OVERHEAD + 100, "1 earlier row")
    assert seconds(a_run(mvtec), slow) == (OVERHEAD + 1000, "1 earlier row")


def test_rows_on_other_data_are_scaled_by_pictures(mvtec: Path) -> None:
    assert seconds(a_run(mvtec), a_row(data="other")) == (
        OVERHEAD + 100 / 50 * (TRAIN + TEST),
        "1 earlier row on other data, by pictures",
    )
    few = a_run(mvtec, shots=2), a_row(data="other", shots=2)
    assert seconds(*few)[0] == OVERHEAD + 100 / 50 * (2 + TEST)


@pytest.mark.parametrize(
    "other",
    [
        {"status": "failed"},
        {"method": "patchcore"},
        {"recipe": "paper"},
        {"device": {"type": "cuda"}},
        {"precision": "bf16"},
        {"settings": {"backbone": "dino_vits16"}},
        {"changed": {**TINY, "image_size": [64]}},
        {"shots": 2},
        {"time_budget": 3.0},
    ],
)
def test_rows_of_other_things_say_nothing(mvtec: Path, other: dict[str, Any]) -> None:
    assert seconds(a_run(mvtec), a_row(**other))[1] == "a forward pass tried here"


def test_a_time_budget_is_taken_at_its_word(mvtec: Path) -> None:
    one = a_run(mvtec, method="agpnet", time_budget=3.0)
    assert seconds(one) == (OVERHEAD + 180, "its time budget")
    assert seconds(one, a_row(method="agpnet", time_budget=3.0))[0] == OVERHEAD + 100


def test_passes_of_a_recipe_are_counted(mvtec: Path) -> None:
    def forwards(**changes: Any) -> float:
        found, basis = seconds(a_run(mvtec, **changes))
        assert basis == "a forward pass tried here"
        assert found is not None
        return (found - OVERHEAD) / FORWARD

    def of(**settings: Any) -> dict[str, Any]:
        return {"settings": {**TINY, **settings}}

    assert forwards() == 2 * TRAIN + TEST
    assert forwards(**of(rotations=4, flips=True)) == 2 * 8 * TRAIN + TEST
    assert forwards(shots=2) == 2 * 32 * 2 + TEST  # each at 16 angles, plain and mirrored
    assert forwards(shifts=["blur", "noise"]) == 2 * TRAIN + 4 * TEST
    epochs = {"epochs": 10, "min_steps": 0, "pictures_per_step": 8}
    assert forwards(method="agpnet", **of(**epochs)) == FROZEN * 10 * TRAIN + TEST
    assert forwards(method="guided", **of(**epochs)) == FROZEN * 10 * TRAIN + TEST
    epochs["tuned"] = 4  # its encoder learns as well
    assert forwards(method="guided", **of(**epochs)) == LEARNED * 10 * TRAIN + TEST
    assert forwards(method="guided", **of(**{**epochs, "min_steps": 50})) == LEARNED * 50 * 8 + TEST
    assert (
        forwards(method="guided", adapt=["online"], **of(**epochs))
        == LEARNED * 10 * TRAIN + 3 * TEST
    )
    assert forwards(method="lda", **of(normality="knn")) == 2 * TRAIN + TEST
    published = {"backbone": "test_vit", "image_size": 32, "epochs": 10, "pictures_per_step": 8}
    for rate, worth in ((1.0, LEARNED), (0.0, FROZEN)):
        one = {"recipe": "paper", "settings": {**published, "extractor_rate": rate}}
        assert forwards(method="atacnet", **one) == worth * 10 * TRAIN + TEST
    normality = ["epochs=10", "min_steps=0"]
    taught = forwards(method="lda", **of(normality="agpnet", normality_settings=normality))
    assert taught == FROZEN * 10 * TRAIN + TEST
    before = (
        forwards(method="guided", **of(**epochs, pretraining="apmask"))
        - LEARNED * 10 * TRAIN
        - TEST
    )
    pretraining = a_run(
        mvtec, method="guided", **of(pretraining="apmask")
    ).config.pretraining_config
    assert pretraining is not None
    visits = max(pretraining.epochs * TRAIN, pretraining.min_steps * pretraining.pictures_per_step)
    assert before == pytest.approx(LEARNED * visits * (pretraining.image_size / 32) ** 2)


def test_a_forward_pass_is_tried(
    forward: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "_TRIED", 0.01)
    usual = torch.get_num_threads()
    assert 0 < forward("test_vit", (32, 32), "cpu", "fp32", usual + 1) < 5
    assert torch.get_num_threads() == usual
    assert 0 < forward("test_resnet", (33, 32), "cpu", "bf16", None) < 5


def test_what_cannot_be_told_is_said(mvtec: Path, tmp_path: Path) -> None:
    assert seconds(a_run(tmp_path / "none"))[0] is None
    assert "no such file" in seconds(a_run(tmp_path / "none"))[1]
    assert "a train and a test split" in seconds(a_run(mvtec / "train" / "good"))[1]
    with pytest.raises(ConfigError, match="abacus"):
        estimate([a_run(mvtec)], device="abacus")


def test_all_of_them_together(mvtec: Path, tmp_path: Path) -> None:
    nowhere = a_run(tmp_path / "none", data="none")
    found = estimate([a_run(mvtec), a_run(mvtec, seed=1), nowhere], [a_row()], **HERE)
    assert total(found) == 220
    assert total(found, jobs=2) == 110
    assert str(found[0]) == "knn on part, seed 0: about 1.8 min (1 earlier row)"
    assert str(found[2]).startswith("knn on none, seed 0: no telling (")
    assert found[0].to_dict()["seconds"] == 110
    assert found[0].to_dict()["basis"] == "1 earlier row"
    assert [duration(each) for each in (0.4, 59, 90, 7200)] == ["0 s", "59 s", "1.5 min", "2.0 h"]
