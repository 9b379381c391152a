"""Anybody's folder again: what else lies in it, what other programs write, and names that nobody expects."""

import json
import os

import h5py
import numpy as np
import OpenEXR
import pytest
from PIL import Image

from marigold_jax import prepare
from marigold_jax.data.depth_format import DepthFormat
from marigold_jax.data.filename_list import filename_lines
from marigold_jax.data.folder import FORMATS, hold_out, list_frames
from marigold_jax.data.images import HEIF_EXTENSIONS, HEIF_HINT, read_image
from marigold_jax.data.prepared import PreparedSplit, decode
from marigold_jax.data.raw_frame import BadFrame, check_rgb

HEIGHT, WIDTH = 12, 17
DEPTH = np.random.default_rng(0).integers(500, 60000, (HEIGHT, WIDTH), dtype=np.uint16)
RGB = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ORIENTATION = 0x0112


@pytest.fixture
def raw(tmp_path):
    """Two frames, `a` and `b`."""
    for folder in ("rgb", "depth"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    for stem in "ab":
        save_pair(tmp_path / "mine", stem)
    return tmp_path / "mine"


def save_pair(root, stem, rgb=RGB, depth=DEPTH):
    for folder, array in (("rgb", rgb), ("depth", depth)):
        (root / folder / stem).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / folder / f"{stem}.png")


def run(raw, *flags, unit=("--unit", "mm")):
    given = ["--raw_dir", str(raw), "--data_dir", str(raw.parent), "--workers", "1", *unit, *flags]
    return prepare.main(["folder", *given])


def remarks(raw):
    report = raw.parent / "rgbd" / "mine" / "report-train.jsonl"
    return {(line["frame"], line["reason"]) for line in map(json.loads, open(report))}


def names(raw, split="train"):
    prepared = PreparedSplit(f"{raw.parent}/mine/{split}")
    return [prepared.name_of(index) for index in range(len(prepared))]


def exif(orientation):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


# -------------------------------------------------------------------------------------------- what else lies in folders

BESIDE = {  # a file beside the good ones -> why it is not used
    "rgb/a.json": "unknown kind",
    "rgb/a.txt": "unknown kind",
    "rgb/film.mp4": "unknown kind",
    "rgb/README": "unknown kind",
    "rgb/c.xyz": "unknown kind",
    "rgb/c.jpg.xmp": "unknown kind",
    "depth/a.jpg": "unknown kind",
    "depth/a.txt": "unknown kind",
    "depth/lonely.png": "no picture of this name in rgb",
    "depth/lonely.zip": "unknown kind",
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_file_beside_the_frames_costs_none_and_is_named(raw, capsys, name):
    (raw / name).write_bytes(b"?")
    assert run(raw) == 0
    assert names(raw) == ["rgb/a.png", "rgb/b.png"]
    assert remarks(raw) == {(name, "not used")}
    assert f"files not used: 1 {BESIDE[name]} ({name}): see " in capsys.readouterr().out


@pytest.mark.parametrize("name", [".DS_Store", "._a.jpg", "Thumbs.db", "desktop.ini", ".hidden/x.png", "@eaDir/a.jpg"])
def test_litter_is_no_news(raw, capsys, name):
    for folder in ("rgb", "depth"):
        (raw / folder / name).parent.mkdir(exist_ok=True)
        (raw / folder / name).write_bytes(b"?")
    assert run(raw) == 0
    assert names(raw) == ["rgb/a.png", "rgb/b.png"] and remarks(raw) == set()
    assert "not used" not in capsys.readouterr().out


def test_many_files_that_are_not_used_are_one_line(raw, capsys):
    for number in range(30):
        (raw / "depth" / f"{number:02d}.jpg").write_bytes(b"")
    assert run(raw) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "not used" in line]
    assert line.startswith("files not used: 30 unknown kind (depth/00.jpg, ") and "04.jpg, ...)" in line
    assert len(remarks(raw)) == 30


@pytest.mark.parametrize(
    ("folder", "second"), [("rgb", "a.jpg"), ("rgb", "a.PNG"), ("depth", "a.npy"), ("mask", "a.npy")]
)
def test_two_files_of_one_name_are_no_frame_and_are_both_named(raw, capsys, folder, second):
    if folder == "mask":
        (raw / "mask").mkdir()
        for stem in "ab":
            Image.new("L", (WIDTH, HEIGHT), 255).save(raw / "mask" / f"{stem}.png")
    if second.endswith("npy"):
        np.save(raw / folder / second, DEPTH)
    else:
        Image.fromarray(RGB).save(raw / folder / second)
    assert run(raw) == 0
    assert names(raw) == ["rgb/b.png"]
    assert "(1 ambiguous)" in capsys.readouterr().out
    (line,) = map(json.loads, open(raw.parent / "rgbd" / "mine" / "report-train.jsonl"))
    assert f"{folder}/a.png" in line["detail"] and f"{folder}/{second}" in line["detail"]


