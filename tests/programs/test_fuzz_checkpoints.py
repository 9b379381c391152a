"""Damaged model folders: whatever is broken, one line says which file, and nothing else happens.

Each mutant is a copy of a small checkpoint with one thing broken, drawn from a seed. It loads and predicts, or it is
refused by a ValueError or FileNotFoundError of one line that begins with where the fault is.
"""

import json
import os
import pickle
import random
import signal

import jax
import numpy as np
import oracle
import pytest
import torch
from safetensors.numpy import load_file, save_file

from marigold_jax import Marigold
from marigold_jax.inference import pipeline, program
from marigold_jax.weights import model_folder

SMALL = {
    "unet": {"block_out_channels": (8, 16), "attention_head_dim": (1, 2), "cross_attention_dim": 8},
    "vae": {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
    },
    "text_encoder": {
        **{"vocab_size": 5, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    },
}
VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        64,
        10**5,
        10**9,
        10**30,
        0.5,
        -0.5,
        1e-30,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        "ten",
        "",
        "8",
        "x" * 5000,
        "\x1b[31m",
        "../../x",
        "epsilon",
        "linear",
        "linspace",
        "DownBlock2D",
        "LCMScheduler",
    ),
    *([], [1], [8, 16, 32], [16, 8], [-1, 0], ["a", "b"], [[8], [16]], [None, None], {}, {"a": 1}, [0.5] * 1000),
    json.loads("[" * 500 + "]" * 500),
]
CONTENTS = [b"", b"{", b"[]", b"3", b"null", b'"x"', b"{}", b"\xff\xfe\x00", b"[" * 10**5, b"\0" * 64, b'{"a": 1}' * 3]
SHARES = {"diffusers": 4, "mixed": 3, "exported": 4, "native": 1}  # of the layouts; Orbax takes long
MOST_TRACED = 1
SECONDS = 60  # for one mutant: only what hangs takes that long


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """One checkpoint in four layouts, by name."""
    root = tmp_path_factory.mktemp("bases")
    pipe = oracle.pipeline(root, default_denoising_steps=1)
    pipe.register_modules(
        unet=oracle.unet(**SMALL["unet"]),
        vae=oracle.vae(**SMALL["vae"]),
        text_encoder=oracle.text_encoder(**SMALL["text_encoder"]),
    )
    pipe.save_pretrained(root / "diffusers")
    pipe.save_pretrained(root / "mixed", max_shard_size="60KB")
    tensors = load_file(root / "diffusers" / "vae" / "diffusion_pytorch_model.safetensors")
    torch.save(
        {name: torch.from_numpy(x) for name, x in tensors.items()}, root / "mixed/vae/diffusion_pytorch_model.bin"
    )
    (root / "mixed/vae/diffusion_pytorch_model.safetensors").unlink()
    loaded = model_folder.load(root / "diffusers")
    model_folder.save(loaded, root / "native", "native")
    model_folder.save(loaded, root / "exported")
    return {name: root / name for name in ("diffusers", "mixed", "native", "exported")}


def copy(base, folder):
    """Links: only what is broken is written."""
    for path in sorted(base.rglob("*")):
        target = folder / path.relative_to(base)
        if not path.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return folder


def replace(file, content):
    file.unlink()
    file.write_bytes(content)


# ------------------------------------------------------------------------------------------------------------ mutations


def change_json(file, chance):
    tree = json.loads(file.read_bytes())
    place = tree
    while True:
        key = chance.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
        inside = place[key]
        if not (isinstance(inside, dict | list) and inside and chance.random() < 0.6):
            break
        place = inside
    what = chance.random()
    if what < 0.15:
        del place[key]
    elif what < 0.2 and isinstance(place, dict):
        place[chance.choice(["wings", "_note", "", "../x", "\n"])] = chance.choice(VALUES)
    else:
        place[key] = chance.choice(VALUES)
    replace(file, json.dumps(tree).encode())


def change_bytes(file, chance):
    content = bytearray(file.read_bytes())
    what = chance.random()
    if what < 0.4:
        content = content[: chance.randrange(len(content) + 1)]
    elif what < 0.8 and content:
        first = 200 if chance.random() < 0.7 else len(content)  # where headers are
        for _ in range(chance.choice([1, 3, 20])):
            content[chance.randrange(min(first, len(content)))] = chance.randrange(256)
    else:
        content = chance.choice(CONTENTS)
    replace(file, bytes(content))


def change_kind(file, chance):
    file.unlink()
    chance.choice(
        [
            lambda: None,
            file.mkdir,
            lambda: os.mkfifo(file),
            lambda: file.symlink_to("/dev/zero"),
            lambda: file.symlink_to(file),
            lambda: file.symlink_to("nowhere"),
        ]
    )()


