from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from blemish.errors import ConfigError, NonFiniteError
from blemish.report.charts import Spread
from blemish.report.figures import (
    Row,
    _tsne,
    embeddings,
    gallery,
    health,
    score_histograms,
)

RNG = np.random.default_rng(0)
GOOD, DEFECTIVE = RNG.normal(1, 0.3, 60), RNG.normal(3, 0.8, 20)


def score_histogram(**spread: Any) -> bytes:
    return score_histograms({"": Spread(**spread)})


def embedding(points: Any, *told: Any) -> bytes:
    return embeddings({"": points}, *told)


def text(svg: bytes) -> str:
    """All words of an SVG file, which must be well-formed."""
    return " ".join(ElementTree.fromstring(svg).itertext())


def pixels(png: bytes) -> np.ndarray:
    """H W 3 of a PNG file."""
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_same_input_gives_the_same_bytes_in_another_process() -> None:
    code = """if True:
        import sys
        from blemish.report.figures import Spread, score_histograms
        sys.stdout.buffer.write(score_histograms({"": Spread(good=[0, 1])}))
        sys.exit("matplotlib.pyplot" in sys.modules)  # its figures would never be freed
    """
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert score_histogram(good=[0, 1]) == other
    assert b"<dc:date>" not in other


def test_png_is_drawn_without_a_display() -> None:
    png = pixels(score_histograms({"": Spread(good=GOOD, threshold=2.0)}, format="png"))
    assert (png[0, 0] == 255).all()
    assert np.ptp(png) > 150


def test_settings_of_the_caller_neither_matter_nor_change() -> None:
    expected = score_histogram(good=[0, 1])
    with matplotlib.rc_context(
        {"axes.facecolor": "black", "font.size": 40.0, "svg.fonttype": "path"}
    ):
        before = dict(matplotlib.rcParams)
        assert score_histogram(good=[0, 1]) == expected
        assert dict(matplotlib.rcParams) == before


def test_threads_do_not_disturb_each_other() -> None:
    expected = score_histogram(good=GOOD, defective=DEFECTIVE)
    drawn: list[Future[bytes]] = []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            drawn.append(pool.submit(score_histogram, good=GOOD, defective=DEFECTIVE))
    assert [one.result() for one in drawn] == [expected] * 4


def test_what_cannot_be_drawn_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="scores"):
        score_histogram(good=[1.0, np.nan])
    with pytest.raises(NonFiniteError, match="threshold"):
        score_histogram(good=[1.0], threshold=np.inf)


def test_the_health_of_a_training() -> None:
    steps = np.arange(1, 5001)
    tile = np.full((8, 8, 3), 90, np.uint8)
    curves = {"loss": 3 / steps, "usage": RNG.uniform(1, 20, len(steps))}
    drawn = health(steps, curves, [("the picture", tile), ("step 1", tile)], format="svg")
    words = text(drawn)
    for said in ("loss", "usage", "steps", "the picture", "step 1"):
        assert said in words
    assert len(drawn) < 100_000  # however many steps there were
    assert pixels(health([1], {"loss": [0.5]}, [("the picture", tile)])).std() > 5
    with pytest.raises(ConfigError, match="5000 values and loss 2"):
        health(steps, {"loss": [1.0, 2.0]}, [("", tile)])
    with pytest.raises(NonFiniteError, match="loss"):
        health([1, 2], {"loss": [1.0, np.nan]}, [("", tile)])


def test_an_embedding_names_good_pictures_and_kinds_of_defects_with_counts() -> None:
    points = np.concatenate([RNG.normal(0, 1, (9, 5)), RNG.normal(20, 1, (6, 5))])
    labels = [0] * 9 + [1] * 6
    kinds = [*["ignored"] * 9, "dent", "_cut $x^{", "dent", "dent", "\x1b", ""]
    words = text(embedding(points, labels, kinds))
    counts = ("9 good", "3 dent", "1 _cut $x^{", r"1 \x1b", "1 other defects", "15 pictures")
    for said in (*counts, "perplexity 4.67"):
        assert said in words
    assert "ignored" not in words
    words = text(embedding(points, labels))
    assert "6 defective" in words
    assert embedding(points, labels, kinds) == embedding(points, labels, kinds)
    twenty = [f"kind {n:02}" for n in range(20)] * 2
    many = text(embedding(RNG.normal(0, 1, (40, 3)), [1] * 40, twenty))
    assert all(said in many for said in ("2 kind 10", "18 other defects"))
    assert not any(said in many for said in ("2 kind 11", "good"))