def test_a_colourful_preview_beside_depth_is_not_depth(raw, capsys):
    np.save(raw / "depth" / "a.npy", DEPTH)
    Image.fromarray(RGB).save(raw / "depth" / "a.png")
    assert run(raw) == 0
    assert names(raw) == ["rgb/a.png", "rgb/b.png"] and remarks(raw) == {("depth/a.png", "not used")}
    assert "preview, 8-bit or in colour (depth/a.png)" in capsys.readouterr().out


def test_what_is_no_file_does_not_hang(raw):
    os.mkfifo(raw / "rgb" / "fifo.png")
    os.mkfifo(raw / "depth" / "fifo.png")
    (raw / "rgb" / "gone.png").symlink_to("nowhere.png")
    (raw / "depth" / "gone.png").symlink_to("nowhere.png")
    (raw / "rgb" / "c.png").symlink_to("a.png")
    (raw / "depth" / "c.png").symlink_to("a.png")
    assert run(raw) == 0
    assert names(raw) == ["rgb/a.png", "rgb/b.png", "rgb/c.png"]
    assert remarks(raw) == {("rgb/fifo.png", "unreadable file"), ("rgb/gone.png", "missing file")}


def test_links_to_folders_are_followed_and_loops_are_not(raw):
    save_pair(raw.parent / "elsewhere", "x")
    for folder in ("rgb", "depth"):
        (raw / folder / "scene").symlink_to(raw.parent / "elsewhere" / folder)
        (raw / folder / "loop").symlink_to(raw / folder)
    assert run(raw) == 0
    assert names(raw) == ["rgb/a.png", "rgb/b.png", "rgb/scene/x.png"]
    assert remarks(raw) == {("rgb/loop", "not used"), ("depth/loop", "not used")}


def test_a_folder_without_pictures_says_what_is_there(raw, capsys):
    for stem in "ab":
        (raw / "rgb" / f"{stem}.png").rename(raw / "rgb" / f"{stem}.xyz")
    assert run(raw) == 2
    assert "holds no images" in (error := capsys.readouterr().err) and "found rgb/a.xyz, rgb/b.xyz" in error


# ---------------------------------------------------------------------------------------------------------------- names


def test_odd_names(raw):
    for stem in ("two words", "new\nline", "tab\there", "ä", "1.5", "\x1b[31m", "UPPER", "-dash", "#hash"):
        save_pair(raw, stem)
    for folder in ("rgb", "depth"):
        (raw / folder / "UPPER.png").rename(raw / folder / "UPPER.PNG")
    assert run(raw) == 0
    assert len(names(raw)) == 11 and "rgb/new\nline.png" in names(raw) and remarks(raw) == set()


def test_a_file_name_that_is_not_utf8_costs_its_frame(raw, capfd):
    save_pair(raw, "c")
    for folder in (raw / "rgb", raw / "depth"):
        os.rename(os.fsencode(folder / "c.png"), os.fsencode(folder) + b"/c\xff.png")
    (raw / "depth" / os.fsdecode(b"\xfe.txt")).write_bytes(b"")
    assert run(raw) == 0
    assert names(raw) == ["rgb/a.png", "rgb/b.png"]
    assert remarks(raw) == {("rgb/c\\udcff.png", "name is not UTF-8"), ("depth/\\udcfe.txt", "not used")}
    assert "(1 name is not UTF-8)" in capfd.readouterr().out


LISTS = {
    "tabs": b"rgb/two words.png\tdepth/two words.png\t721.5\nrgb/b.png\tdepth/b.png\n",
    "double quotes": b'"rgb/two words.png" "depth/two words.png" 721.5\nrgb/b.png depth/b.png\n',
    "single quotes": b"'rgb/two words.png'   'depth/two words.png'\nrgb/b.png depth/b.png\n",
    "quotes and tabs": b'"rgb/two words.png"\t"depth/two words.png"\nrgb/b.png\tdepth/b.png\n',
    "CRLF": b"rgb/two words.png\tdepth/two words.png\r\nrgb/b.png\tdepth/b.png\r\n",
    "BOM": b"\xef\xbb\xbfrgb/two words.png\tdepth/two words.png\nrgb/b.png depth/b.png",
    "UTF-16": "\ufeffrgb/two words.png\tdepth/two words.png\r\nrgb/b.png depth/b.png\r\n".encode("utf-16-le"),
    "comments": b"# mine\n\n  # more\nrgb/two words.png\tdepth/two words.png\n \t \nrgb/b.png depth/b.png\n",
}


