"""Rendering speed of `prepare rooms`: frames per second on one core, and where the time goes.

    python benchmarks/rooms.py [--assets FOLDER] [--size 144 192] [--scenes 3] [--views 4]

Each kind of scene is built, prepared and rendered from `--views` cameras. Every scene is built twice and only the
second time is measured, after the files of its models have been read.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from marigold_jax.rooms import catalogue, world
from marigold_jax.rooms.render import Renderer


def measure(kind: str, models: catalogue.Catalogue, size: tuple[int, int], scenes: int, views: int) -> list[float]:
    """Seconds to build a scene, to prepare it, to render a frame; triangles per scene; frames per second in total."""
    spent, triangles = [0.0, 0.0, 0.0], 0
    for number in tqdm(range(scenes), desc=kind, disable=None, leave=False):
        world.build(kind, "train", number, views, models)  # reads the files of its models
        times = [time.perf_counter()]
        scene = world.build(kind, "train", number, views, models)
        times.append(time.perf_counter())
        renderer = Renderer(scene)
        times.append(time.perf_counter())
        for view in range(views):
            renderer.frame(view, size, samples=2, seed=0)
        times.append(time.perf_counter())
        spent = [total + end - start for total, (start, end) in zip(spent, pairwise(times), strict=True)]
        triangles += len(renderer.faces)
    build, prepare, frames = (seconds / scenes for seconds in spent)
    return [build, prepare, frames / views, triangles / scenes, views / (build + prepare + frames)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, help="a folder of furniture (default: the built-in models)")
    parser.add_argument("--size", type=int, nargs=2, default=(144, 192), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--scenes", type=int, default=3, help="of each kind")
    parser.add_argument("--views", type=int, default=4, help="of each scene")
    flags = parser.parse_args()
    models = catalogue.open_catalogue(flags.assets, "train")
    print(f"{'kind':12} {'build s':>8} {'prepare s':>9} {'frame s':>8} {'triangles':>10} {'frames/s':>9}")
    for kind in world.KINDS:
        row = measure(kind, models, tuple(flags.size), flags.scenes, flags.views)
        print("{:12} {:8.2f} {:9.2f} {:8.3f} {:10.0f} {:9.2f}".format(kind, *row))


if __name__ == "__main__":
    main()
