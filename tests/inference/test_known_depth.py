"""Known depth: what is read, what is refused, and the metres that it gives."""

import io

import numpy as np
import pytest
from PIL import Image

from marigold_jax.data.affine_fit import fit_robustly
from marigold_jax.inference.known_depth import doubt, read_reference, to_metres

SIZE = (6, 8)
METRES = np.linspace(1, 5, 48, dtype=np.float32).reshape(SIZE)


def test_a_map_in_metres_or_millimetres(tmp_path):
    holes = METRES.copy()
    holes[0, :4] = np.nan, np.inf, 0, -1
    np.save(tmp_path / "a.npy", holes)
    Image.fromarray(np.uint16(np.rint(np.where(np.isfinite(holes) & (holes > 0), holes, 0) * 1000))).save(
        tmp_path / "b.png"
    )
    np.savez(tmp_path / "c.npz", holes[None])
    for stem, error in (("a", 0), ("b", 0.0005), ("c", 0)):
        depth, known = read_reference(tmp_path, stem, SIZE)
        assert known.sum() == 44 and not known[0, :4].any() and (depth[~known] == 0).all()
        np.testing.assert_allclose(depth[known], METRES[known[..., 0]], atol=error)


POINTS = {
    "plain": "7,5,2.5\n0.2,1,3",
    "heading": "column,row,metres\r\n7,5,2.5\r\n0,1,3\r\n",
    "byte order mark": "\ufeff7,5,2.5\n0,1,3\n",
    "semicolons and decimal commas": "7;5;2,5\n0;1;3,0\n",
    "blanks and comments": "# tape\n\n7 5\t2.5\n  -0.4  1.49  3\n",
}


@pytest.mark.parametrize("text", POINTS.values(), ids=POINTS)
def test_points(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    said = []
    depth, known = read_reference(tmp_path, "a", SIZE, said.append)
    assert known.sum() == 2 and depth[5, 7, 0] == 2.5 and depth[1, 0, 0] == 3 and not said


def test_points_that_do_not_count_are_said(tmp_path):
    (tmp_path / "a.csv").write_text("7,5,2.5\n0,1,nan\n0,2,0\n0,3,-1\n0,4,1e300\n7.1,5,2\n1,1,1")
    said = []
    depth, known = read_reference(tmp_path, "a", SIZE, said.append)
    assert known.sum() == 2 and depth[5, 7, 0] == 2
    assert "4 of 7 points have no positive depth" in said[0] and "1 points lie on the pixel of another" in said[1]


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


HUGE = header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}\n")
REFUSED = [
    ("a.csv", b"8,0,2\n1,1,2", "outside of the picture, which is 8 wide and 6 high"),
    ("a.csv", b"nan,0,2", "outside of the picture"),
    ("a.csv", b"1,2", "got 2 numbers in a line"),
    ("a.csv", b"x,y,z", "could not convert"),
    ("a.csv", b"x,y,z\n1,2,3\n1,2,near", "line 3, '1,2,near': could not convert"),
    ("a.csv", b"", "no point in it"),
    ("a.csv", b"\xff\xfe\x00", "no text"),
    ("a.npy", b"", "a.npy"),
    ("a.png", b"x", "a.png"),
    ("a.png", png(np.zeros(SIZE, np.uint8)), "wanted a 16-bit grey PNG"),
    ("a.png", png(np.zeros(SIZE, np.uint16))[:48], "cannot be decoded"),
    ("a.npy", HUGE, "wanted the shape of a map"),
    ("a.npy", HUGE.replace(b"1000000", b"0010000"), "not a whole .npy file"),
    ("a.npy", header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (6, 8)}\n") + b"0000", "needs 192 bytes"),
    ("a.npy", b"\x93NUMPY" + b"\xff" * 100, "not a whole .npy file"),
    ("a.npy", b"PK\x03\x04 and nothing more", "not a whole .npz archive"),
    ("a.npy", npy(np.array([{}])), "Python objects"),
    ("a.npy", npy(np.float32(1)), "wanted the shape of a map"),
    ("a.npy", npy(np.zeros(SIZE, complex)), "complex"),
    ("a.npy", npy(np.full(SIZE, "1")), "text"),
    ("a.npy", npy(np.zeros((*SIZE, 3), np.float32)), "found 3 channels"),
    ("a.npy", npy(METRES.T), "has 8 x 6 pixels, the picture 6 x 8"),
    ("a.npy", npy(np.ones((2, 40), np.float32)), "not one picture in two sizes"),
    ("b.npy", b"", "wanted one reference, .npy, .png, .csv; found 0"),
]