@pytest.mark.parametrize("style", LISTS)
def test_filename_lists_of_any_style(raw, style):
    save_pair(raw, "two words")
    (raw / "list.txt").write_bytes(LISTS[style])
    assert run(raw, "--filename_list", str(raw / "list.txt")) == 0
    assert names(raw) == ["rgb/two words.png", "rgb/b.png"] and remarks(raw) == set()


def test_names_with_an_apostrophe_and_of_a_strange_alphabet(tmp_path):
    (tmp_path / "list").write_text("rgb/Bob's.jpg depth/Bob's.png\nrgb/\u2028.jpg\tdepth/\u0085.png\n")
    assert filename_lines(tmp_path / "list") == [
        ["rgb/Bob's.jpg", "depth/Bob's.png"],
        ["rgb/\u2028.jpg", "depth/\x85.png"],
    ]


def test_a_listed_name_that_is_not_utf8_costs_one_frame(raw):
    (raw / "list.txt").write_bytes(b"rgb/a.png depth/a.png\nrgb/\xff.png depth/\xff.png\nrgb/b.png depth/b.png\n")
    assert run(raw, "--filename_list", str(raw / "list.txt")) == 0
    assert names(raw) == ["rgb/a.png", "rgb/b.png"]
    assert remarks(raw) == {("rgb/\\udcff.png", "name is not UTF-8")}


def test_lines_without_depth_and_files_that_are_not_there(raw):
    (raw / "list.txt").write_text("rgb/a.png depth/a.png\nrgb/b.png None\nrgb/c.png depth/c.png\n")
    os.mkfifo(raw / "rgb" / "c.png")
    assert run(raw, "--filename_list", str(raw / "list.txt")) == 0
    assert names(raw) == ["rgb/a.png"]
    assert remarks(raw) == {("rgb/b.png", "not used"), ("rgb/c.png", "unreadable file")}


@pytest.mark.parametrize("bad", ["rgb/../../secret.png", "/etc/passwd", "..", '""'])
@pytest.mark.parametrize("column", [0, 1])
def test_listed_names_stay_below_the_folder(raw, capsys, bad, column):
    columns = ["rgb/a.png", "depth/a.png"]
    columns[column] = bad
    (raw / "list.txt").write_text(f"rgb/b.png depth/b.png\n{' '.join(columns)}\n")
    assert run(raw, "--filename_list", str(raw / "list.txt")) == 2
    error = capsys.readouterr().err
    assert "list.txt: line 2: wanted relative names, without '..'; got" in error and error.count("\n") == 1


def test_a_filename_list_that_is_no_file(raw, capsys):
    os.mkfifo(raw / "list.txt")
    assert run(raw, "--filename_list", str(raw / "list.txt")) == 2
    assert "list.txt: cannot read this filename list (" in (error := capsys.readouterr().err) and error.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------- pictures


def grey_ramp():
    return np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)


def palette():
    image = Image.fromarray(RGB).quantize(16)
    image.info["transparency"] = 3
    return image


