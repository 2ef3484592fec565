"""Finding picture files; nothing here is decoded, so that empty files will do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trees import lay_out

from blemish.data.folder import find_pictures, scan, search
from blemish.errors import DataError


def test_what_could_be_taken_for_pictures_and_is_not_read_is_told(tmp_path: Path) -> None:
    names = ["a.png", "b.gif", "c.GIF", "sub/d.jp2", "e.heic", "notes.txt", "Thumbs.db", "LICENSE"]
    lay_out(tmp_path, *names)
    for name in ("IM0001", "1.2.840.7"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    found = search(tmp_path)
    assert found.pictures == [tmp_path / "a.png"]
    foreign, unnamed = found.left_out
    formats = "4 files in formats that are not read left out (2 .gif, 1 .heic, 1 .jp2)"
    assert foreign == f"{formats}; convert pictures to PNG"
    assert unnamed.startswith("2 pictures without a suffix left out: ")
    assert unnamed.endswith("IM0001; add .dcm, .png or its own")
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"no pictures found.*; 4 files in formats that are not"):
        search(tmp_path)


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ("a.jfif b.JPE c.dib d.pgm e.ppm f.pnm g.dicom h.dcm i.TiFF j.webp", None),
        ("a.JPG b.png sub/d.webp sub/deep/c.png", None),  # in path order
        ("notes.txt a.png f.png.bak", "a.png"),
        ("a.png @eaDir/a.png/SYNO.jpg __MACOSX/._a.png __MACOSX/a.png $RECYCLE.BIN/b.png", "a.png"),
        ("a.png .b.png .thumbs/c.png", "a.png"),
    ],
)
def test_a_folder_is_searched_to_any_depth(tmp_path: Path, there: str, found: str | None) -> None:
    root = lay_out(tmp_path / ".hidden", *there.split())
    assert find_pictures(root) == [root / name for name in (found or there).split()]
    assert all(path.name.startswith(("sub", "deep")) for path in scan(root).folders)


def test_a_named_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    path = lay_out(tmp_path, "scan.0001") / "scan.0001"
    assert find_pictures([str(path)]) == [path]


def test_duplicates_are_removed_and_the_order_of_the_arguments_kept(tmp_path: Path) -> None:
    lay_out(tmp_path, "x/a.png", "x/b.png", "w/c.png")
    (tmp_path / "void").mkdir()
    x, w = tmp_path / "x", tmp_path / "w"
    found = find_pictures([x / "b.png", tmp_path / "void", x, w, w / ".." / "x" / "a.png"])
    assert found == [x / "b.png", x / "a.png", w / "c.png"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("x/a*", "a1 a2"), ("**/a?.png", "a1 a2 a4"), ("[x]", "a1 a2 b1 a4"), ("**", "a1 a2 b1 a4")],
)
def test_patterns(tmp_path: Path, pattern: str, found: str) -> None:
    lay_out(tmp_path, "x/a1.png", "x/a2.png", "x/b1.png", "x/a3.txt", "x/sub/a4.png", "x/.a5.png")
    assert " ".join(path.stem for path in find_pictures([str(tmp_path / pattern)])) == found


def test_an_existing_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    lay_out(tmp_path, "run[1]/a.png", "run1/b.png")
    assert find_pictures([tmp_path / "run[1]"]) == [tmp_path / "run[1]" / "a.png"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "store/a.png", "set/b.png") / "set"
    for link, target in (("one", "store"), ("two", "store"), ("self", "set")):
        (root / link).symlink_to(tmp_path / target)
    (root / "circle.png").symlink_to(root / "circle.png")
    (tmp_path / "store" / "back").symlink_to(root)
    found = ("b.png", "circle.png", "one/a.png", "two/a.png")
    assert find_pictures(root) == [root / name for name in found]
    assert scan(root).folders == (root / "one", root / "two")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_with_a_pictures_name_is_no_picture(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.png", "sub/b.txt")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "empty").mkdir()
    tree = scan(tmp_path)
    assert tree.pictures == (tmp_path / "a.png",)
    assert tree.others == (tmp_path / "b.png", tmp_path / "sub" / "b.txt")
    assert tree.folders == (tmp_path / "empty", tmp_path / "sub")


@pytest.mark.parametrize("name", ["absent", "absent.png", "x" * 5000])
def test_a_path_that_does_not_exist_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=name[:20]):
        find_pictures([tmp_path, tmp_path / name])


def test_nothing_found_says_where_and_what_was_looked_for(tmp_path: Path) -> None:
    lay_out(tmp_path, "void/readme.md", "a.png")
    with pytest.raises(DataError, match=r"void.*no pictures.*\.bmp.*\.webp"):
        find_pictures([tmp_path / "void"])
    with pytest.raises(DataError, match="no path"):
        find_pictures([])
    with pytest.raises(DataError, match="pattern"):
        find_pictures([tmp_path / "a.png", tmp_path / "*.jpg"])


def test_a_folder_that_may_not_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path, "a.png", "locked/b.png")
    listing = os.scandir

    def refuse(path: Path) -> object:  # in place of chmod, which does not stop a superuser
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"locked: .*Permission denied"):
        find_pictures(tmp_path)
