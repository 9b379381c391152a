"""The JSON files of a model folder as dataclasses: what is read, what is filled in, and what is written back."""

import dataclasses

import pytest

from marigold_jax.diffusion.scheduler_config import SchedulerConfig
from marigold_jax.weights.model_index import DEFAULTS, PUBLISHED, ModelIndex, complete, read

SCHEDULER = {"_diffusers_version": "0.8.0", "beta_end": 1, "_class_name": "LCMScheduler", "trained_betas": [1, 0.5]}


def test_a_scheduler_config_keeps_what_it_was_made_of_and_knows_the_defaults_of_its_class():
    config = SchedulerConfig(SCHEDULER)
    assert list(config.values.items()) == list(SCHEDULER.items())
    assert (config.class_name, config.beta_end, config.trained_betas) == ("LCMScheduler", 1.0, (1, 0.5))
    assert (config.beta_start, config.clip_sample) == (0.00085, False)
    ddim = config.replace({"_class_name": "DDIMScheduler", "steps_offset": 1})
    assert (ddim.beta_start, ddim.clip_sample, ddim.steps_offset) == (0.0001, True, 1)
    assert list(ddim.values) == [*SCHEDULER, "steps_offset"]


def test_fields_cannot_part_from_the_values_that_are_written():
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(SchedulerConfig(SCHEDULER), beta_end=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelIndex({}).noise = "zeros"


def test_a_class_that_cannot_be_sampled_may_be_replaced():
    config = SchedulerConfig({"_class_name": "EulerDiscreteScheduler"})
    with pytest.raises(ValueError, match="_class_name is 'EulerDiscreteScheduler', expected one of"):
        config.require_known_class()
    config.replace({"_class_name": "DDIMScheduler"}).require_known_class()


@pytest.mark.parametrize("key", ["class_name", "wings"])
def test_unknown_scheduler_keys(key):
    with pytest.raises(ValueError, match=rf"here: unknown keys \['{key}'\], expected among \['beta_end', "):
        SchedulerConfig({key: 1}, "here")


def test_an_index_keeps_unknown_keys_and_leaves_components_out(tmp_path):
    values = {"_note": 1, "_noise": "zeros", "unet": ["diffusers", "x"], "_exported_step": 7, "scale_invariant": None}
    index = read(values, tmp_path)
    assert index.values == {"_note": 1, "_noise": "zeros", "_exported_step": 7, "scale_invariant": None}
    assert (index.noise, index.exported_step, index.scale_invariant) == ("zeros", 7, None)
    changed = index.replace(exported_step=8, x0=True)
    assert list(changed.values) == ["_note", "_noise", "_exported_step", "scale_invariant", "_x0"]
    assert (changed.exported_step, changed.x0) == (8, True)
    with pytest.raises(TypeError, match="no field _x0"):
        index.replace(_x0=True)


def test_what_an_index_leaves_out():
    plain = complete(ModelIndex({"_stretch": True}))
    assert {name: getattr(plain, name) for name in DEFAULTS} == DEFAULTS | {"stretch": True}
    published = PUBLISHED["StableDiffusionPipeline"]
    index = complete(ModelIndex({"_class_name": "StableDiffusionPipeline", "_x_axis": "right"}))
    assert {name: getattr(index, name) for name in published} == published | {"x_axis": "right"}