def animation(path, **options):
    frames = [Image.fromarray(np.roll(RGB, shift, axis=0)) for shift in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def alpha():
    return np.dstack([RGB, RGB[..., :1]])


PICTURES = {
    "grey16.png": lambda path: Image.fromarray(grey_ramp()).save(path),
    "grey16.tif": lambda path: Image.fromarray(grey_ramp()).save(path),
    "float.tif": lambda path: Image.fromarray((grey_ramp() / 65535).astype(np.float32)).save(path),
    "grey.png": lambda path: Image.fromarray(RGB[..., 0]).save(path),
    "grey.jpg": lambda path: Image.fromarray(RGB[..., 0]).save(path),
    "bits.png": lambda path: Image.fromarray(RGB[..., 0] > 128).save(path),
    "alpha.png": lambda path: Image.fromarray(alpha()).save(path),
    "grey_alpha.png": lambda path: Image.fromarray(alpha()[..., :2]).save(path),
    "palette.png": lambda path: palette().save(path, transparency=3),
    "key.png": lambda path: Image.fromarray(RGB).save(path, transparency=tuple(map(int, RGB[0, 0]))),
    "cmyk.jpg": lambda path: Image.fromarray(RGB).convert("CMYK").save(path),
    "cmyk.tif": lambda path: Image.fromarray(RGB).convert("CMYK").save(path),
    "animation.gif": lambda path: animation(path),
    "animation.png": lambda path: animation(path),
    "animation.webp": lambda path: animation(path, lossless=True),
    "picture.jp2": lambda path: Image.fromarray(RGB).save(path),
    "picture.tga": lambda path: Image.fromarray(RGB).save(path),
    "picture.ppm": lambda path: Image.fromarray(RGB).save(path),
    "picture.BMP": lambda path: Image.fromarray(RGB).save(path),
    "plain.jpeg": lambda path: Image.fromarray(RGB).save(path, "JPEG"),
}
UNTOUCHED = {"grey.png", "grey.jpg", "key.png", "plain.jpeg", "animation.png"}


@pytest.mark.parametrize("name", PICTURES)
def test_training_sees_what_predict_sees(tmp_path, name):
    path = tmp_path / name
    PICTURES[name](path)
    picture = check_rgb(path.read_bytes(), str(path))
    seen = read_image(path)
    trained = decode({"rgb": picture.content}, DepthFormat(1.0))["rgb"]
    assert trained.shape == seen.shape and picture.size == seen.shape[:2]
    largest = {"f": 1.0, "u": np.iinfo(seen.dtype).max if seen.dtype.kind == "u" else 1}[seen.dtype.kind]
    np.testing.assert_allclose(trained / 255, seen / largest, atol=0.5 / 255 + 1e-6 if seen.dtype != np.uint8 else 0)
    assert trained.std() > 10
    with Image.open(path) as image:
        assert (picture.content == path.read_bytes()) == (name in UNTOUCHED), image.mode


def test_heic_is_a_picture_where_it_can_be_read(raw):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(RGB).resize((64, 64))).save(raw / "rgb" / "c.HEIC")
    Image.fromarray(np.full((64, 64), 900, np.uint16)).save(raw / "depth" / "c.png")
    assert run(raw) == 0
    assert names(raw) == ["rgb/a.png", "rgb/b.png", "rgb/c.HEIC"]
    prepared = PreparedSplit(f"{raw.parent}/mine/train")
    np.testing.assert_array_equal(prepared[2]["rgb"], read_image(raw / "rgb" / "c.HEIC"))


def test_heic_says_what_to_install_where_it_cannot_be_read(raw, monkeypatch):
    readers = {kind: read for kind, read in FORMATS["rgb"].items() if kind not in HEIF_EXTENSIONS}
    monkeypatch.setitem(FORMATS, "rgb", readers)
    (raw / "rgb" / "c.heic").write_bytes(b"a phone's")
    unused = []
    assert len(list_frames(str(raw), None, unused)) == 2
    assert unused == [("rgb/c.heic", HEIF_HINT)]
    for name in ("a.png", "b.png"):
        (raw / "rgb" / name).unlink()
    with pytest.raises(ValueError, match=r"holds no images .* found rgb/c\.heic; pip install"):
        list_frames(str(raw), None)


def test_grey_beyond_16_bits_is_refused_by_reason(raw):
    Image.fromarray(np.full((HEIGHT, WIDTH), 7.5, np.float32)).save(raw / "rgb" / "a.tif")
    (raw / "rgb" / "a.png").unlink()
    assert run(raw) == 0 and remarks(raw) == {("rgb/a.tif", "unreadable image")}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_exif_turns_the_picture_as_predict_does(tmp_path, extension, orientation):
    path = tmp_path / f"a.{extension}"
    Image.fromarray(RGB).save(path, exif=exif(orientation))
    picture = check_rgb(path.read_bytes(), str(path))
    np.testing.assert_array_equal(decode({"rgb": picture.content}, DepthFormat(1.0))["rgb"], read_image(path))
    assert picture.orientation == orientation


