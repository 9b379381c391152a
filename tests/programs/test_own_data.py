"""The commands of docs/training.md for your own data, in miniature: from twenty photographs with depth to a prediction,
and which parts of them can be left out or are refused."""

import dataclasses
import json
import re
import shlex
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from marigold_jax import predict, prepare, train
from marigold_jax.runtime import sharding
from marigold_jax.training import overrides
from marigold_jax.training.configuration import load
from marigold_jax.training.datasets import validation_examples
from marigold_jax.weights import model_folder
from marigold_jax.weights.scratch import scratch

ROOT = Path(__file__).parents[2]
SMALL = {  # what makes the recipe fit a test
    "data.size": (16, 24),
    "data.batch_size": 2,
    "data.accumulation": 1,
    "data.num_workers": 0,
    "objective.remat": "none",
    "optim.lora_rank": 2,
    "run.steps": 2,
    "run.log_every": 1,
}


def documented(program):
    """The words after `python -m marigold_jax.PROGRAM` in the documented command about `my_scans` or `runs/mine`."""
    text = (ROOT / "docs" / "training.md").read_text().replace("\\\n", " ")
    commands = re.findall(rf"^python -m marigold_jax\.{program} (.*)$", text, re.MULTILINE)
    (command,) = [command for command in commands if "my_scans" in command or "--output_dir mine/" in command]
    return shlex.split(command)


def configuration(arguments, **changes):
    """The configuration that train would have of these flags."""
    rest, values = overrides.split(arguments)
    found = load(rest[rest.index("--config") + 1], values)
    found.update_from_flattened_dict(SMALL | {key.replace("__", "."): value for key, value in changes.items()})
    return found


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(train.compilation_cache, "enable_cache", lambda: None)
    one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), sharding.AXES)
    monkeypatch.setattr(train.sharding, "make_mesh", lambda fsdp: one)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Twenty photographs of several sizes with 16-bit depth, a folder of others, and a small model."""
    place = tmp_path_factory.mktemp("place")
    random = np.random.default_rng(0)
    for folder in ("my_scans/rgb", "my_scans/depth", "photos"):
        (place / folder).mkdir(parents=True)
    with Image.open(ROOT / "launch" / "demo" / "photographs" / "astronaut.jpg") as image:
        for number in range(20):
            left, top = (int(number) for number in random.integers(0, 100, 2))
            shape = tuple(int(side) for side in random.integers(30, 60, 2))
            part = image.crop((left, top, left + 300, top + 250)).resize(shape)
            part.save(place / "my_scans" / "rgb" / f"IMG {number}.JPG", "JPEG")
            depth = np.linspace(1000, 5000, shape[0] * shape[1]).reshape(shape[::-1]).astype(np.uint16)
            Image.fromarray(depth).save(place / "my_scans" / "depth" / f"IMG {number}.png")
        image.resize((40, 30)).save(place / "photos" / "new.jpg")
    small = scratch((16, 16), 4)
    index = small.index.replace(default_processing_resolution=24)
    model_folder.save(dataclasses.replace(small, index=index), place / "tiny")
    return place


@pytest.mark.slow
def test_the_documented_commands_from_photographs_to_a_prediction(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert prepare.main([*documented("prepare"), "--workers", "1"]) == 0
    assert "held out 1 of 20 frames for my_scans/val" in capsys.readouterr().out
    arguments = documented("train")
    workdir = place / arguments[arguments.index("--workdir") + 1]
    train.train(configuration(arguments, model__checkpoint=str(place / "tiny")), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and np.isfinite(lines[1]["abs_rel"])
    assert list((workdir / "panels").iterdir())
    assert predict.main([*documented("predict"), "--processing_res", "24"]) == 0
    depth = np.load(place / "mine" / "depth_npy" / "new_depth.npy")
    assert depth.shape == (30, 40) and np.isfinite(depth).all()


def test_the_configuration_names_what_the_documented_commands_make():
    config = configuration([word for word in documented("train") if ".data." not in word])
    assert config == configuration(documented("train"), data__data_dir="data")


@pytest.mark.parametrize("none", ["", None, "None"])
def test_training_without_validation(none):
    """Nothing is opened, and nothing judged."""
    config = configuration(documented("train"))
    with config.unlocked():
        config.data.validation = none
    assert validation_examples(config.to_dict()) == []


BAD = [
    (
        {"data__validation": "my_scans"},
        "config.data.validation=my_scans: wanted a prepared NAME/SPLIT, as my_scans/val",
    ),
    (
        {"data__validation": "hypersim/val"},
        "as my_scans/val, or '' to train without validation; .*no dataset 'hypersim'",
    ),
    ({"data__validation": "my_scans/test"}, "has the splits train; not 'test'"),
    ({"data__validation": "/"}, "config.data.validation=/: wanted a prepared"),
    ({"data__train": (("mine/train", 1.0),)}, "config.data.train=mine/train: wanted a prepared NAME/SPLIT.*no dataset"),
    ({"data__train": (("my_scans", 1.0),)}, "config.data.train=my_scans: wanted a prepared NAME/SPLIT"),
    ({"run__validation_images": 0}, "config.run.validation_images=0: wanted 1 or more"),
    ({"data__size": (100, 130)}, r"config.data.size=\(100, 130\): wanted \(height, width\), multiples of 4"),
    ({"data__size": (16,)}, r"config.data.size=\(16,\): wanted \(height, width\), multiples of 4"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "message"), BAD)
def test_nonsense_costs_one_line_before_anything_is_trained(place, monkeypatch, changes, message):
    monkeypatch.chdir(place)
    flags = ["--unit", "mm", "--workers", "1", "--raw_dir", "my_scans", "--data_dir", "bad", "--limit", "2"]
    assert prepare.main(["folder", *flags]) == 0
    given = {"model__checkpoint": str(place / "tiny"), "data__data_dir": "bad", "data__validation": "my_scans/train"}
    with pytest.raises(ValueError, match=message) as error:
        train.train(configuration(documented("train"), **given | changes), place / "nowhere")
    assert "\n" not in str(error.value)


def test_a_small_validation_split_is_not_judged_by_again_and_again(place, monkeypatch):
    monkeypatch.chdir(place)
    flags = ["--unit", "mm", "--workers", "1", "--raw_dir", "my_scans", "--data_dir", "few", "--limit", "4"]
    assert prepare.main(["folder", *flags, "--validation", "0.5"]) == 0
    config = configuration(documented("train"), data__data_dir="few")
    assert config.run.validation_images > 2 and len(validation_examples(config.to_dict())) == 2
