"""Converts a model between the diffusers layout and the native layout, or widens Stable Diffusion 2 for fine-tuning.

    python -m marigold_jax.convert --source prs-eth/marigold-depth-v1-1 --output marigold-native
    python -m marigold_jax.convert --source stable-diffusion-2 --output sd2-inflated --to diffusers --inflate marigold

The native layout loads onto any number of devices, each of which reads only its share, and needs no text encoder.
The diffusers layout is for PyTorch users. On one device, both load equally fast.
"""

import argparse
import sys
import time
from pathlib import Path

from marigold_jax.runtime import terminal


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = terminal.Parser(
        prog="python -m marigold_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        *("-i", "--source"),
        required=True,
        metavar="NAME|DIR",
        help="model to convert: a folder in either layout, a training run, or a Hugging Face id[@revision]",
    )
    add(
        *("-o", "--output"),
        required=True,
        type=Path,
        metavar="DIR",
        help="folder to create; it must not exist, and appears only when it is complete",
    )
    add("--to", choices=("native", "diffusers"), default="native", help="layout to write (default: native)")
    add(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="precision of the weights in the new folder (default: float32)",
    )
    add(
        "--inflate",
        nargs="?",
        const="marigold",
        choices=("marigold", "e2e_ft"),
        help="widen conv_in from 4 to 8 input channels: the kernel is repeated and halved; marigold (used if no value "
        "is given) keeps the bias, e2e_ft halves it too",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.output.exists():
        return _fail(f"{arguments.output}: exists already; name a new folder")
    # Imported late, so that --help is instant.
    from marigold_jax.runs.locate import locate
    from marigold_jax.weights import model_folder
    from marigold_jax.weights.model import inflate, unsuitable

    started = time.perf_counter()
    try:
        loaded = model_folder.load(locate(arguments.source))
        if arguments.inflate:
            loaded = inflate(loaded, bias=arguments.inflate)
        if why := unsuitable(loaded, plain_too=True):
            return _fail(why)
        model_folder.save(loaded, arguments.output, arguments.to, arguments.dtype)
    except (OSError, ValueError, ImportError) as error:
        return _fail(str(error))
    parameters = sum(array.size for part in (loaded.unet, loaded.vae) for array in part.params.values())
    terminal.say(f"{arguments.output}: {parameters / 1e6:.1f} M parameters, {time.perf_counter() - started:.1f} s")
    if arguments.to == "diffusers" and not (arguments.output / "text_encoder").is_dir():
        print(
            "The source has no text encoder, so the new folder has none. marigold_jax does not need it; to load the "
            "folder with diffusers, copy text_encoder/ and tokenizer/ of Stable Diffusion 2 into it."
        )
    return 0


def _fail(message: str) -> int:
    terminal.say(f"error: {message}", sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(terminal.run(main))