@pytest.mark.parametrize("orientation", range(2, 9))
def test_depth_beside_a_turned_picture(raw, orientation):
    """Depth fits the picture as it is seen; where it fits the pixels as they are stored, EXIF is named."""
    Image.fromarray(RGB).save(raw / "rgb" / "a.png", exif=exif(orientation))
    (raw / "depth" / "a.png").unlink()
    fits = DEPTH if orientation < 5 else np.ascontiguousarray(DEPTH.T)
    Image.fromarray(fits).save(raw / "depth" / "a.png")
    assert run(raw) == 0
    example = PreparedSplit(f"{raw.parent}/mine/train")[0]
    np.testing.assert_array_equal(example["rgb"], read_image(raw / "rgb" / "a.png"))
    np.testing.assert_array_equal(np.rint(example["depth"][..., 0] * 1000), fits)
    (line,) = map(json.loads, open(raw.parent / "rgbd" / "mine" / "report-train.jsonl"))
    assert not line["left_out"] and f"EXIF orientation {orientation}" in line["detail"]
    if orientation > 4:
        Image.fromarray(DEPTH).save(raw / "depth" / "a.png")
        assert run(raw, "--name", "again") == 0
        (line,) = map(json.loads, open(raw.parent / "rgbd" / "again" / "report-train.jsonl"))
        assert line["left_out"] and "EXIF" in line["reason"] and f"EXIF orientation {orientation}" in line["detail"]
        assert "rgb 17 x 12, depth 12 x 17" in line["detail"]


def test_depth_and_masks_are_turned_by_their_own_exif(raw):
    mask = DEPTH > 30000
    Image.fromarray(RGB).save(raw / "rgb" / "a.jpg", exif=exif(6))
    Image.fromarray(DEPTH).save(raw / "depth" / "a.png", exif=exif(6))
    (raw / "rgb" / "a.png").unlink()
    (raw / "mask").mkdir()
    Image.fromarray(mask).save(raw / "mask" / "a.png", exif=exif(6))
    Image.fromarray(mask).save(raw / "mask" / "b.png")
    assert run(raw) == 0
    example = PreparedSplit(f"{raw.parent}/mine/train")[0]
    np.testing.assert_array_equal(np.rint(example["depth"][..., 0] * 1000), np.rot90(DEPTH, -1))
    np.testing.assert_array_equal(example["mask"][..., 0], np.rot90(mask, -1))


def test_exif_that_means_nothing_changes_nothing(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path, exif=exif(9))
    assert check_rgb(path.read_bytes(), str(path)).content == path.read_bytes()


# ------------------------------------------------------------------------------------------------------ depth and masks

METRES = (DEPTH / 1000).astype(np.float32)


def hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


