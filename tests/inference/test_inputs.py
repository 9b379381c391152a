"""Which pictures the command line names."""

import os

from marigold_jax.inference.inputs import find_images, passed_over


def test_find_images_below_folders(tmp_path):
    for name in ("a.jpg", "z/b.jpg", "z/y/c.PNG", "z/.trash/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "z" / "up").symlink_to(tmp_path)
    (tmp_path / "z" / "again").symlink_to(tmp_path / "z" / "y")

    def names(pattern, recursive=True):
        found, problems = find_images([str(tmp_path / pattern)], recursive)
        assert problems == []
        return [str(path.relative_to(tmp_path)) for path in found]

    assert names("") == ["a.jpg", "z/b.jpg", "z/again/c.PNG"]  # what two ways lead to counts once
    assert names("z") == ["z/b.jpg", "z/again/c.PNG", "z/up/a.jpg"]
    assert names("**", recursive=False) == names("**/*", recursive=False) == ["a.jpg", "z/again/c.PNG", "z/b.jpg"]
    assert names("[z]*") == ["z/b.jpg", "z/again/c.PNG", "z/up/a.jpg"]
    assert find_images([str(tmp_path / "[z]*")]) == (
        [],
        [(str(tmp_path / "[z]*"), "only folders match: name them without quotes, or add --recursive")],
    )


def test_a_subfolder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    for name in ("a.jpg", "locked/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    scan = os.scandir

    def guarded(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    found, problems = find_images([str(tmp_path)], recursive=True)
    assert found == [tmp_path / "a.jpg"] and problems == [(str(tmp_path / "locked"), "Permission denied")]


def test_many_files_are_not_all_named(tmp_path):
    for index in range(30):
        (tmp_path / f"{index:02}.txt").write_bytes(b"")
    (line,) = passed_over([str(tmp_path), str(tmp_path)])
    assert line.startswith(f"30 files in {tmp_path} were passed over: 00.txt, 01.txt") and line.endswith(
        ", and 10 more"
    )
    assert "30.txt" not in line
    for index in range(29):
        (tmp_path / f"{index:02}.txt").unlink()
    assert passed_over([str(tmp_path)]) == [f"1 file in {tmp_path} was passed over: 29.txt"]


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", "c[1].webp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "empty").mkdir()

    def names(*patterns):
        found, problems = find_images([str(tmp_path / pattern) for pattern in patterns])
        return [path.name for path in found], [problem for _, problem in problems]

    assert names("") == (["a.jpg", "b.PNG", "c[1].webp"], [])
    assert names("b.PNG", "", "a.jpg") == (["b.PNG", "a.jpg", "c[1].webp"], [])  # each once
    assert names("notes.txt") == (["notes.txt"], [])
    assert names("c[1].webp", "*.jpg") == (["c[1].webp", "a.jpg"], [])  # an existing file is not a pattern
    assert names("empty", "x.png", "*.bmp", "a.jpg") == (
        ["a.jpg"],
        ["no pictures in this folder", "no such file or folder", "no file matches"],
    )


def test_extensions_in_any_case(tmp_path):
    for name in ("x.mpo", "y.JPG"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images([str(tmp_path)])[0]] == ["x.mpo", "y.JPG"]


def test_heic_counts_where_it_can_be_read(tmp_path, monkeypatch):
    (tmp_path / "x.HEIC").write_bytes(b"")
    for there, found in ((True, ["x.HEIC"]), (False, [])):
        monkeypatch.setattr("marigold_jax.data.images.find_spec", lambda name, there=there: there)
        assert [path.name for path in find_images([str(tmp_path)])[0]] == found
