"""Recipes are found by name or path, merged over `base.py`, and changed by flags; older runs still resume."""

import json
import shutil

import pytest
from ml_collections import ConfigDict

from marigold_jax.runs import run_folder
from marigold_jax.training import configuration, overrides, recipes
from marigold_jax.training.objectives import OBJECTIVES

NAMES = {"e2e_ft_depth", "e2e_ft_normals", "hypersim_vkitti", "lcm", "own_data", "quickstart"}
NAMES |= {"rooms", "rooms_end_to_end", "rooms_vae"}


# -------------------------------------------------------------------------------------------------------------- recipes


def test_a_recipe_is_found_by_name_from_anywhere_or_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = recipes.folder() / "own_data.py"
    assert recipes.find("own_data") == recipes.find("own_data.py") == recipes.find(str(wanted)) == wanted
    (tmp_path / "own_data.py").write_text("def get_config():\n    return {'run': {'steps': 7}}\n")
    assert recipes.find("own_data") == wanted  # a name is a recipe; a path is a path
    assert configuration.load("own_data.py").run.steps == 7
    assert set(recipes.names()) == recipes.summaries().keys() == NAMES and all(recipes.summaries().values())
    for wrong in ("nowhere", "nowhere.py", "configs/lcm.py", "", "."):
        with pytest.raises(ValueError, match=r"no such file or recipe; .* or one of e2e_ft_depth, .*, rooms_vae$"):
            recipes.find(wrong)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--config config.json: wanted a Python file with a function get_config"):
        recipes.find("config.json")


def test_an_installed_package_has_its_own_recipes(tmp_path, monkeypatch):
    shutil.copytree(recipes.folder(), tmp_path / "configs")
    monkeypatch.setattr(recipes, "FOLDERS", (tmp_path / "configs", recipes.folder()))
    assert recipes.find("lcm") == tmp_path / "configs" / "lcm.py"
    monkeypatch.setattr(recipes, "FOLDERS", (tmp_path / "elsewhere",))
    with pytest.raises(ValueError, match=r"elsewhere; reinstall marigold_jax"):
        recipes.find("lcm")


def test_a_configuration_that_is_written_out_whole_still_loads(tmp_path):
    """As every configuration was, before there was `base.py`: a ConfigDict, without the keys that have defaults."""
    whole = configuration.load("rooms").to_dict()
    for section, known in configuration.defaults("diffusion").items():
        whole[section] = {key: value for key, value in whole[section].items() if value != known.get(key, ...)}
    text = f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({whole!r})\n"
    (tmp_path / "old.py").write_text(text)
    assert configuration.load(str(tmp_path / "old.py")) == configuration.load("rooms")
    (tmp_path / "mixed.py").write_text(text.replace("return ConfigDict(", "return dict("))
    assert configuration.load(str(tmp_path / "mixed.py")) == configuration.load("rooms")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_base_has_every_key_and_leaves_an_absent_one_as_it_was(objective):
    """A key that a configuration may lack means the same whether `base.py` or a function's signature supplies it."""
    base = configuration.resolve({"objective": {"name": objective}})
    configuration.check(base)
    for section, (allowed, _) in configuration.sections(objective).items():
        assert base[section].keys() == allowed
    for section, known in configuration.defaults(objective).items():
        for key, value in known.items():
            assert (base[section][key], type(base[section][key])) == (value, type(value)), f"{section}.{key}"


@pytest.mark.parametrize(
    "sections, complaint",
    [
        ({"data": {"batchsize": 1}}, "config.data.batchsize: no such configuration key; wanted accumulation, "),
        ({"objective": {"name": "magic"}}, "config.objective.name=magic: wanted one of autoencoder, "),
        ({"objective": {"grid": 5}}, "config.objective.grid: no such configuration key; wanted align, "),
        ({"optim": 3}, "config.optim is missing: wanted the sections"),
        ({"optimiser": {}}, "config.optimiser: no such section; wanted model, "),
    ],
)
def test_what_is_unknown_stays_to_be_refused(sections, complaint):
    with pytest.raises(ValueError, match=complaint):
        configuration.check(configuration.resolve(sections))


# ------------------------------------------------------------------------------------------------------------ overrides


