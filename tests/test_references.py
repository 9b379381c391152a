"""Known depth: what is read, what is refused, and the metres that it gives."""

import numpy as np
import pytest
from PIL import Image

from marigold_jax.data.references import read_reference, to_metres

SIZE = (6, 8)
METRES = np.linspace(1, 5, 48, dtype=np.float32).reshape(SIZE)


def test_a_map_in_metres_or_millimetres(tmp_path):
    holes = METRES.copy()
    holes[0, :4] = np.nan, np.inf, 0, -1
    np.save(tmp_path / "a.npy", holes)
    Image.fromarray(np.uint16(np.rint(np.where(np.isfinite(holes) & (holes > 0), holes, 0) * 1000))).save(
        tmp_path / "b.png"
    )
    for stem, error in (("a", 0), ("b", 0.0005)):
        depth, known = read_reference(tmp_path, stem, SIZE)
        assert known.sum() == 44 and not known[0, :4].any() and (depth[~known] == 0).all()
        np.testing.assert_allclose(depth[known], METRES[known[..., 0]], atol=error)


def test_points(tmp_path):
    (tmp_path / "a.csv").write_text("7,5,2.5\n0.2,1,3")
    depth, known = read_reference(tmp_path, "a", SIZE)
    assert known.sum() == 2 and depth[5, 7, 0] == 2.5 and depth[1, 0, 0] == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"8,0,2\n1,1,2", "outside of the picture, which is 8 wide and 6 high"),
        ("a.csv", b"1,2", "got 2 numbers in a line"),
        ("a.csv", b"x,y,z", "could not convert"),
        ("a.npy", b"", "a.npy"),
        ("a.png", b"x", "a.png"),
        ("b.npy", b"", "wanted one reference, .npy, .png, .csv; found 0"),
    ],
)
def test_what_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read_reference(tmp_path, "a", SIZE)
    assert words in str(error.value)


def test_another_size_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", METRES.T)
    with pytest.raises(ValueError, match="has 8 x 6 pixels, the picture 6 x 8"):
        read_reference(tmp_path, "a", SIZE)


def test_metres_are_the_least_squares_fit():
    random = np.random.default_rng(0)
    prediction, known = random.random((6, 8, 1)), random.random((6, 8, 1)) < 0.3
    depth = 3 * prediction + 1 + 0.1 * random.normal(size=prediction.shape)
    metres, fit = to_metres(prediction.astype(np.float32), depth, known)
    columns = np.stack([prediction[known].astype(np.float32), np.ones(known.sum())], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(columns, depth[known])
    assert fit == {"scale": pytest.approx(scale), "shift": pytest.approx(shift), "points": known.sum()}
    np.testing.assert_allclose(metres, np.maximum(scale * prediction + shift, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "count", "words"),
    [
        (METRES, 1, "knows 1 points, wanted 2 or more"),
        (-METRES, 48, "the other way round"),
        (np.ones(SIZE), 48, "the best scale is 0"),
    ],
)
def test_what_fixes_no_scale(depth, count, words):
    known = (np.arange(48) < count).reshape(*SIZE, 1)
    with pytest.raises(ValueError, match=words):
        to_metres(METRES[..., None], depth[..., None], known)
