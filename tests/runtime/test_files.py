"""Files from outside are opened with suspicion, and written whole."""

import json
import os

import pytest

from marigold_jax.runtime import files


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert files.regular(tmp_path / "link") == tmp_path / "link"
    for path, found in {tmp_path / "fifo": "FIFO", "/dev/zero": "device", tmp_path: "folder"}.items():
        with pytest.raises(ValueError, match=found):
            files.regular(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        files.regular(tmp_path / "none")
    with pytest.raises(ValueError, match="too long"):
        files.regular(tmp_path / ("x" * 5000))
    with pytest.raises(ValueError, match="null"):
        files.regular("a\0b")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\0b"])
def test_names_from_files_stay_below_their_folder(tmp_path, name):
    with pytest.raises(ValueError, match="relative name"):
        files.below(tmp_path, name)
    assert files.below(tmp_path, "a/b.png") == tmp_path / "a" / "b.png"


BROKEN = {
    "array": b"[1]",
    "cut short": b'{"a": ',
    "not text": b"\xff\xfe{}",
    "nested": b'{"a":' * 100_000,
    "empty": b"",
    "number": b"1" * 10_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_json_that_is_no_object_costs_one_line(tmp_path, content):
    (file := tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*config\.json: [^\n]*$"):
        files.read_json(file)


def test_json_of_a_gigabyte_is_not_read(tmp_path):
    with open(file := tmp_path / "config.json", "wb") as sparse:
        sparse.truncate(2**30)
    with pytest.raises(ValueError, match="at most"):
        files.read_json(file)


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    files.write_json(tmp_path / "new" / "a.json", {"a": 1})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"a": 1}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        files.write(tmp_path / "new" / "a.json", b"other")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"a": 1}


def test_a_torn_last_line_is_ended_before_the_next(tmp_path):
    (file := tmp_path / "lines.jsonl").write_bytes(b'{"a": 1}\n{"b": ')
    for line in (b"2\n", b"3\n"):
        with files.append_lines(file) as lines:
            lines.write(line)
    assert file.read_bytes() == b'{"a": 1}\n{"b": \n2\n3\n'


def test_nothing_in_a_name_controls_the_terminal():
    assert files.printable("a\x1b[31m\u202eb\n\udcff é") == "a\\x1b[31m\\u202eb\\n\\udcff é"
