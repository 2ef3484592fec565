"""The folder of the page: whole or not at all, among no other files, of no detector that it would
not score as blemish does."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pages import EXPORT, calibrated, fitted, graph, wrote

from blemish.data.tiling import Tiling
from blemish.detector.manifest import Manifest
from blemish.detector.thresholds import by_hand, for_misses
from blemish.errors import ArtifactError, ExportError, OutputError
from blemish.export.web import check_place, write_page
from blemish.export.web import page as pages_module
from blemish.export.web.described import rates
from blemish.export.web.page import page_files
from blemish.methods.foreground import Foreground

VENDOR = Path(pages_module.__file__).with_name("vendor")


def test_the_folder_is_complete(folder: Path, record: Manifest) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {*page_files(), "model.onnx", "detector.json"}
    assert {"index.html", "app.js", "style.css", "serve.py", "README.txt"} < found
    assert (folder / "model.onnx").read_bytes() == graph()
    said = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
    assert said["model_sha256"] == hashlib.sha256(graph()).hexdigest()
    assert said["export"]["outputs"] == EXPORT["outputs"]
    assert said["scores"] == sorted(record.calibration_scores)
    assert "fitted" not in json.dumps(said)  # hashes of pictures are nobody's business there
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_heatmaps_have_the_colours_of_every_picture(folder: Path) -> None:
    said = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
    found = np.frombuffer(bytes.fromhex(said["colours"]), np.uint8).reshape(256, 3)
    grey = np.arange(256, dtype=np.uint8)[None]
    wanted = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_PLASMA), cv2.COLOR_BGR2RGB)[0]
    np.testing.assert_array_equal(found, wanted)
    assert found[0].tolist() == [13, 8, 135]


def test_nothing_in_it_names_another_place() -> None:
    """No address that a browser would ask of itself: no CDN, no font, no map of a source."""
    for name, content in page_files().items():
        if name.endswith((".html", ".css", ".js", ".py")) and "onnxruntime" not in name:
            named = re.findall(r"//[^\s)/]+", content.decode())
            assert set(named) <= {"//127.0.0.1", "//127.0.0.1:{server.server_port}"}, name


def test_what_is_vendored_is_told(folder: Path) -> None:
    told = (VENDOR / "README.md").read_text(encoding="utf-8")
    for name in ("ort.js", "ort.wasm"):
        digest = hashlib.sha256((folder / "onnxruntime" / name).read_bytes()).hexdigest()
        assert f"| {digest} |" in told
    version = told.partition("\n")[0].rpartition(" ")[2]
    assert f"ONNX Runtime Web v{version}" in (folder / "onnxruntime/ort.js").read_text("utf-8")
    assert "MIT License" in (folder / "onnxruntime/LICENSE.txt").read_text("utf-8")
    assert "Eigen" in (folder / "onnxruntime/notices.txt").read_text("utf-8")


def test_a_changed_file_of_the_installation_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: Manifest
) -> None:
    for path in VENDOR.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(pages_module, "_VENDOR", tmp_path)
    (tmp_path / "ort.js").write_bytes(b"fetch('elsewhere')")
    with pytest.raises(ExportError, match=r"ort\.js is not the one .*install blemish anew"):
        wrote(tmp_path / "page", record)
    (tmp_path / "ort.js").unlink()
    with pytest.raises(ExportError, match="install blemish anew"):
        wrote(tmp_path / "page", record)
    (tmp_path / "ort.wasm.xz").write_bytes((VENDOR / "ort.wasm.xz").read_bytes()[:1000])
    with pytest.raises(ExportError, match="install blemish anew"):
        wrote(tmp_path / "page", record)
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("changes", "export", "said"),
    [
        ({}, {"kind": "openvino"}, "it runs an .onnx file"),
        ({"tiling": Tiling(side=64)}, {}, "into tiles"),
        ({"window": (0.0, 4095.0)}, {}, "8 bits"),
        ({"resize": "pad"}, {"input": "pixels"}, "--input normalised"),
    ],
)
def test_what_it_would_score_otherwise_is_refused(
    tmp_path: Path, record: Manifest, changes: dict[str, Any], export: dict[str, Any], said: str
) -> None:
    record = replace(record, preprocessing=replace(record.preprocessing, **changes))
    with pytest.raises(ExportError, match=said):
        write_page(tmp_path / "page", graph(), {**record.to_dict(), "export": {**EXPORT, **export}})
    assert not list(tmp_path.iterdir())


def test_a_foreground_is_told_where_it_is_in_use(tmp_path: Path, record: Manifest) -> None:
    def said(foreground: Foreground) -> Any:
        page = wrote(tmp_path / "page", replace(record, foreground=foreground))
        return json.loads((page / "detector.json").read_text(encoding="utf-8"))["foreground"]

    used = Foreground(direction=(1.0, 0.0), cut=0.25, share=0.5, least=0.3, most=0.6)
    assert said(used) == {"cut": 0.25, "least": 0.3, "most": 0.6}
    assert said(Foreground(abstains="it fills the pictures")) is None


def test_a_manifest_that_is_none_is_refused(tmp_path: Path, record: Manifest) -> None:
    values = {**record.to_dict(), "export": EXPORT, "method": 3}
    with pytest.raises(ArtifactError, match="method"):
        write_page(tmp_path / "page", graph(), values)
    with pytest.raises(ArtifactError, match="export: is missing"):
        write_page(tmp_path / "page", graph(), record.to_dict())


def test_an_earlier_page_is_replaced_and_nothing_else(tmp_path: Path, record: Manifest) -> None:
    page = wrote(tmp_path / "page", record)
    (page / "style.css").write_text("")
    (page / "README.txt").unlink()
    wrote(page, record)
    assert (page / "style.css").read_bytes() == page_files()["style.css"]
    assert (page / "README.txt").exists()
    (page / "mine.txt").write_text("")
    (page / "style.css").write_text("")
    with pytest.raises(OutputError, match=r"holds other files \(mine\.txt\)"):
        wrote(page, record)
    assert (page / "style.css").read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_other_places_are_refused(tmp_path: Path, record: Manifest) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="is no folder"):
        check_place(file)
    with pytest.raises(OutputError, match="is no folder"):
        wrote(file, record)
    for attempt in (check_place, lambda place: wrote(place, record)):
        with pytest.raises(OutputError, match=f"{file / 'page'}: cannot be written"):
            attempt(file / "page")
    site = tmp_path / "site"
    site.mkdir()
    assert (wrote(site, record) / "index.html").exists()  # an empty folder is as good as none
    (site / "detector.json").unlink()
    with pytest.raises(OutputError, match="files of no page"):
        wrote(site, record)


def test_it_is_written_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: Manifest
) -> None:
    page = wrote(tmp_path / "page", record)
    before = {path: path.read_bytes() for path in page.rglob("*") if path.is_file()}
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "model.onnx":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        wrote(page, replace(record, map_scale=(0.0, 9.0)))
    assert {path: path.read_bytes() for path in page.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_rates_are_those_that_the_pictures_support(record: Manifest) -> None:
    made = rates(record)
    assert [one["name"] for one in made] == ["≤ 10 %", "≤ 5 % (calibrated)"]
    assert [one["is_stored"] for one in made] == [False, True]
    assert record.threshold is not None
    assert made[1]["threshold"] == record.threshold.to_dict()
    ordered = sorted(record.calibration_scores)
    assert made[0]["threshold"]["value"] == ordered[23]  # ceil(26 × 0.9) = 24th of 25
    levels = sorted(record.regions.levels if record.regions else ())
    assert made[0]["regions"]["threshold"]["value"] == levels[23]


def test_other_thresholds_are_alone(record: Manifest) -> None:
    hand = rates(replace(record, threshold=by_hand(3.0)))
    assert [one["name"] for one in hand] == ["threshold set by hand"]
    missed = rates(replace(record, threshold=for_misses([4.0, 2.0, 9.0], 0.25)))
    assert [one["name"] for one in missed] == ["≤ 25 % of defects missed"]
    none = rates(replace(record, threshold=None))
    assert none[0]["threshold"] is None
    few = calibrated(fitted().record)
    assert few.threshold is not None
    unmet = replace(few.threshold, value=None, rate=0.001, guarantee="", reason="too few")
    names = [one["name"] for one in rates(replace(few, threshold=unmet))]
    assert names == ["≤ 10 %", "≤ 5 %", "≤ 0.1 % (calibrated)"]
