"""`prepare rooms`: the same bytes from the same flags, a dataset like the others, a sheet to look at, a card."""

import numpy as np
import pytest
from PIL import Image

from marigold_jax import prepare
from marigold_jax.data.loader import make_loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.targets import NORMALS
from marigold_jax.data.transforms import SampleOptions
from marigold_jax.rooms import frames

VIEWS = 2


def run(data_dir, *flags):
    size = ("--scenes", "3", "--views", str(VIEWS), "--size", "48", "64", "--workers", "1")
    return prepare.main(["rooms", "--data_dir", str(data_dir), *size, *flags])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    assert run(folder) == 0
    return folder


def test_a_dataset_like_the_others(data_dir):
    split = PreparedSplit(str(data_dir / "rooms" / "train"))
    assert 0 < len(split) <= 3 * VIEWS
    for index in range(len(split)):
        example = split[index]
        assert example["rgb"].shape == (48, 64, 3) and example["rgb"].std() > 5
        depth, mask, normals = example["depth"], example["mask"], example["normals"]
        assert mask.mean() > 0.1 and 0.01 < depth[mask].min() and depth[mask].max() < 65
        seen = mask[..., 0]
        np.testing.assert_allclose(np.linalg.norm(normals[seen], axis=-1), 1, atol=1e-3)
        # Surfaces face the viewer: where the ray goes down the optical axis, their normals come back up it.
        assert (normals[20:28, 28:36][seen[20:28, 28:36]][:, 2] > -0.1).all()
    loader = make_loader([(split, 1.0)], batch_size=2, seed=0, target=NORMALS, options=SampleOptions(size=(24, 32)))
    batch = next(loader)
    loader.close()
    assert batch["rgb"].shape == (2, 24, 32, 3) and batch["span"].shape == (2,) and (batch["span"] > 0).all()


@pytest.mark.slow
def test_the_same_flags_give_the_same_bytes_and_others_others(data_dir, tmp_path):
    def contents(folder):
        files = (folder / "rgbd" / "rooms").rglob("*")
        return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}

    frames._renderer.cache_clear()
    assert run(tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(data_dir)
    (tmp_path / "again" / "rgbd" / "rooms" / "contact-train.png").unlink()  # as if killed before it was drawn
    assert run(tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(data_dir)
    assert run(tmp_path / "other", "--seed", "1") == 0
    assert contents(tmp_path / "other") != contents(data_dir)


def test_there_is_a_sheet_to_look_at_and_a_card_with_licences(data_dir):
    folder = data_dir / "rgbd" / "rooms"
    sheet = np.asarray(Image.open(folder / "contact-train.png"))
    assert sheet.shape[1] > 4 * 3 * 100 and sheet.std() > 20
    card = (folder / "card-train.md").read_text()
    assert "seed 0, 2 views a scene, 48 x\n64" in card and "Apache-2.0" in card


def test_the_first_scenes_are_the_same_however_many_there_are():
    settings = frames.SplitSettings("train", 0, 4, (48, 64), None)
    assert frames.list_frames(settings, 50)[:80] == frames.list_frames(settings, 20)
    assert len({frame.kind for frame in frames.list_frames(settings, 50)}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "complaint"),
    [(["--scenes", "0"], "--scenes"), (["--size", "8", "8"], "--size"), (["--assets", "nowhere"], "nowhere")],
)
def test_wrong_flags_cost_one_line(tmp_path, capsys, flags, complaint):
    assert run(tmp_path, *flags) == 2
    error = capsys.readouterr().err.strip()
    assert complaint in error and "\n" not in error


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--seed", "1"], "--seed was 0, is 1"),
        (["--scenes", "4"], "--scenes was 3, is 4"),
        (["--views", "3", "--size", "48", "48"], "--views was 2, is 3; --size was 48 64, is 48 48"),
        (["--limit", "1"], "--limit was none, is 1"),
    ],
)
def test_other_flags_than_those_of_the_dataset_are_refused(data_dir, capsys, flags, difference):
    assert run(data_dir, *flags) == 2
    error = capsys.readouterr().err
    assert f"is prepared already, with other flags: {difference}. To make it again" in error and error.count("\n") == 1