DEPTHS = {
    "uint16.tif": (lambda path: Image.fromarray(DEPTH).save(path), DEPTH),
    "uint16.tiff": (lambda path: Image.fromarray(DEPTH).save(path, compression="tiff_lzw"), DEPTH),
    "int32.tif": (lambda path: Image.fromarray(DEPTH.astype(np.int32)).save(path), DEPTH),
    "float32.tif": (lambda path: Image.fromarray(METRES).save(path), METRES),
    "deflated.tiff": (lambda path: Image.fromarray(METRES).save(path, compression="tiff_deflate"), METRES),
    "one.npz": (lambda path: np.savez(path, METRES), METRES),
    "compressed.npz": (lambda path: np.savez_compressed(path, depth=METRES.astype(np.float64)), METRES),
    "fortran.npy": (lambda path: np.save(path, np.asfortranarray(METRES)), METRES),
    "first.npy": (lambda path: np.save(path, METRES[None]), METRES),
    "last.npy": (lambda path: np.save(path, METRES[..., None]), METRES),
    "half.h5": (lambda path: hdf5(path, depth=METRES.astype(np.float64)), METRES),
    "int.hdf5": (lambda path: hdf5(path, dataset=DEPTH), DEPTH),
    "UPPER.TIFF": (lambda path: Image.fromarray(METRES).save(path), METRES),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_depth_files_of_other_programs(raw, name):
    write, wanted = DEPTHS[name]
    (raw / "depth" / "a.png").unlink()
    write(raw / "depth" / f"a.{name.split('.')[1]}")
    assert run(raw, unit=("--unit", "m")) == 0 and remarks(raw) == set()
    found = PreparedSplit(f"{raw.parent}/mine/train")[0]["depth"][..., 0]
    np.testing.assert_array_equal(found, wanted.astype(np.float32))


def unsigned_tiff(path):
    values = np.array([[0, 3_000_000_000], [1, 2]], np.uint32)
    strip = values.astype("<u4").tobytes()
    tags = {256: 2, 257: 2, 258: 32, 259: 1, 262: 1, 273: 0, 277: 1, 278: 2, 279: len(strip), 339: 1}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(np.array([tag, 4], "<u2").tobytes() + np.array([1, tags[tag]], "<u4").tobytes() for tag in tags)
    header = b"II*\0" + np.array([8], "<u4").tobytes() + np.array([len(tags)], "<u2").tobytes()
    path.write_bytes(header + entries + b"\0\0\0\0" + strip)
    return values


def test_unsigned_tiff_of_32_bits(raw):
    from marigold_jax.data.raw_files import tiff

    wanted = unsigned_tiff(raw / "depth" / "u.tif")
    np.testing.assert_array_equal(tiff((raw / "depth" / "u.tif").read_bytes(), "u.tif")[..., 0], wanted)


def two_pages(path):
    Image.fromarray(DEPTH).save(path, save_all=True, append_images=[Image.fromarray(DEPTH)])


def linked(path):
    with h5py.File(path, "w") as file:
        file["depth"] = h5py.ExternalLink("/etc/passwd", "/depth")


def huge(path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)


def pickled(path):
    np.save(path, np.array([[{}]]), allow_pickle=True)


DAMAGED = {
    "8-bit.png": (lambda path: Image.fromarray(RGB[..., 0]).save(path), "depth is not a 16-bit grey PNG"),
    "colour.tif": (lambda path: Image.fromarray(RGB).save(path), "TIFF is neither 16-bit nor 32-bit grey"),
    "8-bit.tif": (lambda path: Image.fromarray(RGB[..., 0]).save(path), "TIFF is neither 16-bit nor 32-bit grey"),
    "pages.tif": (two_pages, "several pages"),
    "jpeg.tif": (lambda path: Image.fromarray(RGB).save(path, "JPEG"), "unreadable image"),
    "eps.png": (
        lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "unreadable image",
    ),
    "two.npz": (lambda path: np.savez(path, a=METRES, b=METRES), "unreadable array"),
    "none.npz": (lambda path: np.savez(path), "unreadable array"),
    "garbage.npz": (lambda path: path.write_bytes(b"PK\x03\x04garbage"), "unreadable array"),
    "huge.npy": (huge, "unreadable array"),
    "pickled.npy": (pickled, "unreadable array"),
    "archive.npy": (lambda path: np.savez(open(path, "wb"), METRES), "unreadable array"),
    "cut.npy": (lambda path: np.save(path, METRES) or os.truncate(path, 300), "unreadable array"),
    "text.npy": (lambda path: np.save(path, np.full((2, 2), "a")), "unreadable array"),
    "complex.npz": (lambda path: np.savez(path, METRES.astype(complex)), "unreadable array"),
    "vector.h5": (lambda path: hdf5(path, depth=METRES[0]), "unreadable array"),
    "two.h5": (lambda path: hdf5(path, a=METRES, b=METRES), "unreadable HDF5"),
    "linked.h5": (linked, "unreadable HDF5"),
    "garbage.h5": (lambda path: path.write_bytes(b"HDF"), "unreadable HDF5"),
    "negative.pfm": (lambda path: path.write_bytes(b"Pf\n-1 -1\n-1.0\n1234"), "unreadable PFM"),
    "empty.pfm": (lambda path: path.write_bytes(b"Pf\n0 0\n-1.0\n1234"), "size mismatch"),
    "stacked.npy": (lambda path: np.save(path, np.stack([METRES] * 4, -1)), "depth with several channels"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_depth_costs_its_frame_and_says_why(raw, name):
    write, reason = DAMAGED[name]
    (raw / "depth" / "a.png").unlink()
    write(raw / "depth" / f"a.{name.split('.')[1]}")
    assert run(raw) == 0
    assert names(raw) == ["rgb/b.png"] and remarks(raw) == {("rgb/a.png", reason)}


def test_three_channels_of_exr_may_be_unknown_at_the_same_places(raw):
    depth = METRES.copy()
    depth[0, 0] = np.nan
    (raw / "depth" / "a.png").unlink()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGB": np.repeat(depth[..., None], 3, axis=-1)}).write(str(raw / "depth" / "a.exr"))
    assert run(raw, unit=("--unit", "m")) == 0 and len(names(raw)) == 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_masks_of_any_mode(raw, mode):
    valid = DEPTH > 30000
    (raw / "mask").mkdir()
    faint = {"RGB": lambda: np.dstack([valid] * 3) * np.uint8([0, 0, 1]), "I;16": lambda: valid * np.uint16(200)}
    faint["RGBA"] = lambda: np.dstack([faint["RGB"](), np.full(valid.shape, 255, np.uint8)])
    image = Image.fromarray(faint[mode]() if mode in faint else valid.astype(np.uint8) * np.uint8(255))
    for stem in "ab":
        (image if mode in faint else image.convert(mode)).save(raw / "mask" / f"{stem}.png")
    assert run(raw) == 0
    np.testing.assert_array_equal(PreparedSplit(f"{raw.parent}/mine/train")[0]["mask"][..., 0], valid)


# ------------------------------------------------------------------------------------------------------------- held out


def frames_of(raw, *stems):
    for stem in stems:
        save_pair(raw, stem)
    return list_frames(str(raw), None)


def test_whole_scenes_are_held_out(raw):
    for stem in "ab":
        for folder in ("rgb", "depth"):
            (raw / folder / f"{stem}.png").unlink()
    frames = frames_of(raw, *(f"{scene}/cam{number % 2}/{number}" for scene in "pqrs" for number in range(5)))
    seen = set()
    for seed in range(8):
        train, val = hold_out(frames, 0.25, seed)
        scenes = [{frame.name.split("/")[1] for frame in part} for part in (train, val)]
        assert len(train) == 15 and len(val) == 5 and not scenes[0] & scenes[1]
        assert hold_out(frames, 0.25, seed) == (train, val)
        seen |= scenes[1]
    assert len(seen) > 1


@pytest.mark.parametrize(("share", "held"), [(0.05, 1), (0.25, 5), (0.999, 19), (1e-9, 1)])
def test_single_frames_are_held_out_of_one_scene(raw, share, held):
    frames = frames_of(raw, *(f"{number}" for number in range(18)))
    train, val = hold_out(frames, share, 0)
    assert len(val) == held and sorted(frame.name for frame in train + val) == sorted(frame.name for frame in frames)


def test_what_is_held_out_can_be_used(raw):
    frames = frames_of(raw, *(f"{number}" for number in range(18)))
    for number in range(17):
        (raw / "depth" / f"{number}.png").unlink()
    frames = list_frames(str(raw), None)
    for seed in range(20):
        (held,) = hold_out(frames, 0.05, seed)[1]
        assert held.name in ("rgb/a.png", "rgb/b.png", "rgb/17.png")


def test_one_command_makes_both_splits(raw, capsys):
    for number in range(18):
        save_pair(raw, f"{number:02d}")
    assert run(raw, "--validation", "0.1") == 0
    assert len(names(raw)) == 18 and len(names(raw, "val")) == 2 and not set(names(raw)) & set(names(raw, "val"))
    assert "held out 2 of 20 frames for mine/val" in capsys.readouterr().out
    assert run(raw, "--validation", "0.1") == 0
    assert capsys.readouterr().out.count("is prepared already") == 2
    assert run(raw, "--validation", "0.2") == 2
    assert "--validation was 0.1, is 0.2" in capsys.readouterr().err
    assert run(raw, "--validation", "0.1", "--seed", "1") == 2
    assert "--seed was 0, is 1" in capsys.readouterr().err
    assert run(raw) == 2
    assert "--validation was 0.1, is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--validation", "1"], "wanted --validation from 0 to below 1"),
        (["--validation", "-0.1"], "wanted --validation from 0 to below 1"),
        (["--validation", "nan"], "wanted --validation from 0 to below 1"),
        (["--validation", "0.1", "--seed", "-1"], "--seed from 0"),
        (["--validation", "0.1", "--split", "val"], "leave out --split val"),
        (["--validation", "0.1", "--limit", "1"], "at least two frames that can be used, found 1"),
        (["--depth_scale", "0"], "--depth_scale above 0"),
        (["--depth_scale", "nan"], "--depth_scale above 0"),
        (["--depth_scale", "inf"], "--depth_scale above 0"),
        (["--depth_scale", "1e-60"], "--depth_scale above 0"),
        (["--min_depth", "nan"], "--min_depth from 0"),
        (["--max_depth", "nan"], "--min_depth from 0"),
        (["--split", "all"], "--split must consist of"),
        (["--name", "a b"], "--name must consist of letters, digits, _ and -; got 'a b'"),
        (["--name", ""], None),
    ],
)
def test_flags_that_make_no_sense_cost_one_line(raw, capsys, flags, message):
    unit = () if "--depth_scale" in flags else ("--unit", "mm")
    assert run(raw, *flags, unit=unit) == (2 if message else 0)
    error = capsys.readouterr().err
    assert not message or (message in error and error.count("\n") == 1)


