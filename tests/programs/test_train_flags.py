"""The flags and configurations of the training program: what is refused, in one line, and what every recipe says."""

import ast
import re
import sys

import pytest
from small_training import ROOT, command

import marigold_jax
from marigold_jax import train
from marigold_jax.training import configuration, recipes

CONFIGS = recipes.names()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag, status, complaint",
    [
        (
            "--config.data.batchsize=3",
            2,
            "config.data.batchsize: no such configuration key; wanted one of accumulation,",
        ),
        ("--config.data.batch_size=many", 2, "config.data.batch_size=many: wanted a whole number"),
        ("--config.data.train=(('rooms/train', 1/3),)", 1, "config.data.train: wanted pairs with numbers"),
        ("--nonsense=1", 2, "nonsense"),
        ("more", 2, "unrecognized arguments: more"),
        ("--config.run.log_every=0", 1, "config.run.log_every=0: wanted a whole number, 1 or more"),
    ],
)
def test_wrong_flags_cost_one_line(refused, tmp_path, flag, status, complaint):
    found, said = refused("train", command(tmp_path / "run", flag)[3:])
    assert found == status and complaint in said.err and said.err.count("\n") == 1, said.err


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--config.run.steps=3"]])
def test_a_missing_configuration_costs_one_line(refused, tmp_path, more):
    status, said = refused("train", ["--config", "nowhere.py", "--workdir", tmp_path / "run", *more])
    assert status == 2 and "nowhere.py" in said.err and said.err.count("\n") == 1, said.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "program, flags, status, wanted",
    [
        (
            "train",
            ["--help"],
            0,
            ["Trains or fine-tunes", "--workdir", "is executed", "--config.SECTION.KEY", "  lcm "],
        ),
        ("aot", ["--help"], 0, ["Shows what training and", "--target", "--dtype", "is executed", "  lcm "]),
        ("train", ["--version"], 0, [f"marigold_jax {marigold_jax.__version__}\n"]),
        ("train", ["--workdir", "run"], 2, ["marigold_jax.train: ", "required: --config;"]),
        ("train", ["--config.run.steps=3", "--workdir", "run"], 2, ["marigold_jax.train: ", "required: --config;"]),
        ("train", ["--config", "quickstart"], 2, ["marigold_jax.train: ", "required: --workdir;"]),
        ("train", ["--config", "quickstart", "--workdir="], 2, ["--workdir: wanted the folder of the run"]),
        ("train", ["--config"], 2, ["argument --config: expected one argument"]),
        ("aot", ["--config", "quickstart"], 2, ["marigold_jax.aot: ", "required: --target;"]),
        ("aot", ["--config", "quickstart", "--target", "tpu:x"], 2, ["marigold_jax.aot: ", "wanted tpu:NAME with one"]),
    ],
)
def test_programs_explain_themselves_and_name_what_is_missing(refused, program, flags, status, wanted):
    found, (out, err) = refused(program, flags)
    said = err if status else out
    assert found == status and all(part in said for part in wanted), said
    assert said.count("\n") == 1 if status else not err and "absl" not in said


@pytest.mark.slow
def test_a_process_ends_with_the_status_and_one_line(run):
    """The rest of this file asks the programs in this process."""
    done = run([sys.executable, "-m", "marigold_jax.train", "--config", "quickstart"], status=2)
    assert "required: --workdir;" in done.stderr and done.stderr.count("\n") == 1
    done = run([sys.executable, "-m", "marigold_jax.aot", "--help"])
    assert "--target" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("def get_config():\n    return 1 / 0\n", ", line 2: ZeroDivisionError: division by zero"),
        ("def get_config(:\n", ", line 1: invalid syntax"),
        ("x = 1\n", "wanted a Python file with a function get_config"),
        ("import nowhere_at_all\n", ", line 1: ModuleNotFoundError"),
        ("def get_config():\n    pass\n", "get_config returned nothing"),
        ("def get_config():\n    return [1]\n", "get_config returned list [1], wanted a dictionary of sections"),
    ],
)
def test_a_configuration_that_fails_costs_one_line(tmp_path, text, complaint, capsys):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        train.parse(["--config", str(file), "--workdir", "run"])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and complaint in said and str(file) in said and said.count("\n") == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_is_allowed(name):
    configuration.check(configuration.load(name).to_dict())


@pytest.mark.parametrize(
    "section, key, value, complaint",
    [
        ("run", "steps", 0, "config.run.steps=0: wanted a whole number, 1 or more"),
        ("run", "checkpoint_every", 0, "config.run.checkpoint_every=0: wanted"),
        ("run", "steps", 2.5, "config.run.steps=2.5: wanted a whole number"),
        (
            "run",
            "seed",
            2**32,
            "config.run.seed: wanted a whole number from 0 to 4294967295, got 4294967296",
        ),  # JAX takes it for 0
        ("run", "validation_images", 0, "or 0 for config.run.evaluate_every"),
        ("data", "batchsize", 3, "config.data.batchsize: no such configuration key"),
        ("data", "far_fill", None, "config.data.far_fill is missing"),
        ("optim", "momentum", 3, "config.optim.momentum: no such configuration key"),
        ("optim", "betas", None, "config.optim.betas is missing"),
        ("model", "chekpoint", "x", "config.model.chekpoint: no such configuration key"),
        ("objective", "strenght", 1, "config.objective.strenght: no such configuration key"),
        ("objective", "name", "magic", "config.objective.name=magic: wanted one of autoencoder"),
        ("mode", "name", "x", "config.mode: no such section"),
    ],
)
def test_what_a_configuration_may_not_say(section, key, value, complaint):
    config = configuration.load("quickstart").to_dict()
    config[section] = {**config.get(section, {}), key: value}
    if value is None:
        del config[section][key]
    with pytest.raises(ValueError, match=re.escape(complaint)):
        configuration.check(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_key_is_read(name):
    """Those of `model`, `objective` and `optim` are arguments of functions, whose signatures `configuration` reads."""
    files = (ROOT / "marigold_jax" / "train.py", ROOT / "marigold_jax" / "training" / "datasets.py")
    source = "".join(file.read_text() for file in files)
    read = set(re.findall(r"\b(data|run)\.(\w+)", source)) | set(re.findall(r'\b(data|run)\["(\w+)"\]', source))
    config = configuration.load(name).to_dict()
    configuration.check(config)
    for section in ("data", "run"):
        unread = {key for key in config[section] if (section, key) not in read}
        assert not unread, f"{name}: {section}.{sorted(unread)} is read by nobody"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_begins_with_its_command(name):
    docstring = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))
    assert f"python -m marigold_jax.train --config {name} --workdir" in docstring
