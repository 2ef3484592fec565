"""No command writes over what it reads, and its messages name its options."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blemish.cli.app import command_tree
from blemish.cli.guarding import check_apart, guarded, options_of, with_options
from blemish.errors import ConfigError, OutputError

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]


@pytest.fixture
def inputs(part: Path, mvtec: Path, tmp_path: Path) -> dict[str, Path]:
    """Files that commands read, by what they are."""
    table = tmp_path / "labels.csv"
    lines = [f"{path},{int(path.parent.name != 'good')}" for path in mvtec.rglob("test/*/*.png")]
    table.write_text("path,label\n" + "\n".join(lines) + "\n")
    listed = tmp_path / "listed"
    shutil.copytree(mvtec, listed)
    (listed / "BBox_List_2017.csv").write_text("boxes\n")
    area = tmp_path / "area.json"
    area.write_text("[[[0, 0], [1, 0], [1, 1]]]")
    views = tmp_path / "views.csv"
    views.write_text("path,part\n")
    config = tmp_path / "config.json"
    config.write_text('{"seed": 1}')
    suite = tmp_path / "suite.toml"
    suite.write_text("")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    link = tmp_path / "link.csv"
    link.symlink_to(table)
    made: dict[str, Path] = {"PART": part, "SET": mvtec, "TABLE": table, "LISTED": listed}
    made |= {"AREA": area, "VIEWS": views, "CONFIG": config, "SUITE": suite, "ROWS": rows}
    return {**made, "LINK": link}


@pytest.mark.parametrize(
    ("command", "read"),
    [
        ("evaluate PART TABLE --report TABLE", "TABLE"),
        ("evaluate PART TABLE --report LINK", "TABLE"),
        ("evaluate PART LINK --report TABLE", "TABLE"),
        ("evaluate PART TABLE --report PART", "PART"),
        ("evaluate PART LISTED --report LISTED/BBox_List_2017.csv", "LISTED"),
        ("evaluate PART TABLE --roi AREA --report AREA", "AREA"),
        ("predict PART TABLE --coco TABLE", "TABLE"),
        ("predict PART SET --group-by VIEWS:part --report VIEWS", "VIEWS"),
        ("fit knn SET -o CONFIG --config CONFIG", "CONFIG"),
        ("fit knn SET --anomalies TABLE -o TABLE", "TABLE"),
        ("fit knn SET --weights PART -o PART", "PART"),
        ("fit lda SET --set normality_settings=CONFIG -o CONFIG", "CONFIG"),
        ("pretrain TABLE -o TABLE", "TABLE"),
        ("calibrate PART TABLE -o TABLE", "TABLE"),
        ("refine PART --good TABLE -o TABLE", "TABLE"),
        ("export PART --good TABLE -o TABLE", "TABLE"),
        ("bench SUITE --results SUITE", "SUITE"),
        ("bench --methods knn --data TABLE,SET --results TABLE", "TABLE"),
        ("bench table ROWS -o ROWS", "ROWS"),
    ],
)
def test_no_input_is_replaced(
    refused: Refused, inputs: dict[str, Path], command: str, read: str
) -> None:
    before = {path: path.read_bytes() for path in inputs.values() if path.is_file()}
    words = re.sub("[A-Z]{4,}", lambda found: str(inputs[found[0]]), command).split()
    said = refused(*words)
    assert "would replace " in said
    assert f"{inputs[read]}" in said
    assert "which this command reads; name another place" in said
    assert {path: path.read_bytes() for path in before} == before


def test_results_beside_pictures_are_written_again_and_artifacts_in_place(
    run: Run, part: Path, mvtec: Path
) -> None:
    coco, report = mvtec / "regions.json", mvtec / "report.html"
    for _ in range(2):
        predict = ("predict", part, mvtec / "test" / "good", "--coco", coco, "--report", report)
        assert run(*predict, "--region-threshold 3")[0] == 0
        assert run("evaluate", part, mvtec, "--report", report)[0] == 0
        assert run("calibrate", part, "--threshold 5", "-o", part)[0] == 0
    coco.write_text(json.dumps({"images": [], "annotations": []}))  # somebody else's
    with pytest.raises(OutputError, match=r"would replace .*regions.json, a file of"):
        check_apart({"paths": [mvtec], "coco": coco})


def test_a_graph_among_pictures_is_written_again(tmp_path: Path) -> None:
    graph = tmp_path / "part.xml"
    for name in ("good", "pictures"):
        graph.write_bytes(b'<?xml version="1.0"?>\n<net name="part" version="11">\n</net>')
        check_apart({name: [tmp_path], "output": graph})
        graph.write_bytes(b'<?xml version="1.0"?>\n<annotation></annotation>')
        with pytest.raises(OutputError, match=r"would replace .*part.xml, a file of"):
            check_apart({name: [tmp_path], "output": graph})


def test_each_input_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("report.html", "run.json", "predictions.csv", "predictions.jsonl"):
        (tmp_path / name).touch()
    paths = [tmp_path / f"{number}.png" for number in range(30)]
    asked: list[Path] = []
    stat = Path.stat

    def counted(self: Path, **named: Any) -> Any:
        asked.append(self)
        return stat(self, **named)

    monkeypatch.setattr(Path, "stat", counted)
    check_apart({"paths": paths, "output": tmp_path})
    assert [path for path in asked if path.suffix == ".png"] == paths


def test_two_outputs_are_two_files(refused: Refused, part: Path, mvtec: Path) -> None:
    there = mvtec.parent / "x.html"
    said = refused("predict", part, mvtec, "--report", there, "--coco", there)
    assert "--report and --coco: both name" in said
    out = mvtec.parent / "out"
    evaluate = ("evaluate", part, mvtec, "--output", out, "--report")
    told = "is what is written for --output; let its name be another"
    assert told in refused(*evaluate, out / "evaluation.json")
    predict = ("predict", part, mvtec, "--output", out, "--coco")
    assert told in refused(*predict, out / "run.json")
    assert not out.exists()


def test_a_table_of_predictions_is_not_written_over(tmp_path: Path) -> None:
    table = tmp_path / "predictions.csv"
    table.touch()
    check_apart({"good": [tmp_path], "output": tmp_path})
    with pytest.raises(OutputError, match=r"--output .* would replace .*predictions.csv, which"):
        check_apart({"good": [table], "output": tmp_path})


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("fit knn SET --time-budget 1 -o NEW", "--time-budget: knn is not trained step by step"),
        (
            "fit knn SET --anomaly-count 3 -o NEW",
            "knn does not learn from labelled defects; lda does",
        ),
        (
            "fit lda SET --anomaly-count 3 -o NEW",
            "--anomaly-count and --anomaly-type say which of the anomalies",
        ),
        ("fit knn SET --overlap 0.1 -o NEW", "--overlap: is that of tiles; name --tile, too"),
        (
            "fit knn SET --tile 64 --image-size 64x96 -o NEW",
            "--tile: tiles are squares, and --image-size is 64 × 96",
        ),
        (
            "fit knn SET --calibration-fraction 0 --false-alarm-rate 0.1 -o NEW",
            "and --calibration-fraction is 0",
        ),
    ],
)
def test_messages_name_options(
    refused: Refused, mvtec: Path, tmp_path: Path, command: str, told: str
) -> None:
    places = {"SET": mvtec, "NEW": tmp_path / "new"}
    said = refused(*(places.get(word, word) for word in command.split()))
    assert told in said
    assert not any(f" {name}" in said for name in ("time_budget", "image_size", "anomaly_count"))


def test_only_names_of_arguments_become_options() -> None:
    options = {"tile": "--tile", "resize": "--resize", "image_size": "--image-size"}
    for given, told in (
        ("tile and resize: x", "--tile and --resize: x"),
        ("a tile and its `resize`", "a tile and its --resize"),
        ("config.json: image_size: x", "config.json: image_size: x"),
        ("image_size: image_size=3 or bigger_image_size", "--image-size: image_size=3 or bigger_"
         "image_size"),
        ("/data/image_size/a.png: x", "/data/image_size/a.png: x"),
        ("image_size.png: x", "image_size.png: x"),
        ("--set image_size is too small.", "--set image_size is too small."),
        ("unknown setting 'x'; did you mean 'image_size'? Known: bank, image_size, seed",) * 2,
        ("lda has no setting 'x'; leave it out. Settings of lda: image_size, seed",) * 2,
        ('a.rows: holds "image_size"', 'a.rows: holds "image_size"'),
        ("suite.toml: tile and image_size: give one", "suite.toml: tile and image_size: give one"),
        ("image_size-3 and 3-image_size", "image_size-3 and 3-image_size"),
    ):  # fmt: skip
        assert with_options(given, options) == told


def test_names_that_were_given_stay_as_they_are() -> None:
    options = {"tile": "--tile", "image_size": "--image-size", "good": "--good"}
    for given, message, told in (
        ("good", "good: none; a larger image_size", "good: none; a larger --image-size"),
        ("my image_size", "my image_size: an image_size", "my image_size: an --image-size"),
        ("image_size.d/x", "image_size.d/x: `tile` of image_size.d/x", "image_size.d/x: --tile of "
         "image_size.d/x"),
        ("image", "image_size: is none", "--image-size: is none"),
        ("", "good: is none", "--good: is none"),
    ):  # fmt: skip
        assert with_options(message, options, [given, "another"]) == told


@pytest.mark.parametrize("name", ["output", "report", "smallest_region", "smallest_region parts"])
def test_a_folder_with_the_name_of_an_option_is_named(
    refused: Refused, part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert f"blemish: {name}: no pictures found" in refused("predict", part, Path(name))


def test_settings_are_no_options(refused: Refused, good_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"image_size": "x"}')
    fit = ("fit knn", good_folder, "-o", tmp_path / "new")
    for given in ("--set image_size=x", f"--config {config}"):
        assert "blemish: image_size: 'x' is no size" in refused(*fit, given)
    assert "blemish: --image-size: 'x' is no size" in refused(*fit, "--image-size x")
    assert "Known: backbone, " in (said := refused(*fit, "--set image_siz=3"))
    assert "did you mean 'image_size'?" in said
    assert "--image-size" not in said
    compare = ("compare", good_folder, "--vary image_size=32,x", "--output", tmp_path / "compared")
    assert "blemish: image_size: 'x' is no size" in refused(*compare)


def test_the_error_stays_the_same_one() -> None:
    def command(tile: int = 1) -> int:
        raise ConfigError("tile: x", "more")

    with pytest.raises(ConfigError) as caught:
        guarded(command)()
    assert caught.value.args[1:] == ("more",)


def test_every_command_tells_its_options() -> None:
    tree: Any = command_tree()
    for name, command in tree.commands.items():
        for each in getattr(command, "commands", {"": command}).values():
            long = {
                one.name: next(name for name in one.opts if name.startswith("--"))
                for one in each.params
                if one.param_type_name == "option" and one.name != "help"
            }
            assert options_of(each.callback) == long, name
