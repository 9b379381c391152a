"""Draws one sheet of what `predict` made: pictures, depth, uncertainty, and the truth where it is known.

    python launch/demo/sheet.py OUTPUT_DIR PICTURE.jpg ...

OUTPUT_DIR is that of `python -m marigold_jax.predict --uncertainty`. The truth of PICTURE.jpg is PICTURE.png beside it:
16-bit, in millimetres, 0 where there is none.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from marigold_jax.data.colors import color
from marigold_jax.evaluation.depth_alignment import align
from marigold_jax.evaluation.depth_metrics import depth_scores

SIZE = (224, 168)  # (width, height) of one picture
GAP, MARGIN = 4, 84  # pixels between pictures, and on the left, for words
ROWS = ("picture", "depth", "uncertainty", "true depth")
DEPTH_COLORS, UNCERTAINTY_COLORS = "Spectral", "magma"  # near is red, far is blue; certain is black
UNCERTAIN = 0.2  # drawn brightest; depth goes from 0 to 1
MILLIMETRES = 1000


def column(picture: Path, output: Path) -> list[Image.Image]:
    """The pictures of one column. Says how good the depth is where the truth is known."""
    depth = np.load(output / "depth_npy" / f"{picture.stem}_depth.npy")
    uncertainty = np.load(output / "uncertainty_npy" / f"{picture.stem}_uncertainty.npy")
    with Image.open(picture) as image:
        shown = [image.convert("RGB")]
    shown.append(Image.fromarray(color(depth, DEPTH_COLORS)))
    shown.append(Image.fromarray(color(np.clip(uncertainty / UNCERTAIN, 0, 1), UNCERTAINTY_COLORS)))
    if (truth := picture.with_suffix(".png")).exists():
        with Image.open(truth) as image:
            metres = np.asarray(image, np.float32)[..., None] / MILLIMETRES
        valid = metres > 0
        aligned = align(depth[..., None], metres, valid)
        scores = depth_scores(aligned, metres, valid)
        print(f"{picture.stem}: AbsRel {scores['abs_rel']:.3f}, delta1 {scores['delta1']:.3f}, scale and shift aligned")
        # In the colours of the prediction: both maps, in metres, share the scale that turns the prediction into depth.
        near, far = aligned[valid].min(), aligned[valid].max()
        unit = np.clip((metres - near) / max(far - near, 1e-6), 0, 1).astype(np.float32)
        shown.append(Image.fromarray(color(unit[..., 0], DEPTH_COLORS) * valid))
    return [image.resize(SIZE, Image.Resampling.LANCZOS) for image in shown]


def main(output: Path, pictures: list[Path]) -> None:
    columns = [column(picture, output) for picture in pictures]
    width, height = SIZE[0] + GAP, SIZE[1] + GAP
    sheet = Image.new("RGB", (MARGIN + width * len(columns), height * len(ROWS)), "white")
    words = ImageDraw.Draw(sheet)
    for row, word in enumerate(ROWS):
        words.text((MARGIN - 2 * GAP, row * height + SIZE[1] // 2), word, fill="black", anchor="rm")
    for index, images in enumerate(columns):
        for row, image in enumerate(images):
            sheet.paste(image, (MARGIN + index * width, row * height))
    sheet.save(output / "sheet.png")
    print(f"{output / 'sheet.png'} shows everything; maps are beside it")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