@pytest.mark.parametrize(("name", "content", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read_reference(tmp_path, "a", SIZE)
    assert words in str(error.value) and "a" in str(error.value)


def test_only_one_regular_file_is_read(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy: wanted a regular file, found a FIFO"):
        read_reference(tmp_path, "a", SIZE)
    (tmp_path / "a.csv").write_text("1,1,1")
    with pytest.raises(ValueError, match="found 2"):
        read_reference(tmp_path, "a", SIZE)
    with pytest.raises(ValueError, match="found 0"):
        read_reference(tmp_path, "x" * 5000, SIZE)


def test_a_map_of_another_size_takes_the_nearest_known_depth(tmp_path):
    larger = np.zeros((18, 24), np.float32)
    larger[1::3, 1::3] = METRES  # one known in nine, in the middle of what becomes a pixel
    larger[0::3, 0::3] = 99  # known too, but in the corner
    np.save(tmp_path / "larger.npy", larger)
    depth, known = read_reference(tmp_path, "larger", SIZE)
    assert known.all()
    np.testing.assert_array_equal(depth[..., 0], METRES)
    smaller = METRES[1::2, 1::2].copy()
    smaller[0, 0] = np.nan
    np.save(tmp_path / "smaller.npy", smaller)
    depth, known = read_reference(tmp_path, "smaller", SIZE)
    assert known.sum() == 44 and not known[:2, :2].any()
    np.testing.assert_array_equal(depth[2:, :, 0], np.repeat(np.repeat(smaller, 2, 0), 2, 1)[2:])
    np.save(tmp_path / "odd.npy", METRES[:5, :7])
    depth, known = read_reference(tmp_path, "odd", SIZE)
    assert known.all() and set(depth.ravel()) <= set(METRES.ravel())


def test_metres_are_the_least_squares_fit():
    random = np.random.default_rng(0)
    prediction, known = random.random((6, 8, 1)), random.random((6, 8, 1)) < 0.3
    depth = 3 * prediction + 1 + 0.1 * random.normal(size=prediction.shape)
    metres, fit = to_metres(prediction.astype(np.float32), depth, known)
    columns = np.stack([prediction[known].astype(np.float32), np.ones(known.sum())], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(columns, depth[known])
    residual = np.mean(np.abs(columns @ [scale, shift] - depth[known]) / depth[known])
    count = known.sum()
    wanted = {"scale": scale, "shift": shift, "points": count, "inliers": count, "residual": residual}
    assert fit == pytest.approx(wanted) and doubt(fit) is None
    np.testing.assert_allclose(metres, np.maximum(scale * prediction + shift, 0), atol=1e-5)


@pytest.mark.parametrize("wrong", [2, 4, 12, 18], ids="{} of 40".format)
@pytest.mark.parametrize("kind", ["far", "anywhere", "one depth", "far where it is near"])
def test_outliers_do_not_turn_the_scale(wrong, kind):
    random = np.random.default_rng(wrong)
    prediction = random.random((5, 8, 1)).astype(np.float32)
    depth = 3 * prediction + 1 + 0.01 * random.normal(size=prediction.shape).astype(np.float32)
    where = np.unravel_index(random.permutation(40)[:wrong], (5, 8))
    if kind == "far where it is near":
        where = np.unravel_index(np.argsort(prediction.ravel())[:wrong], (5, 8))
    depth[where] = {
        "far": depth[where] * random.uniform(5, 50, (wrong, 1)),
        "anywhere": random.uniform(1, 4, (wrong, 1)),
        "one depth": 60.0,
        "far where it is near": 100.0,
    }[kind]
    _, fit = to_metres(prediction, depth, np.ones((5, 8, 1), bool))
    assert fit["scale"] == pytest.approx(3, rel=0.02) and fit["shift"] == pytest.approx(1, abs=0.03)
    left_out = 40 - fit["inliers"]
    assert wrong - 3 <= left_out <= wrong and fit["residual"] < 0.02  # some happen to lie on the line
    assert (doubt(fit) is not None) == (left_out > 4)
    again = to_metres(prediction, depth, np.ones((5, 8, 1), bool))[1]
    assert again == fit


@pytest.mark.parametrize("count", [2, 3, 4, 5, 12, 41, 5000])
def test_exact_depth_gives_the_exact_line(count):
    x = np.random.default_rng(count).random(count)
    scale, shift, near = fit_robustly(x, 2.5 * x + 0.75)
    assert near.all() and scale == pytest.approx(2.5, rel=1e-12) and shift == pytest.approx(0.75, rel=1e-12)


def test_what_fits_badly_is_said():
    random = np.random.default_rng(0)
    prediction, depth = random.random((2, 6, 8, 1)).astype(np.float32)
    _, fit = to_metres(prediction, depth + 0.5 + 0.3 * prediction, np.ones((6, 8, 1), bool))
    assert fit["residual"] > 0.1
    assert doubt(fit).startswith("doubtful metres: 0 of 48 known points are outliers, the others are off by ")


@pytest.mark.parametrize(
    ("prediction", "depth", "count", "words"),
    [
        (METRES, METRES, 1, "knows 1 points, wanted 2 or more"),
        (METRES, METRES, 0, "knows 0 points, wanted 2 or more"),
        (METRES, -METRES, 48, "the other way round"),
        (METRES, 9 - METRES, 2, "the other way round"),
        (METRES, np.ones(SIZE), 48, "the best scale is 0"),
        (np.ones(SIZE), METRES, 48, "the prediction is the same at all 48 points"),
    ],
)
def test_what_fixes_no_scale(prediction, depth, count, words):
    known = (np.arange(48) < count).reshape(*SIZE, 1)
    with pytest.raises(ValueError, match=words):
        to_metres(prediction[..., None], depth[..., None], known)
