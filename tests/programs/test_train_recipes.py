"""Every recipe resolves, and those of the papers train: from a configuration to a prediction."""

import dataclasses

import diffusers
import jax
import numpy as np
import pytest
from small_training import records

from marigold_jax import Marigold, train
from marigold_jax.data.primitives import Primitives
from marigold_jax.data.transforms import transform
from marigold_jax.models import unet
from marigold_jax.models.functional import abstract
from marigold_jax.runs.base_model import ModelOptions
from marigold_jax.runs.checkpoints import Checkpoints
from marigold_jax.runs.start import start_from
from marigold_jax.training import configuration, datasets, recipes
from marigold_jax.training.setup import make_setup
from marigold_jax.training.targets import VALIDATIONS
from marigold_jax.weights import model_folder
from marigold_jax.weights.component import Component
from marigold_jax.weights.scratch import scratch

CONFIGS = recipes.names()


@pytest.fixture(scope="module")
def tiny_checkpoints(tmp_path_factory):
    """A small model that was trained for depth, "wide", and one that reads the image alone as Stable Diffusion does."""
    folder, wide = tmp_path_factory.mktemp("tiny"), scratch((16, 16, 16), 2)
    wide = dataclasses.replace(wide, index=wide.index.replace(default_processing_resolution=24))
    params = wide.unet.params | {"conv_in.kernel": wide.unet.params["conv_in.kernel"][:, :, :3]}
    params["conv_in.bias"] = params["conv_in.bias"] + 1
    config = dataclasses.replace(wide.unet.config, in_channels=3)
    structure, _ = abstract(lambda rngs: unet.UNet(config, rngs))
    narrow = dataclasses.replace(wide, unet=Component(config, structure, params))
    for name, model in {"wide": wide, "narrow": narrow}.items():
        model_folder.save(model, folder / name)
    return folder


def tiny(name, start):
    """A configuration of the repository on small pictures, for two steps; what else it says stays."""
    config = configuration.load(name)
    with config.unlocked():
        if config.model.checkpoint == "scratch":
            config.model.update({"widths": (16, 16), "cell": 2})
            if config.model.vae_widths:
                config.model.vae_widths = (8, 16)
        else:
            config.model.checkpoint = str(start)
        config.data.update({"train": (("primitives/train", 1.0),), "validation": "primitives/val", "size": (16, 24)})
        config.data.update({"batch_size": 2, "accumulation": 1, "num_workers": 0})
        config.run.update({"steps": 2, "log_every": 1, "validation_images": 2})
    return config.lock()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_resolves(name, tiny_checkpoints):
    """To a checkpoint, an objective whose gradient can be traced, and an optimiser; the quickstart's way runs above."""
    config = tiny(name, tiny_checkpoints / "wide")
    base = start_from(ModelOptions(**config.model.to_dict()), config.objective.to_dict())
    setup = make_setup(base, config.to_dict())
    example = Primitives(1, (16, 24))[0]
    sample = transform(example, size=None, flip=False, antialias=True, far_fill=True)
    batch = {key: value[None] for key, value in sample.items()}
    frozen = setup.frozen | ({"target": setup.params} if setup.uses_ema_target else {})
    gradient = jax.grad(setup.objective, has_aux=True)
    gradients, _ = jax.eval_shape(gradient, setup.params, frozen, batch, jax.random.key(0))
    assert gradients.keys() == setup.params.keys()
    assert config.model.prediction in VALIDATIONS[setup.trains]


@pytest.mark.slow
@pytest.mark.parametrize(
    "prediction, judge, start", [("depth", "abs_rel", "narrow"), ("normals", "mean_angle", "wide")]
)
def test_end_to_end_as_published_from_configuration_to_prediction(
    prediction, judge, start, here, tiny_checkpoints, tmp_path
):
    """Depth from a model that never saw two latents, normals from one that knew depth."""
    config = tiny(f"e2e_ft_{prediction}", tiny_checkpoints / start)
    losses = here(tmp_path / "run", 1, config)
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert np.isfinite(records(tmp_path / "run")[-1][judge])
    assert (tmp_path / "run" / "panels" / "step_000002.png").is_file()
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2]
    exported = model_folder.load(tmp_path / "run" / "export")
    description = {"_noise": "zeros", "_x0": True, "_stretch": True, "prediction_type": prediction}
    description |= {"default_denoising_steps": 1, "default_processing_resolution": 24}
    assert description.items() <= exported.index.values.items()
    scheduler = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": False, "_class_name": "DDIMScheduler"}
    assert scheduler.items() <= exported.scheduler.values.items()
    pipe = Marigold.from_pretrained(tmp_path / "run" / "export")
    assert (pipe.noise, pipe.final_x0, pipe.modality.name) == ("zeros", True, prediction)
    assert {"depth": diffusers.MarigoldDepthPipeline, "normals": diffusers.MarigoldNormalsPipeline}[
        prediction
    ].from_pretrained(tmp_path / "run" / "export")
    if start == "narrow":  # two steps at a learning rate of 0 and 3e-7 leave the halved bias
        np.testing.assert_allclose(exported.unet.params["conv_in.bias"], 0.5, atol=1e-5)


def test_normals_are_not_judged_where_there_are_none(tiny_checkpoints, monkeypatch, tmp_path):
    config = tiny("e2e_ft_normals", tiny_checkpoints / "wide")
    bare = Primitives(2, (16, 24))
    bare_example = {key: value for key, value in bare[0].items() if key != "normals"}
    opened = {config.data.train[0][0]: bare, config.data.validation: [bare_example] * 2}
    monkeypatch.setattr(datasets, "open_dataset", lambda name, data: opened[name])
    monkeypatch.setattr(train.compilation_cache, "enable_cache", lambda: None)
    monkeypatch.setattr(train.signal, "signal", lambda *_: None)
    with pytest.raises(ValueError, match=r"data.validation=primitives/val has no normals; 0 for config.run.evaluate"):
        train.train(config, tmp_path / "run")