@pytest.mark.parametrize(
    "flags, key, wanted",
    [
        ("--config.run.steps=3", "run.steps", 3),
        ("--config.run.steps 3", "run.steps", 3),
        ("-config.run.steps=3", "run.steps", 3),
        ("--config.run.steps=3 --config.run.steps=0x10", "run.steps", 16),
        ("--config.optim.learning_rate=1", "optim.learning_rate", 1.0),
        ("--config.optim.learning_rate 1e-4", "optim.learning_rate", 1e-4),
        ("--config.objective.strength -.5", "objective.strength", -0.5),
        ("--config.data.flip=False", "data.flip", False),
        ("--config.data.flip=0", "data.flip", False),
        ("--config.data.flip false", "data.flip", False),
        ("--noconfig.data.flip", "data.flip", False),
        ("--config.data.flip=0 --config.data.flip", "data.flip", True),
        ("--config.data.flip=false --config.data.flip=t", "data.flip", True),
        ("--config.data.size=(96,128)", "data.size", (96, 128)),
        ("--config.data.size=[96,128]", "data.size", (96, 128)),
        ("--config.data.size=96 --config.data.size 128", "data.size", (96, 128)),
        ("--config.data.size=()", "data.size", ()),
        ("--config.data.train=(('a/b',0.5),('c/d',.5))", "data.train", (("a/b", 0.5), ("c/d", 0.5))),
        ("--config.data.train=a/b", "data.train", ("a/b",)),
        ("--config.data.validation=", "data.validation", ""),
        ("--config.model.checkpoint=a=b", "model.checkpoint", "a=b"),
        ("--config.model.checkpoint=7", "model.checkpoint", "7"),
        ("--config.model.scheduler.timestep_spacing=leading", "model.scheduler.timestep_spacing", "leading"),
        ("--config.model.scheduler={'beta_end':0.5}", "model.scheduler", {"beta_end": 0.5}),
        ("--config.objective.align=3", "objective.align", 3.0),  # this recipe does not name the key
    ],
)
def test_an_override_is_read_as_what_it_replaces(flags, key, wanted):
    rest, changes = overrides.split(["more", "--workdir", "x", *flags.split()])
    assert rest == ["more", "--workdir", "x"]
    found = configuration.load("hypersim_vkitti", changes).to_dict()
    for part in key.split("."):
        found = found[part]
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    "flag, complaint",
    [
        ("--config.run.step=3", r"config\.run\.step: no such configuration key; wanted one of checkpoint_every, "),
        ("--config.runs.steps=3", r"config\.runs: no such configuration key; wanted one of data, model"),
        ("--config.run.steps.x=3", r"config\.run\.steps\.x: no such configuration key$"),
        ("--config.model.scheduler.x=3", r"config\.model\.scheduler\.x: no such configuration key; wanted one of _"),
        ("--config.run.steps=3.5", r"config\.run\.steps=3\.5: wanted a whole number"),
        ("--config.run.steps", r"config\.run\.steps: wanted a whole number"),
        ("--config.optim.learning_rate=fast", r"config\.optim\.learning_rate=fast: wanted a number"),
        ("--config.data.flip=maybe", r"config\.data\.flip=maybe: wanted true or false"),
        ("--config.data.data_dir", r"config\.data\.data_dir: wanted a text"),
        ("--config.data.size=(96,", r"config\.data\.size=\(96,: wanted a tuple"),
        ("--config.model.scheduler=3", r"config\.model\.scheduler=3: wanted a dictionary"),
    ],
)
def test_an_override_that_cannot_be_is_one_line(flag, complaint):
    _, changes = overrides.split([flag])
    with pytest.raises(ValueError, match=complaint) as caught:
        configuration.load("hypersim_vkitti", changes)
    assert "\n" not in str(caught.value)


def test_another_objective_brings_its_own_options():
    config = configuration.load("hypersim_vkitti", [("objective.name", "end_to_end"), ("objective.units", "relative")])
    configuration.check(config.to_dict())
    assert (config.objective.units, config.objective.noise, config.objective.remat) == ("relative", "zeros", "blocks")
    assert isinstance(config, ConfigDict) and config.is_locked


# -------------------------------------------------------------------------------------------------------- runs on disk


def saved_run(folder, config):
    """The folder of a run that has saved a checkpoint."""
    (folder / run_folder.CHECKPOINTS / "00000010").mkdir(parents=True)
    (folder / run_folder.CONFIG).write_text(json.dumps(config))
    return folder


def test_an_older_run_resumes_without_the_keys_that_it_lacks(tmp_path):
    config = configuration.load("own_data").to_dict()
    known = configuration.defaults("diffusion")
    older = {
        name: {key: value for key, value in section.items() if value != known.get(name, {}).get(key, ...)}
        for name, section in config.items()
    }
    assert not older["model"].keys() & {"widths", "seed"} and "compute_dtype" not in older["objective"]
    run_folder.claim(saved_run(tmp_path / "run", older), config, known)
    assert json.loads((tmp_path / "run" / run_folder.CONFIG).read_text()) == json.loads(json.dumps(config))
    changed = configuration.load("own_data", [("objective.align", "3.0")]).to_dict()
    with pytest.raises(ValueError, match=r"another configuration: objective.align was 0.0, is 3.0. Name another"):
        run_folder.claim(saved_run(tmp_path / "other", older), changed, known)