def change_tensor(file, chance):
    tensors = load_file(file)
    name = chance.choice(sorted(tensors))
    array = tensors[name].copy()
    what = chance.choice(["nan", "inf", "dtype", "shape", "rank", "extra", "missing", "empty"])
    if what in ("nan", "inf"):
        array.flat[chance.randrange(array.size)] = float(what)
    changed = {
        "dtype": array.astype(chance.choice([np.int32, np.uint8, bool, np.float64, np.float16])),
        "shape": array[..., :-1],
        "rank": array[None],
        "empty": array[:0],
    }
    tensors[name] = changed.get(what, array)
    if what == "extra":
        tensors[chance.choice(["stray", "conv_in.weight.weight", "\n", "query", "x" * 3000])] = array
    if what == "missing":
        del tensors[name]
    file.unlink()
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, file)


def change_pickle(file, chance):
    state = torch.load(file, weights_only=True)
    name = chance.choice(sorted(state))
    tensor = state[name]
    what = chance.choice(
        [
            [tensor],
            {"state_dict": state},
            {**state, name: 3},
            {**state, name: None},
            {**state, 5: tensor},
            {**state, name: tensor.to_sparse()},
            {**state, name: torch.full_like(tensor, float("nan"))},
            {**state, name: tensor.to(torch.int64)},
            {**state, name: tensor[:1].reshape(-1)[:1].half().expand(10**12)},
            tensor,
            {},
        ]
    )
    file.unlink()
    torch.save(what, file) if chance.random() < 0.9 else file.write_bytes(pickle.dumps({name: print}))


def mutate(folder, chance):
    """Breaks one thing; returns which file."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    kinds = {
        change_json: [file for file in files if file.suffix == ".json"],
        change_bytes: files,
        change_kind: files,
        change_tensor: [file for file in files if file.suffix == ".safetensors"],
        change_pickle: [file for file in files if file.suffix == ".bin"],
    }
    kinds = {change: chosen for change, chosen in kinds.items() if chosen}
    shares = {change_json: 10, change_bytes: 3, change_kind: 3, change_tensor: 2, change_pickle: 2}
    change = chance.choices(list(kinds), [shares[change] for change in kinds])[0]
    file = chance.choice(kinds[change])
    change(file, chance)
    return f"{change.__name__} of {file.relative_to(folder)}"


# ----------------------------------------------------------------------------------------------------------------- test


def outcome(folder):
    """ "fine", or the line that refuses; anything else is raised."""
    try:
        pipe = Marigold.from_pretrained(folder)
        image = np.zeros((8, 8, 3), np.uint8)
        pipe(image, num_inference_steps=1, processing_resolution=0)
    except (ValueError, FileNotFoundError, ImportError) as error:
        line = str(error)
        assert line.isprintable(), repr(line)
        assert len(line) < 3000, f"{len(line)} characters"
        assert str(folder) in line, line
        return line
    return "fine"


def run_mutants(bases, folder, seed, count, monkeypatch):
    """Returns how many were refused. A program that differs from the checkpoint's own is traced, if anything."""
    chance = random.Random(seed)
    real, first = program.denoise, Marigold.from_pretrained(bases["diffusers"])
    table = first.sampler(1)
    known = first.program(table, 1, 1, 1)

    def denoise(wanted, *rest):
        if wanted == known:
            return real(wanted, *rest)
        traced.append(wanted)
        if len(traced) > MOST_TRACED:
            return np.zeros((1, 8, 8, 1), np.float32), None, None
        shapes = jax.eval_shape(lambda *arrays: real(wanted, *arrays), *rest)
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    monkeypatch.setattr(pipeline, "denoise_for", lambda *_: denoise)
    refused, traced = 0, []
    for number in range(count):
        base = chance.choices(list(SHARES), SHARES.values())[0]
        mutant = copy(bases[base], folder / f"{number}")
        what = mutate(mutant, chance)
        signal.alarm(SECONDS)
        try:
            refused += outcome(mutant) != "fine"
        except BaseException as error:
            raise AssertionError(f"seed {seed}, mutant {number} of {base}, {what}: {error!r}"[:2000]) from error
        finally:
            signal.alarm(0)
    return refused


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_200_mutants_of_a_checkpoint(bases, tmp_path, monkeypatch):
    monkeypatch.setenv("MARIGOLD_JAX_CACHE", str(tmp_path / "cache"))
    refused = run_mutants(bases, tmp_path / "mutants", seed=0, count=200, monkeypatch=monkeypatch)
    assert refused > 100