def test_what_is_alike_lies_close_together() -> None:
    points = np.concatenate([RNG.normal(0, 1, (30, 8)), RNG.normal(12, 1, (30, 8))]).astype(
        np.float32
    )
    places = _tsne(points, perplexity=10.0)
    nearest = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(60, np.inf))
    assert ((nearest.argmin(1) < 30) == (np.arange(60) < 30)).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_few_points_and_those_that_coincide_are_drawn(scale: float) -> None:
    assert "3 good" in text(embedding(scale * RNG.normal(0, 1, (3, 2)), [0] * 3))
    assert "3 good" in text(embedding(np.full((3, 4), scale), [0] * 3))


def test_an_embedding_that_cannot_be_drawn_is_an_error() -> None:
    for shape in ((2, 5), (9, 1), (9,)):
        with pytest.raises(ConfigError, match="3 or more points of 2 or more features"):
            embedding(np.zeros(shape), [0] * shape[0])
    with pytest.raises(ConfigError, match="4 points, 3 labels and 3 names"):
        embedding(np.zeros((4, 2)), [0] * 3)
    with pytest.raises(ConfigError, match="4 points, 4 labels and 1 names"):
        embedding(np.zeros((4, 2)), [0] * 4, ["dent"])
    with pytest.raises(NonFiniteError, match="features"):
        embedding([[0.0, 1.0], [np.inf, 0.0], [1.0, 1.0]], [0, 0, 1])


def test_a_gallery_shows_what_each_row_has_under_its_columns() -> None:
    red, green, blue = (
        np.tile(np.array(colour, np.uint8), (6, 9, 1)) for colour in np.eye(3) * 250
    )
    first = Row(caption="first\nscore 1", tiles={"b $_{": red}, labels={"b $_{": "0.25 $_{"})
    second = Row(caption="no. $2_{\x07" + "x" * 40, tiles={"b $_{": green, "mask": blue})
    rows = [first, second]
    words = text(gallery(rows, note="a rectangle", format="svg"))
    for said in ("b $_{", "mask", "first", "score 1", r"no. $2_{\x07", "07…x", "a rectangle"):
        assert said in words
    assert "0.25 $_{" in words

    def places(**options: Any) -> list[np.ndarray]:
        """Row and column of each colour."""
        drawn = pixels(gallery([replace(first, labels={}), second], **options))
        found = [np.argwhere((drawn[..., c] == 250) & (drawn.sum(2) == 250)) for c in range(3)]
        assert min(map(len, found)) > 1000
        return [each.mean(0) for each in found]

    seen_red, seen_green, seen_blue = places()
    assert seen_red[0] < seen_green[0] == pytest.approx(seen_blue[0], abs=2)
    assert seen_red[1] == pytest.approx(seen_green[1], abs=2)
    assert seen_green[1] < seen_blue[1]
    _, seen_green, seen_blue = places(columns=("mask", "b $_{", "c"))
    assert seen_green[1] > seen_blue[1]
    for nothing, columns in (([], ()), ([Row(caption="caption", tiles={})], ()), (rows, ("c",))):
        with pytest.raises(ConfigError, match="at least one picture"):
            gallery(nothing, columns=columns)


def test_histograms_side_by_side_name_detectors_and_keep_their_own_scores() -> None:
    first = Spread(good=GOOD, defective=DEFECTIVE, threshold=2.125)
    words = text(score_histograms({"one $_{": first, "two": Spread(good=GOOD[:7] * 1e3)}))
    for said in ("one $_{", "two", "good (60)", "defective (20)", "threshold 2.125", "good (7)"):
        assert said in words
    assert words.count("threshold") == 1


def test_embeddings_side_by_side_share_one_legend() -> None:
    points = {"one $_{": RNG.normal(size=(9, 4)), "two": RNG.normal(size=(9, 7))}
    words = text(embeddings(points, [0] * 5 + [1] * 4, [""] * 5 + ["dent"] * 4))
    counts = [words.count(said) for said in ("t-SNE of 9 pictures", "5 good", "4 dent")]
    assert counts == [2, 1, 1]
    assert all(title in words for title in points)
    with pytest.raises(ConfigError, match="8 points, 9 labels"):
        embeddings({**points, "three": np.zeros((8, 2))}, [0] * 9)
