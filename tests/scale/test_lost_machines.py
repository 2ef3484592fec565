"""Processes, a machine and the command itself are killed in the middle: every picture has one row,
and it is right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import scale as bench

from blemish.scale import predict as scale
from blemish.scale.decoding import DEADLY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),  # of its own defaults
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of processes that were killed
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
COUNT = 400


@pytest.fixture(autouse=True)
def _workers_find_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(Path(bench.__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench.made(tmp_path_factory.mktemp("many"), COUNT, damaged=0.02)


@pytest.mark.parametrize("case", ["worker", "node", "driver", "slow"])
def test_every_row_once_and_right(case: str, exported: Path, many: Path, tmp_path: Path) -> None:
    row = bench.measured(case, exported, many, tmp_path / "out")
    assert (row["rows"], row["missing"], row["doubled"], row["wrong"]) == (COUNT, 0, 0, 0)
    if case == "worker":
        assert row["killed"] == 2
    if case == "driver":
        assert 0 < row["rows_when_killed"] < COUNT


def test_a_picture_that_kills_is_a_row(exported: Path, many: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"num_workers": 1, "filesystem": bench.Deadly()}
    done = scale.predict(exported, many, tmp_path / "out", **how)
    assert done.scored + done.failed == COUNT
    expected = bench.known(exported, many)
    expected[f"0000/{bench.DEADLY}"] = DEADLY
    assert bench.compared(tmp_path / "out", expected) == {
        **{"rows": COUNT, "missing": 0, "doubled": 0, "wrong": 0}
    }