# ---------------------------------------------------------------------------------------------- a dataset that is there


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--depth_scale", "1000"], None),
        (["--limit", "50"], None),
        (["--depth_scale", "999"], "--unit or --depth_scale was 1000 a metre, is 999 a metre"),
        (["--unit", "mm", "--max_depth", "9"], "--max_depth was inf, is 9"),
        (["--unit", "mm", "--limit", "1"], "--limit was none, is 1"),
    ],
)
def test_other_flags_than_the_prepared_ones_are_refused(raw, capsys, flags, difference):
    assert run(raw) == 0
    unit = () if "--unit" in flags or "--depth_scale" in flags else ("--unit", "mm")
    assert run(raw, *flags, unit=unit) == (2 if difference else 0)
    error = capsys.readouterr().err
    assert not difference or (f"with other flags: {difference}. To make it again" in error and error.count("\n") == 1)


def test_other_files_than_the_prepared_ones_are_refused(raw, capsys):
    assert run(raw) == 0
    moved = raw.rename(raw.parent / "moved")
    assert run(moved, "--name", "mine") == 0
    save_pair(moved, "c")
    assert run(moved, "--name", "mine") == 2
    assert "from files of other names or sizes: 2 frames then, 3 now" in capsys.readouterr().err
    (moved / "rgb" / "c.png").unlink()
    np.save(moved / "depth" / "a.npy", DEPTH)
    (moved / "depth" / "a.png").unlink()
    assert run(moved, "--name", "mine") == 2


