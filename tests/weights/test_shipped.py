"""The models that ship: PyTorch gives the same maps, they are small, they see, and the demonstration shows one."""

import importlib.util
from pathlib import Path

import diffusers
import numpy as np
import oracle
import pytest
from PIL import Image

from marigold_jax import Marigold, predict
from marigold_jax.evaluation.depth_alignment import align
from marigold_jax.evaluation.depth_metrics import depth_scores
from marigold_jax.weights.hub import DEFAULT, SHIPPED

DEMO = Path(__file__).parents[2] / "launch" / "demo"
NORMALS = "marigold-rooms-normals"
PIPELINES = {DEFAULT: diffusers.MarigoldDepthPipeline, NORMALS: diffusers.MarigoldNormalsPipeline}
LARGEST = 40e6  # bytes, of each
PHOTOGRAPHS = sorted((DEMO / "photographs").glob("*.jpg"))
SCENES = sorted((DEMO / "scenes").glob("*.jpg"))


@pytest.fixture(scope="module")
def ours():
    return Marigold.from_pretrained()


@pytest.fixture(scope="module", params=PIPELINES)
def both(request):
    """The same checkpoint here and in diffusers."""
    theirs = PIPELINES[request.param].from_pretrained(SHIPPED / request.param)
    theirs.set_progress_bar_config(disable=True)
    return Marigold.from_pretrained(request.param), theirs


def truth_of(picture):
    with Image.open(picture.with_suffix(".png")) as image:
        metres = np.asarray(image, np.float32)[..., None] / 1000
    return metres, metres > 0


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("picture", [*PHOTOGRAPHS, *SCENES], ids=lambda path: path.stem)
def test_pytorch_gives_the_same_maps(both, picture, steps):
    ours, theirs = both
    with Image.open(picture) as image:
        image.load()
    width, height = image.size
    resolution = ours.default_processing_resolution
    latent = (-(-(side * resolution // max(width, height)) // 8) for side in (height, width))
    latents = np.random.default_rng(0).standard_normal((1, *latent, 4), np.float32)
    wanted = theirs(image, num_inference_steps=steps, latents=oracle.nchw(latents)).prediction
    found = ours(image, num_inference_steps=steps, latents=latents).prediction
    assert found.std() > 0.1
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "score"), [(DEFAULT, "AbsRel"), (NORMALS, "mean angle")])
def test_it_is_small_and_says_what_it_is(name, score):
    files = [path for path in (SHIPPED / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    card = (SHIPPED / name / "README.md").read_text()
    for word in ("license:", score, "configs/rooms_vae.py", "configs/rooms.py", "configs/rooms_end_to_end.py"):
        assert word in card


@pytest.mark.parametrize("picture", SCENES, ids=lambda path: path.stem)
def test_it_sees(ours, picture):
    """Better than any constant, on scenes and furniture that it was never trained on."""
    metres, valid = truth_of(picture)
    with Image.open(picture) as image:
        depth = ours(image, ensemble_size=4).prediction[0]
    found = depth_scores(align(depth, metres, valid), metres, valid)["abs_rel"]
    blind = depth_scores(align(np.ones_like(metres), metres, valid), metres, valid)["abs_rel"]
    assert found < blind


@pytest.mark.parametrize("picture", SCENES, ids=lambda path: path.stem)
def test_normals_of_a_floor_point_up(picture):
    """What lies at the bottom of a picture is mostly a floor, a table or a road."""
    with Image.open(picture) as image:
        normals = Marigold.from_pretrained(NORMALS)(image).prediction[0]
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    bottom, top = normals[-len(normals) // 8 :], normals[: len(normals) // 8]
    assert bottom[..., 1].mean() > 0.4 and bottom[..., 1].mean() > top[..., 1].mean() + 0.2


def test_the_sheet_of_the_demonstration(tmp_path, capsys):
    pictures = [PHOTOGRAPHS[0], SCENES[0]]
    flags = ["--output_dir", str(tmp_path), "--ensemble_size", "3", "--uncertainty"]
    assert predict.main(["--input", *map(str, pictures), *flags]) == 0
    spec = importlib.util.spec_from_file_location("sheet", DEMO / "sheet.py")
    sheet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sheet)
    sheet.main(tmp_path, pictures)
    assert f"{SCENES[0].stem}: AbsRel" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as image:
        assert np.asarray(image).std() > 30
