"""Distillation (LCM) by the training program: the target is an average of the student, and resuming is exact."""

import dataclasses
import shutil

import diffusers
import numpy as np
import pytest
from small_training import SMALL, assert_same, records

from marigold_jax import Marigold, train
from marigold_jax.data.primitives import Primitives
from marigold_jax.runs.base_model import ModelOptions
from marigold_jax.runs.checkpoints import Checkpoints
from marigold_jax.runs.start import start_from
from marigold_jax.training.objectives import OBJECTIVES

DISTILLATION = {  # of the quickstart, whose network predicts the clean latent
    "objective": {"name": "consistency", "prompt_length": 2, "grid": 5},
    "optim__ema_decay": 0.9,
    "data__accumulation": 1,
    "run__evaluate_every": 0,
}


def test_a_student_keeps_its_teachers_schedule(reference):
    objective, model = (
        {"name": "consistency", "prompt_length": 2, "grid": 10},
        {"checkpoint": str(reference / "export")},
    )
    base = start_from(ModelOptions(**model), objective)
    assert base.scheduler.class_name == "LCMScheduler" and base.scheduler.original_inference_steps == 10
    for wrong in ({"prediction_type": "epsilon"}, {"beta_end": 0.02}):
        with pytest.raises(ValueError, match="wanted the noise schedule that the teacher"):
            start_from(ModelOptions(**model, scheduler=wrong), objective)


@pytest.mark.slow
def test_distillation_follows_its_own_average_and_resumes_to_the_bit(here, reference, tmp_path, monkeypatch):
    row = OBJECTIVES["consistency"]

    def distance(one, other):
        return sum(abs(one[name] - other[name]).sum() for name in one)

    def spied(*structures, **options):
        objective = row.make(*structures, **options)

        def spy(params, frozen, batch, key):
            loss, metrics = objective(params, frozen, batch, key)
            distances = {"gone": distance(params, frozen["unet"]), "lag": distance(params, frozen["target"])}
            return loss, metrics | distances

        return spy

    make_steps, made = train.make_steps, []

    def once(*arguments, **options):
        """Compiled for the first run, and used by the second as well."""
        assert options["batch_size"] == SMALL["data.batch_size"]  # the compiler's options depend on it
        made.extend([] if made else [make_steps(*arguments, **options)])
        return made[0]

    monkeypatch.setattr(train, "make_steps", once)
    monkeypatch.setitem(OBJECTIVES, "consistency", dataclasses.replace(row, make=spied))
    start = DISTILLATION | {"model__checkpoint": str(reference / "export"), "run__steps": 4}
    here(tmp_path / "whole", 1, **start)
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(cut / "export")
    shutil.rmtree(Checkpoints(cut / "checkpoints").path(4))
    here(cut, 1, **start)
    assert_same(cut, tmp_path / "whole")
    lines = records(tmp_path / "whole")
    # The first update only primes the moments; after the second, a tenth of it is in the average.
    assert [line["gone"] for line in lines[:2]] == [line["lag"] for line in lines[:2]] == [0, 0]
    assert lines[2]["lag"] == pytest.approx(0.9 * lines[2]["gone"], rel=1e-3)
    assert 0 < lines[3]["lag"] < lines[3]["gone"]

    pipe = Marigold.from_pretrained(tmp_path / "whole" / "export")
    theirs = diffusers.MarigoldDepthPipeline.from_pretrained(tmp_path / "whole" / "export").scheduler
    theirs.set_timesteps(4)
    assert pipe.sampler(4).timesteps.tolist() == theirs.timesteps.tolist() == [999, 799, 599, 399]
    image = Primitives(1, (16, 24))[0]["rgb"]
    one, four = (pipe(image, num_inference_steps=steps).prediction for steps in (1, 4))
    assert one.std() > 0 and four.std() > 0 and not np.array_equal(one, four)
    with pytest.raises(ValueError, match="lower the number of steps"):
        pipe(image, num_inference_steps=6)


def test_distillation_without_an_average_is_refused(here, reference, tmp_path):
    start = DISTILLATION | {"model__checkpoint": str(reference / "export"), "optim__ema_decay": 0.0}
    with pytest.raises(ValueError, match=r"config.optim.ema_decay=0: the objective consistency compares with a moving"):
        here(tmp_path / "run", 1, **start)
