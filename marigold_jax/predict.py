"""Depth or surface normals for photographs.

    python -m marigold_jax.predict --input photos/ --output_dir predictions/
    python -m marigold_jax.predict --input a.jpg "b/*.png" --output_dir out/ --ensemble_size 10 --uncertainty

Inputs are files, folders (without their subfolders, but for --recursive) and quoted globs. For every picture NAME a
depth checkpoint writes
    depth_npy/NAME_depth.npy              float32 (height, width), 0 near .. 1 far
    depth_bw/NAME_depth.png               the same as 16-bit grey
    depth_colored/NAME_depth_colored.png  the same through --color_map
and a normals checkpoint
    normals_npy/NAME_normals.npy          float32 (height, width, 3): x right, y up, z towards the viewer
    normals_vis/NAME_normals.png          the same as colours
With --uncertainty there is uncertainty_npy/NAME_uncertainty.npy too, float32 (height, width). predictions.jsonl gains
one line a picture: input, outputs, size (height, width) and seconds, or input and error.

NAME is the file's name without its extension; with --recursive, below its folder: trip/day1/a.jpg becomes day1/a. Where
two are the same, NAME is the path below the folder that all inputs share, and keeps its extension if it must: a/x.jpg
and b/x.jpg become a/x and b/x, x.jpg and x.png of one folder x.jpg and x.png.

Depth is affine-invariant: it orders what is near and far, up to one scale and one shift for each picture. Whoever knows
the distance of a few points gives them with --align_to DIR, one file for each picture:
    NAME.csv    lines of column, row, metres; pixels count from 0 at the top left
    NAME.npy    (height, width) in metres, NaN or 0 where unknown; or NAME.png, 16-bit, in millimetres
A map may have another size than the picture. The scale and shift that fit best, outliers left out, give
depth_metres_npy/NAME_depth.npy, float32, and stand in predictions.jsonl with the number of points and of inliers, and
the residual: the mean error at these, as a share of the depth. Where more than a tenth of the points are outliers, or
the residual is larger than a tenth, a line says so.

What a checkpoint does not say of itself can be said here: an end-to-end fine-tuned one as its authors publish them has
no word on --modality, which is read off its name where that speaks of depth or normals. The rest such a one needs
(--noise zeros --x0 --stretch --x_axis left) is known.

A picture that cannot be read costs one line, and the others still come out. Nothing is ever half-written. HEIC needs
pip install 'marigold_jax[heif]'. Pictures may have up to 178 million pixels.
Several processes share the pictures; `marigold_jax/runtime/distributed.py` says how they find each other.
Exit status: 0 all is well, 1 something failed, 2 wrong usage, 130 interrupted.
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
    parser = terminal.Parser(
        "python -m marigold_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    number = {"type": int, "metavar": "N"}
    resample = {"choices": list(RESAMPLE_METHODS), "default": "bilinear"}
    dtype = {"choices": ["float32", "bfloat16"], "default": "float32"}
    add("--input", nargs="+", required=True, metavar="PATH", help="files, folders, quoted globs")
    add("--recursive", action="store_true", help="the subfolders of folders too; predictions keep their structure")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where predictions go; made if missing")
    add("--checkpoint", help="diffusers folder, Hugging Face id or training workdir (default: the one that ships)")
    add("--vae", metavar="NAME|DIR", help="another VAE with the same latents, as madebyollin/taesd: faster, coarser")
    add("--denoise_steps", **number, help="denoising steps (default: the checkpoint's own)")
    add("--ensemble_size", **number, default=1, help="predictions merged for each picture (default: 1)")
    add("--processing_res", **number, help="longer side for the network; 0: the picture's (default: the checkpoint's)")
    add("--output_processing_res", action="store_true", help="save at that size, not at the picture's own")
    add("--resample_method", **resample, help="in and out; nearest is nearest-exact (default: %(default)s)")
    add("--seed", type=seeds.flag, metavar="N", default=0, help="of the noise, same for every picture (default: 0)")
    add("--batch_size", **number, default=0, help="pictures x members at once (default: 0, what the device likes)")
    add("--dtype", **dtype, help="of the network's arithmetic (default: %(default)s)")
    add("--bucket", **number, help="resize to multiples of N: few programs (default: 64 at 768); 8: as diffusers")
    add("--color_map", default="Spectral", metavar="MAP", help="any of matplotlib's, or None (default: Spectral)")
    add("--uncertainty", action="store_true", help="also save how far the members of the ensemble disagree")
    add("--align_to", type=Path, metavar="DIR", help="known depth of each picture, to get metres: see above")
    add_flags(add)
    add("--skip_existing", action="store_true", help="skip pictures whose outputs are all there")
    arguments = parser.parse_args(argv)

    for flag, smallest in {"denoise_steps": 1, "ensemble_size": 1, "batch_size": 0, "bucket": 8}.items():
        if (value := getattr(arguments, flag)) is not None and value < smallest:
            parser.error(f"--{flag} must be at least {smallest}; got {value}")
    if arguments.uncertainty and arguments.ensemble_size < 2:
        parser.error("--uncertainty says how far members disagree, and wants --ensemble_size 2 or more (3 is better)")
    if arguments.align_to and arguments.output_processing_res:
        parser.error("--align_to wants predictions of the pictures' size: leave out --output_processing_res")
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
        journal.say("interrupted; --skip_existing goes on from here")
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
