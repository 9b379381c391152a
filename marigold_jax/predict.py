"""Predicts depth or surface normals for photographs.

    python -m marigold_jax.predict photo.jpg
    python -m marigold_jax.predict --input photos/ --output_dir predictions/
    python -m marigold_jax.predict -i a.jpg "b/*.png" -o out/ --ensemble_size 10 --uncertainty

Inputs are files, folders and quoted globs. Subfolders are searched with --recursive. For each picture NAME, a depth
model writes
    depth_npy/NAME_depth.npy              float32 (height, width), 0 is near, 1 is far
    depth_bw/NAME_depth.png               the same as a 16-bit grey image
    depth_colored/NAME_depth_colored.png  the same in the colours of --color_map
and a normals model writes
    normals_npy/NAME_normals.npy          float32 (height, width, 3): x right, y up, z towards the viewer
    normals_vis/NAME_normals.png          the same as a colour image
--uncertainty adds uncertainty_npy/NAME_uncertainty.npy, float32 (height, width). predictions.jsonl gets one line for
each picture: its input, outputs, size (height, width) and seconds, or its input and error.

NAME is the file name without its extension. With --recursive it includes the subfolders: trip/day1/a.jpg becomes
day1/a. If several pictures have the same name, NAME includes their path below the folder that all inputs share, and
where needed the extension: a/x.jpg and b/x.jpg become a/x and b/x; x.jpg and x.png in one folder stay x.jpg and x.png.

Depth is affine-invariant: it is correct up to an unknown scale and shift for each picture. If the distance of a few
points is known, --align_to DIR turns depth into metres. DIR holds one file for each picture:
    NAME.csv    lines of column, row, metres; pixels count from 0 at the top left
    NAME.npy    (height, width) in metres, NaN or 0 where unknown
    NAME.png    the same in millimetres, 16 bits
A map may differ in size from the picture. The best scale and shift, fitted without outliers, give
depth_metres_npy/NAME_depth.npy, float32. predictions.jsonl gets the scale and shift, the number of points and of
inliers, and the residual: the mean relative error at the inliers. A warning is printed if more than a tenth of the
points are outliers, or the residual is above a tenth.

The published end-to-end fine-tuned models do not record whether they predict depth or normals. If the name of the
model does not contain "depth" or "normals", --modality is needed. Their other options (--noise zeros --x0 --stretch
--x_axis left) are set automatically.

If a picture cannot be read, the reason is printed in one line and the others are still processed. Files appear
complete or not at all. Pictures may have up to 178 million pixels. HEIC needs pip install 'marigold_jax[heif]'.
Several processes can share the work: see `marigold_jax/runtime/distributed.py`.
Exit status: 0 success, 1 something failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import sys
import time
from pathlib import Path

from marigold_jax.data.colors import color_table
from marigold_jax.data.geometry import default_bucket, fit
from marigold_jax.inference.inputs import find_images, passed_over
from marigold_jax.inference.journal import Journal, gather
from marigold_jax.inference.options import add_flags, given
from marigold_jax.inference.outputs import names
from marigold_jax.inference.predict_files import Saving, Stop, in_words, predict_files
from marigold_jax.inference.stream import Settings
from marigold_jax.runtime import distributed, seeds, terminal

RESAMPLE_METHODS = {"bilinear": "bilinear", "bicubic": "bicubic", "nearest": "nearest-exact"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    arguments = (parser := _parser()).parse_intermixed_args(argv)
    arguments.input = arguments.pictures + arguments.input
    if not arguments.input:
        parser.error("no pictures given: name files, folders or quoted globs")
    for flag, smallest in {"denoise_steps": 1, "ensemble_size": 1, "batch_size": 0, "bucket": 8}.items():
        if (value := getattr(arguments, flag)) is not None and value < smallest:
            parser.error(f"--{flag} must be at least {smallest}; got {value}")
    if arguments.uncertainty and arguments.ensemble_size < 2:
        parser.error("--uncertainty compares the members of an ensemble: add --ensemble_size 2 or more (3 is better)")
    if arguments.align_to and arguments.output_processing_res:
        parser.error("--align_to needs predictions of the pictures' own size: leave out --output_processing_res")
    if arguments.align_to and not arguments.align_to.is_dir():
        parser.error(f"--align_to {arguments.align_to} is not a folder")
    arguments.color_map = None if arguments.color_map == "None" else arguments.color_map
    arguments.resample_method = RESAMPLE_METHODS[arguments.resample_method]
    try:
        fit((8, 8), arguments.processing_res or 0, arguments.bucket or 8)
        if arguments.color_map:
            color_table(arguments.color_map)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _parser() -> terminal.Parser:
    parser = terminal.Parser(
        "python -m marigold_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number, folder = {"type": int, "metavar": "N"}, {"type": Path, "metavar": "DIR"}
    resample = {"choices": list(RESAMPLE_METHODS), "default": "bilinear"}
    dtype = {"choices": ["float32", "bfloat16"], "default": "float32"}
    half = {"dest": "dtype", "action": "store_const", "const": "bfloat16"}

    add = parser.add_argument_group("pictures").add_argument
    add("pictures", nargs="*", metavar="PICTURE", help="files, folders or quoted globs")
    add("-i", "--input", "--input_rgb_dir", nargs="+", default=[], metavar="PATH", help="the same, as a flag")
    add("--recursive", action="store_true", help="also search the subfolders of folders; outputs keep their structure")

    add = parser.add_argument_group("outputs").add_argument
    add("-o", "--output_dir", **folder, default="predictions", help="created if missing (default: %(default)s)")
    add("--output_processing_res", action="store_true", help="save at the processing size, not at the picture's size")
    add("--color_map", default="Spectral", metavar="MAP", help="a matplotlib colour map, or None (default: Spectral)")
    add("--uncertainty", action="store_true", help="also save how much the members of the ensemble differ")
    add("--align_to", **folder, help="also save depth in metres, from known depths in DIR: see above")
    add("--skip_existing", action="store_true", help="skip pictures whose outputs all exist")

    add = parser.add_argument_group("model").add_argument
    add("--checkpoint", help="diffusers folder, Hugging Face id or training workdir (default: marigold-rooms)")
    add("--vae", metavar="NAME|DIR", help="another VAE for the same latents; madebyollin/taesd is faster and coarser")
    add("--dtype", **dtype, help="precision of the network (default: %(default)s)")
    add("--half_precision", "--fp16", **half, help="as in the official script; here the same as --dtype bfloat16")

    add = parser.add_argument_group("prediction").add_argument
    add("--denoise_steps", **number, help="denoising steps (default: the model's own)")
    add("--ensemble_size", **number, default=1, help="predictions to merge for each picture (default: %(default)s)")
    add("--processing_res", **number, help="longer side of the network input; 0: the picture's (default: the model's)")
    add("--resample_method", **resample, help="for input and output; nearest is nearest-exact (default: %(default)s)")
    add(
        "--seed",
        **number | {"type": seeds.flag},
        default=0,
        help="of the noise, the same for all pictures (default: 0)",
    )
    add("--batch_size", **number, default=0, help="predictions computed at once; 0: chosen for the device (default: 0)")
    add("--bucket", **number, help="resize to multiples of N, for fewer programs; diffusers: 8 (default: 64 at 768)")

    add_flags(parser.add_argument_group("options that the model usually sets").add_argument)
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        index, count = distributed.start()
    except ValueError as error:
        terminal.say(f"predict: {error}", sys.stderr)
        return 1
    started = time.perf_counter()
    try:
        journal = Journal(arguments.output_dir, part=index)
    except OSError as error:
        reason = error.strerror or error
        terminal.say(f"--output_dir {arguments.output_dir}: cannot write there: {reason}", sys.stderr)
        return 1
    programs = ""
    try:
        programs = predict(arguments, journal, index, count)
        status = 1 if journal.counts["failed"] else 0
    except (Stop, OSError) as error:
        journal.say(f"stopped: {in_words(error)}")
        status = 1
    except KeyboardInterrupt:
        journal.say("interrupted; add --skip_existing to continue")
        status = 130
    journal.close()
    counts, seconds = journal.counts, time.perf_counter() - started
    share = f"process {index} of {count}: " if count > 1 else ""
    where = f"; predictions in {arguments.output_dir}" if counts["written"] or counts["skipped"] else ""
    terminal.say(
        f"{share}{counts['written']} of {journal.total} pictures written, {counts['skipped']} skipped, "
        f"{counts['failed']} failed in {seconds:.1f} s ({counts['written'] / seconds:.2f} images/s){programs}{where}"
    )
    if status == 130:
        return status  # the others' lines are gathered by the run that goes on
    if count > 1:
        distributed.wait_for_all("predicted")
    if index == 0:
        try:
            gather(arguments.output_dir)
        except OSError as error:
            journal.say(f"the records of all processes are not gathered yet: {in_words(error)}")
            status = 1
    return status


def predict(arguments: argparse.Namespace, journal: Journal, index: int = 0, count: int = 1) -> str:
    """The run of process `index` of `count`; returns how many programs were compiled, in words."""
    paths, problems = find_images(arguments.input, arguments.recursive)
    if index == 0:
        for pattern, problem in problems:
            journal.failed(pattern, problem)
        for line in passed_over(arguments.input, arguments.recursive):
            journal.say(line)
    if not paths:
        return ""

    # JAX starts here, so that --help and a mistyped flag or path need not wait for it.
    from marigold_jax import Marigold
    from marigold_jax.runtime import compilation_cache

    compilation_cache.enable_cache()
    try:
        pipe = Marigold.from_pretrained(
            arguments.checkpoint, dtype=arguments.dtype, vae=arguments.vae, **given(arguments)
        )
        pipe.sampler(arguments.denoise_steps)  # the scheduler may not allow so many steps
    except (OSError, ValueError, ImportError) as error:
        raise Stop(error) from None
    if arguments.align_to and not pipe.modality.has_metres:
        raise Stop(f"--align_to: {arguments.checkpoint} estimates {pipe.modality.name}, which have no metres")
    resolution = pipe.default_processing_resolution if arguments.processing_res is None else arguments.processing_res
    settings = Settings(
        num_inference_steps=arguments.denoise_steps,
        ensemble_size=arguments.ensemble_size,
        processing_resolution=resolution,
        bucket=arguments.bucket or default_bucket(resolution),
        batch_size=arguments.batch_size or None,
        seed=arguments.seed,
        resample_method_input=arguments.resample_method,
        resample_method_output=arguments.resample_method,
        match_input_resolution=not arguments.output_processing_res,
        output_uncertainty=arguments.uncertainty,
    )
    saving = Saving(arguments.output_dir, arguments.color_map, arguments.align_to, arguments.skip_existing)
    stems = names(paths, map(Path, arguments.input) if arguments.recursive else ())
    predict_files(pipe, dict(zip(paths, stems, strict=True)), settings, saving, journal, share=(index, count))
    compiled, cached = compilation_cache.counts()
    return f"; {compiled} program{'s' * (compiled != 1)} compiled, {cached} taken from the cache"


if __name__ == "__main__":
    sys.exit(terminal.run(main))
