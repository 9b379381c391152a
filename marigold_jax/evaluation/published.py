"""The scores that papers report on the official test sets, printed beside our own."""

from collections.abc import Mapping
from dataclasses import dataclass

from marigold_jax.data.geometry import PATCH
from marigold_jax.evaluation.benchmarks import BENCHMARKS
from marigold_jax.evaluation.model_settings import ModelSettings
from marigold_jax.evaluation.quantities import Quantity
from marigold_jax.evaluation.report import table


@dataclass(frozen=True)
class Published:
    """A table of published scores.

    Attributes:
        datasets: the columns, keys of `BENCHMARKS`.
        scores: a row of score pairs for each method, in the papers' units.
        units: the factors from the papers' units to ours, for the first and the second score of a pair.
        notes: what to say below a comparison.
    """

    datasets: tuple[str, ...]
    scores: Mapping[str, tuple[tuple[float, float], ...]]
    units: tuple[float, float]
    notes: tuple[str, ...] = ()


# A pair has the two scores of `Quantity.headline`.
PUBLISHED = (
    # (AbsRel, δ1) in percent after least-squares alignment, from arXiv 2312.02145 and 2409.11355.
    Published(
        datasets=("nyu_v2", "kitti", "eth3d", "scannet", "diode"),
        scores={
            "Marigold v1-0, 50 steps, ensemble of 10": (
                (5.5, 96.4),
                (9.9, 91.6),
                (6.5, 96.0),
                (6.4, 95.1),
                (30.8, 77.3),
            ),
            "Marigold v1-0, 50 steps": ((6.0, 95.9), (10.5, 90.4), (7.1, 95.1), (6.9, 94.5), (31.0, 77.2)),
            "Marigold v1-0, trailing, 1 step": ((5.7, 96.2), (10.8, 89.6), (6.9, 95.5), (6.6, 95.2), (31.1, 76.8)),
            "Marigold LCM, 4 steps, ensemble of 5": ((6.2, 95.6), (9.9, 91.7), (6.9, 95.5), (7.0, 94.5), (30.9, 77.6)),
            "Marigold LCM, 1 step": ((6.5, 95.4), (10.7, 89.9), (7.5, 94.5), (7.6, 93.8), (31.5, 76.3)),
            "Marigold + E2E-FT, 1 step": ((5.2, 96.6), (9.6, 91.9), (6.2, 95.9), (5.8, 96.2), (30.2, 77.9)),
            "Stable Diffusion 2 + E2E-FT, 1 step": ((5.4, 96.5), (9.6, 92.1), (6.4, 95.9), (5.8, 96.5), (30.3, 77.6)),
        },
        units=(0.01, 0.01),
    ),
    # (mean in degrees, share within 11.25 degrees in percent), over all pixels together, from arXiv 2409.11355.
    Published(
        datasets=("nyu_v2_normals", "scannet_normals", "ibims_normals", "sintel_normals"),
        scores={
            "Marigold normals, 50 steps, ensemble of 10": ((18.8, 55.9), (17.7, 58.8), (18.4, 64.3), (39.1, 14.9)),
            "Marigold normals, trailing, 1 step": ((17.4, 56.5), (16.8, 57.6), (18.1, 62.9), (37.1, 15.7)),
            "Marigold + E2E-FT, 1 step": ((16.2, 61.4), (14.7, 66.0), (15.8, 69.9), (33.5, 21.5)),
            "Stable Diffusion 2 + E2E-FT, 1 step": ((16.5, 60.4), (14.7, 66.1), (16.1, 69.7), (33.5, 22.3)),
            "GeoWizard + E2E-FT, 1 step": ((16.1, 60.7), (15.3, 63.6), (16.2, 69.4), (33.4, 22.4)),
        },
        units=(1.0, 0.01),
        notes=(
            "Published normals: all pixels together, predicted at the image's size (--processing_res 0 --seed 1234).",
            "Marigold's authors evaluate theirs with --denoise_steps 4 --ensemble_size 10, our default size and seed.",
        ),
    ),
)


def published_scores(name: str) -> dict[str, tuple[float, float]]:
    """The published scores on a test set: a pair for each method, in our units; empty if none are known.

    A pair is (AbsRel, δ1), or (mean angle in degrees, share of pixels within 11.25 degrees).
    """
    return {
        method: tuple(round(value * unit, 6) for value, unit in zip(pairs[column], one.units, strict=True))
        for one in PUBLISHED
        for column, dataset in enumerate(one.datasets)
        if dataset == name
        for method, pairs in one.scores.items()
    }


def comparison(
    name: str,
    images: int,
    scores: Mapping[str, float],
    quantity: Quantity,
    alignment: str,
    model: ModelSettings | None,
) -> str:
    """Puts our scores beside the published ones.

    Args:
        name: a key of `BENCHMARKS`.
        images: how many images were scored.
        scores: our scores, including `quantity.headline`.
        quantity: what was scored.
        alignment: how predictions were aligned.
        model: how a model made the predictions; None for saved maps.

    Returns:
        A table; or one line that says how the protocol differs from the papers', so that scores are not comparable.
    """
    benchmark = BENCHMARKS[name]
    resolutions = benchmark.processing_resolution, benchmark.published_resolution
    differences = {
        f"{images} images, the papers' split has {benchmark.count}": images != benchmark.count,
        f"--alignment {alignment}": alignment != quantity.alignments[0],
    }
    if model:
        differences[f"--processing_res {model.processing_res}"] = model.processing_res not in resolutions
        differences[f"--bucket {model.bucket}"] = model.bucket != PATCH
        differences[f"--vae {model.vae}"] = model.vae is not None
    if any(differences.values()):
        return f"not the papers' protocol: {', '.join(what for what, differs in differences.items() if differs)}"
    rows = [
        [
            name,
            method,
            *pair,
            *(f"{scores[key] - value:+.4f}" for key, value in zip(quantity.headline, pair, strict=True)),
        ]
        for method, pair in published_scores(name).items()
    ]
    if not rows:
        return f"{name}: no published scores are known here"
    lines = [table(["dataset", "published", *quantity.headline, *(f"here, {key}" for key in quantity.headline)], rows)]
    lines += [note for one in PUBLISHED if name in one.datasets for note in one.notes]
    if model and model.resize != "official":
        lines.append("Predicted at diffusers' sizes; the papers' numbers were made with --resize official.")
    return "\n".join(lines)
