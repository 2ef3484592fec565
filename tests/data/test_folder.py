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
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "1.2.840.7").write_bytes(bytes(128) + b"DICM")
    found = search(tmp_path)
    assert found.pictures == [tmp_path / "a.png"]
    foreign, unnamed = found.left_out
    assert foreign == (
        "4 files in formats that are not read left out (2 .gif, 1 .heic, 1 .jp2); convert pictures to PNG"
    )
    assert unnamed.startswith("2 pictures without a suffix left out: ")
    assert unnamed.endswith("IM0001; add .dcm, .png or its own")
    (tmp_path / "a.png").unlink()
    with pytest.raises(
        DataError, match=r"no pictures found.*; 4 files in formats that are not read"
    ):
        search(tmp_path)


def test_formats_by_other_suffixes_are_found(tmp_path: Path) -> None:
    names = ["a.jfif", "b.JPE", "c.dib", "d.pgm", "e.ppm", "f.pnm", "g.dicom"]
    lay_out(tmp_path, *names)
    assert find_pictures(tmp_path) == [tmp_path / name for name in names]


def test_thumbnails_and_what_was_thrown_away_are_no_pictures(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        "a.png",
        "@eaDir/a.png/SYNO.jpg",
        "__MACOSX/._a.png",
        "__MACOSX/a.png",
        "$RECYCLE.BIN/b.png",
    )
    assert find_pictures(tmp_path) == [tmp_path / "a.png"]
    assert scan(tmp_path).folders == ()


def test_a_folder_is_searched_to_any_depth_in_path_order(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        "b.png",
        "a.JPG",
        "sub/deep/c.TiFF",
        "sub/d.webp",
        "notes.txt",
        "e.dcm",
        "f.png.bak",
    )
    expected = ["a.JPG", "b.png", "e.dcm", "sub/d.webp", "sub/deep/c.TiFF"]
    assert find_pictures(tmp_path) == [tmp_path / name for name in expected]


def test_hidden_files_and_folders_are_skipped_below_the_folder_but_not_above(
    tmp_path: Path,
) -> None:
    root = tmp_path / ".hidden"
    lay_out(root, "a.png", ".b.png", ".thumbs/c.png")
    assert find_pictures([root]) == [root / "a.png"]


def test_a_named_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    path = lay_out(tmp_path, "scan.0001") / "scan.0001"
    assert find_pictures([str(path)]) == [path]


def test_duplicates_are_removed_and_the_order_of_the_arguments_kept(tmp_path: Path) -> None:
    lay_out(tmp_path, "x/a.png", "x/b.png", "w/c.png")
    x, w = tmp_path / "x", tmp_path / "w"
    spelled_differently = w / ".." / "x" / "a.png"
    assert find_pictures([x / "b.png", x, w, spelled_differently]) == [
        x / "b.png",
        x / "a.png",
        w / "c.png",
    ]


def test_patterns(tmp_path: Path) -> None:
    lay_out(tmp_path, "x/a1.png", "x/a2.png", "x/b1.png", "x/a3.txt", "x/sub/a4.png", "x/.a5.png")
    found = find_pictures([str(tmp_path / "x" / "a*")])
    assert [path.name for path in found] == ["a1.png", "a2.png"]
    found = find_pictures([tmp_path / "**" / "a?.png"])
    assert [path.name for path in found] == ["a1.png", "a2.png", "a4.png"]
    found = find_pictures([tmp_path / "[x]"])
    assert [path.name for path in found] == ["a1.png", "a2.png", "b1.png", "a4.png"]


def test_an_existing_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    lay_out(tmp_path, "run[1]/a.png", "run1/b.png")
    assert find_pictures([tmp_path / "run[1]"]) == [tmp_path / "run[1]" / "a.png"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    lay_out(tmp_path, "store/a.png", "set/b.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "set" / "self").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "circle.png").symlink_to(tmp_path / "set" / "circle.png")
    (tmp_path / "store" / "back").symlink_to(tmp_path / "set")
    found = find_pictures(tmp_path / "set")
    assert found == [tmp_path / "set" / name for name in ("b.png", "circle.png", "linked/a.png")]
    assert scan(tmp_path / "set").folders == (tmp_path / "set" / "linked",)


def test_a_folder_linked_twice_is_found_in_both_places(tmp_path: Path) -> None:
    lay_out(tmp_path, "store/a.png")
    root = tmp_path / "set"
    root.mkdir()
    (root / "one").symlink_to(tmp_path / "store")
    (root / "two").symlink_to(tmp_path / "store")
    assert find_pictures(root) == [root / "one" / "a.png", root / "two" / "a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_with_a_pictures_name_is_no_picture(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert find_pictures(tmp_path) == [tmp_path / "a.png"]
    assert scan(tmp_path).others == (tmp_path / "b.png",)


def test_scan_also_lists_folders_and_other_files(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.png", "sub/b.txt")
    (tmp_path / "empty").mkdir()
    tree = scan(tmp_path)
    assert tree.folders == (tmp_path / "empty", tmp_path / "sub")
    assert tree.others == (tmp_path / "sub" / "b.txt",)


@pytest.mark.parametrize("name", ["absent", "absent.png", "x" * 5000])
def test_a_path_that_does_not_exist_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=name[:20]):
        find_pictures([tmp_path, tmp_path / name])


def test_a_pattern_without_a_hit_is_an_error_even_beside_pictures(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.png")
    with pytest.raises(DataError, match="pattern"):
        find_pictures([tmp_path / "a.png", tmp_path / "*.jpg"])


def test_nothing_found_says_where_and_what_was_looked_for(tmp_path: Path) -> None:
    lay_out(tmp_path, "void/readme.md")
    with pytest.raises(DataError, match=r"void.*no pictures.*\.bmp.*\.webp"):
        find_pictures([tmp_path / "void"])
    with pytest.raises(DataError, match="no path"):
        find_pictures([])


def test_an_empty_folder_beside_a_full_one_is_no_error(tmp_path: Path) -> None:
    lay_out(tmp_path, "full/a.png")
    (tmp_path / "void").mkdir()
    assert find_pictures([tmp_path / "void", tmp_path / "full"]) == [tmp_path / "full" / "a.png"]


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
