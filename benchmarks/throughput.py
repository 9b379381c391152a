"""Speed and memory of `predict` over a long folder of images of many sizes.

    python benchmarks/throughput.py                       2,000 images, with the bundled model

The images are random JPEGs with the sizes of phones, cameras, screens and thumbnails. The program runs as a user would
run it. Images are counted as they appear in predictions.jsonl, and memory is read while it runs (Linux).
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((640, 480), (480, 640), (800, 600), (1024, 768), (512, 512), (640, 360), (720, 1280), (333, 250))  # (w, h)
WINDOW = 100  # pictures


def make_pictures(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = random.integers(0, 255, (6, 8, 3), np.uint8)
        picture = Image.fromarray(coarse).resize(SIZES[random.integers(len(SIZES))], Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:05d}.jpg", quality=85)


def resident(process: int) -> float:
    """MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="pictures (default: 2000)")
    arguments = parser.parse_args()
    if arguments.count < 3 * WINDOW:
        parser.error(f"--count must be at least {3 * WINDOW}, so that there is a first and a last hundred")

    with tempfile.TemporaryDirectory() as folder:
        pictures, output = Path(folder) / "pictures", Path(folder) / "output"
        pictures.mkdir()
        make_pictures(pictures, arguments.count)
        command = [sys.executable, "-m", "marigold_jax.predict", "--input", str(pictures), "--output_dir", str(output)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journals, done, marks = "predictions*.jsonl*", 0, []
        while process.poll() is None:
            done = sum(file.read_bytes().count(b"\n") for file in output.glob(journals))
            while done >= WINDOW * (len(marks) + 1):
                marks.append((time.perf_counter(), resident(process.pid)))
            time.sleep(0.05)
        if process.returncode or len(marks) < 3:
            sys.exit(f"predict ended with status {process.returncode} after {done} of {arguments.count} pictures")

    seconds = np.diff([mark[0] for mark in marks])
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {arguments.count} pictures of {len(SIZES)} sizes")
    print("pictures      images/s  resident, MiB")
    for index, (one, (_, memory)) in enumerate(zip(seconds, marks[1:], strict=True), 1):
        print(f"{index * WINDOW:5}-{(index + 1) * WINDOW:<7}{WINDOW / one:9.1f}{memory:15.0f}")
    print(f"last hundred against first: {seconds[0] / seconds[-1]:.3f} times the speed, ", end="")
    print(f"{marks[-1][1] / marks[1][1]:.3f} times the memory")


if __name__ == "__main__":
    main()