def test_a_dataset_from_before_flags_were_kept_is_left_in_peace(raw, capsys):
    assert run(raw) == 0
    path = raw.parent / "rgbd" / "mine" / "1.0.0" / "metadata.json"
    kept = json.loads(path.read_text())
    del kept["prepared"]
    path.write_text(json.dumps(kept))
    assert run(raw) == 0
    assert run(raw, "--limit", "1") == 2 and "from more frames than the 1 here" in capsys.readouterr().err
    assert run(raw, "--max_depth", "3") == 2 and "has another unit, depth range" in capsys.readouterr().err


def test_a_damaged_dataset_costs_one_line(raw, capsys):
    assert run(raw) == 0
    (raw.parent / "rgbd" / "mine" / "1.0.0" / "dataset_info.json").write_text("{")
    capsys.readouterr()
    assert run(raw) == 2
    error = capsys.readouterr().err
    assert "dataset_info.json: not valid JSON" in error and error.count("\n") == 1


def test_the_dataset_is_not_written_among_the_raw_files(raw, capsys):
    given = ["folder", "--raw_dir", str(raw), "--unit", "mm", "--workers", "1", "--data_dir"]
    assert prepare.main([*given, str(raw / "rgb")]) == 2
    assert "choose a folder outside of the raw data" in capsys.readouterr().err
    assert prepare.main([*given, str(raw)]) == 0
    assert prepare.main([*given, str(raw)]) == 0


def test_a_full_disk_costs_one_line(raw, capsys, monkeypatch):
    from marigold_jax.data import split_writer

    class Full(split_writer.ArrayRecordWriter):
        def close(self):
            super().close()
            raise RuntimeError("write() failed: No space left on device; at byte 7; Failed to close chunk_writer")

    monkeypatch.setattr(split_writer, "ArrayRecordWriter", Full)
    assert run(raw) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and "the same command again" in error and error.count("\n") == 1
    assert not list(raw.parent.rglob("*.unfinished"))
    monkeypatch.undo()
    assert run(raw) == 0


def test_a_data_dir_that_is_a_file_costs_one_line(raw, capsys):
    (raw.parent / "file").write_text("")
    given = ["folder", "--raw_dir", str(raw), "--unit", "mm", "--workers", "1", "--data_dir"]
    assert prepare.main([*given, str(raw.parent / "file")]) == 2
    error = capsys.readouterr().err
    assert str(raw.parent / "file") in error and error.count("\n") == 1


def test_the_name_of_the_folder_may_not_do(raw, capsys):
    assert run(raw.rename(raw.parent / "my scans (2)")) == 2
    assert "got 'my scans (2)'; the folder's name cannot be used: give a --name" in capsys.readouterr().err


def test_bad_frames_say_one_line():
    assert "\n" not in BadFrame("kind", "a\nb\x1b[31m").detail
