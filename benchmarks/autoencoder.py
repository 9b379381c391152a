"""Reconstruction error of a checkpoint's VAE: photographs and normalised depth, encoded and decoded again.

    python benchmarks/autoencoder.py --data_dir data

Prints means over the frames of a prepared split: PSNR of photographs in dB, AbsRel and delta1 of aligned depth.
"""

import argparse
from pathlib import Path

from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.runs.run_folder import locate
from marigold_jax.runtime.cli import fail
from marigold_jax.training.validation import reconstruct
from marigold_jax.weights.model_folder import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--split", default="rooms/test", help="of a prepared dataset (default: %(default)s)")
    parser.add_argument("--checkpoint", help="as for `predict` (default: the bundled model)")
    args = parser.parse_args()
    try:
        frames, checkpoint = PreparedSplit(str(args.data_dir / args.split)), load(locate(args.checkpoint))
    except (ValueError, OSError) as error:
        fail(str(error))
    scores, _ = reconstruct(checkpoint, [frames[index] for index in range(len(frames))])
    print(f"{len(frames)} frames of {args.split}:", ", ".join(f"{key} {value:.4f}" for key, value in scores.items()))


if __name__ == "__main__":
    main()
