"""What is held of the public data sets, and how they are found and compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from trees import lay_out

from blemish.data.layouts import OFFICIAL, Counts, Dataset, category_paths, differences, find, read
from blemish.types import ANOMALOUS, NORMAL, Sample

PREPARED = ("train/good/0.png", "test/good/0.png", "test/hole/0.png")


def samples(counts: Counts, category: str) -> list[Sample]:
    """As many as counted; those of a kind are one and the same, which is enough to be counted."""
    normal = Sample(path=Path("0.png"), label=NORMAL, category=category)
    train, good = (dataclasses.replace(normal, split=split) for split in ("train", "test"))
    bad = dataclasses.replace(good, label=ANOMALOUS, mask=Path("mask.png"))
    return [train] * counts.train + [good] * counts.test_normal + [bad] * counts.test_anomalous


@pytest.mark.parametrize(
    ("name", "categories", "train", "good", "anomalous"),
    [
        ("mvtec", 15, 3629, 467, 1258),
        ("visa", 12, 8659, 962, 1200),
        ("mvtec3d", 10, 2656, 249, 948),
        ("nih", 1, 60361 - 9861, 25596 - 15735, 880),
        ("head_ct", 1, 75, 25, 100),
        ("brain_mri", 1, 73, 25, 155),
        ("elpv", 1, 1131, 377, 715),
        ("kolektor_sdd", 1, 399 - 52 - 87, 87, 52),
        ("magnetic_tile", 1, 762, 190, 115 + 85 + 57 + 32 + 103),
    ],
)
def test_the_sums(name: str, categories: int, train: int, good: int, anomalous: int) -> None:
    official = OFFICIAL[name]
    assert len(official.categories) == categories
    assert official.total == Counts(train=train, test_normal=good, test_anomalous=anomalous)


def test_every_set_is_whole() -> None:
    for name, official in OFFICIAL.items():
        assert official.name == name
        assert bool(official.fits) == bool(official.read) == (name != "mvtec")
        told = official.to_dict()
        assert {*told, "fits", "read"} == {field.name for field in dataclasses.fields(official)}
        assert all(value for field, value in told.items() if field != "masks")
        if len(official.categories) == 1:
            assert list(official.categories) == [name]


@pytest.mark.parametrize("folder", ["mvtec", "MVTec-AD", "MVTecAD", "mvtec_anomaly_detection"])
def test_find_by_name(tmp_path: Path, folder: str) -> None:
    lay_out(tmp_path, f"{folder}/screw/train/good/0.png", "visa/candle/Data/Images/Normal/0.JPG")
    assert find(OFFICIAL["mvtec"], tmp_path) == tmp_path / folder
    assert find(OFFICIAL["mvtec"], tmp_path / folder) == tmp_path / folder
    assert find(OFFICIAL["visa"], tmp_path) == tmp_path / "visa"
    assert find(OFFICIAL["mvtec3d"], tmp_path) is None
    assert find(OFFICIAL["mvtec"], tmp_path / "nowhere") is None


def test_find_by_what_is_there(tmp_path: Path) -> None:
    for name, there in [
        ("mvtec3d", "bagel/train/good/rgb/0.png"),
        ("kolektor_sdd", "kos01/Part0.jpg"),
        ("magnetic_tile", "MT_Free/Imgs/0.jpg"),
        ("brain_mri", "yes/Y1.jpg"),
    ]:
        root = lay_out(tmp_path / name[:3], there)
        found = [each for each, official in OFFICIAL.items() if find(official, root) == root]
        assert found == [name]


def test_what_would_be_read_as_another_set_is_not_found(tmp_path: Path) -> None:
    lay_out(tmp_path, "kos01/Part0.jpg", "yes/Y1.jpg", "no/0.jpg", "bottle/train/good/0.png")
    assert find(OFFICIAL["kolektor_sdd"], tmp_path) == tmp_path
    assert find(OFFICIAL["brain_mri"], tmp_path) is None
    assert find(OFFICIAL["mvtec"], tmp_path) == tmp_path  # its categories are read one by one


def test_own_pictures_in_the_folders_of_a_public_set(tmp_path: Path) -> None:
    dataset = read(lay_out(tmp_path / "own", "train/good/rgb/0.png", "test/good/rgb/0.png"))
    assert (dataset.layout, differences(dataset)) == ("mvtec3d", ())


def test_what_holds_a_set_goes_before_what_is_only_called_so(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "head_ct", "labels.csv", "head_ct/000.png")
    (root / "labels.csv").write_text("id, hemorrhage\n0,1\n")
    assert find(OFFICIAL["head_ct"], root) == root
    assert find(OFFICIAL["head_ct"], tmp_path) == root
    (tmp_path / "mvtec").mkdir()
    lay_out(tmp_path, "MVTec_AD/tile/test/good/0.png")
    assert find(OFFICIAL["mvtec"], tmp_path) == tmp_path / "MVTec_AD"
    assert find(OFFICIAL["mvtec"], tmp_path / "mvtec") == tmp_path / "mvtec"


@pytest.mark.parametrize(
    ("name", "called"),
    [("brain_mri", "Brain-MRI"), ("magnetic_tile", "Magnetic-tile-defect-datasets.-master")],
)
def test_a_prepared_set_of_one_category(tmp_path: Path, name: str, called: str) -> None:
    folder = lay_out(tmp_path / called, *PREPARED)
    assert find(OFFICIAL[name], tmp_path) == folder
    assert category_paths(OFFICIAL[name], folder) == {name: folder}
    assert "1 of " in differences(read(folder))[0]


def test_category_paths(tmp_path: Path) -> None:
    good = "train/good/0.png"
    root = lay_out(tmp_path, f"wood/{good}", "bottle/test/good/0.png", "tile/a.txt", f"nut/{good}")
    found = category_paths(OFFICIAL["mvtec"], root)
    assert list(found.items()) == [("bottle", root / "bottle"), ("wood", root / "wood")]
    lay_out(root, "pcb1/Data/Images/Normal/0.JPG", f"candle/{good}")
    assert list(category_paths(OFFICIAL["visa"], root)) == ["candle", "pcb1"]


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_whole_set_differs_in_nothing_and_a_part_in_what_is_missing(name: str) -> None:
    official = OFFICIAL[name]
    held = [each for name, counts in official.categories.items() for each in samples(counts, name)]
    layout = "mvtec-root" if name == "mvtec" else name
    whole = Dataset(root=Path(name), layout=layout, description="", samples=tuple(held))
    assert differences(whole) == ()
    part = dataclasses.replace(whole, samples=tuple(held[:-1]))
    last = list(official.categories)[-1]
    full = official.categories[last].test_anomalous
    title = last if len(official.categories) > 1 else official.title
    assert differences(part) == (f"{title}: {full - 1} of {full} anomalous test pictures",)
    more = dataclasses.replace(whole, samples=(*held, held[-1]))
    assert differences(more) == (f"{title}: {full + 1} anomalous test pictures instead of {full}",)


def test_a_category_alone_is_no_part_of_a_root(tmp_path: Path) -> None:
    held = tuple(samples(OFFICIAL["mvtec"].categories["tile"], "tile"))
    alone = Dataset(root=tmp_path / "tile", layout="mvtec", description="", samples=held)
    assert differences(alone) == ()
    bare = tuple(dataclasses.replace(sample, mask=None) for sample in held)
    assert differences(dataclasses.replace(alone, samples=bare)) == ("tile: no masks",)
    root = dataclasses.replace(alone, root=tmp_path, layout="mvtec-root")
    assert differences(root) == ("MVTec AD: 1 of 15 categories",)


def test_what_is_no_public_set(tmp_path: Path) -> None:
    assert differences(read(lay_out(tmp_path / "own", *PREPARED))) == ()
    names = [f"{category}/{name}" for category in ("tile", "own") for name in PREPARED]
    lay_out(tmp_path / "line", *names)
    assert differences(read(tmp_path / "line")) == ()
    assert differences(read(lay_out(tmp_path / "bottle", "good/0.png", "hole/0.png"))) == ()
