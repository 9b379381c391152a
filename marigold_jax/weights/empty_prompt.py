"""What the text encoder answers to the empty prompt: the only text that Marigold ever reads.

Computed once and stored, so that nothing after it needs a text encoder or a tokenizer. Two variants are in use: the
two tokens "start, end" (Marigold in training and inference, E2E-FT in inference) and the same padded to 77
(E2E-FT in training).
"""

from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from marigold_jax.models import clip, functional
from marigold_jax.runtime.files import read_json
from marigold_jax.weights.component import load_component

FILE = "empty_prompt.safetensors"
LENGTHS = (2, 77)
TOKENS = {"bos": "<|startoftext|>", "eos": "<|endoftext|>"}
SD2_IDS = {"bos": 49406, "eos": 49407, "pad": 0}  # where no tokenizer is at hand; the padding is "!"

EmptyPrompt = dict[int, np.ndarray]  # length -> rows (length, d), float32


def load(file: Path) -> EmptyPrompt:
    rows = load_file(file)
    return {length: rows[f"rows_{length}"] for length in LENGTHS}


def save(prompt: EmptyPrompt, file: Path) -> None:
    save_file({f"rows_{length}": np.asarray(prompt[length], np.float32) for length in LENGTHS}, file)


def token_ids(tokenizer: Path) -> dict[str, int]:
    """Ids of the start, end and padding tokens, from the tokenizer's own files where they exist."""
    if (tokenizer / "vocab.json").is_file():
        ids = read_json(tokenizer / "vocab.json")
    elif (tokenizer / "tokenizer.json").is_file():
        ids = read_json(tokenizer / "tokenizer.json")["model"]["vocab"]
    else:
        return SD2_IDS
    # special_tokens_map.json has the last word on padding: Stable Diffusion 2 pads with "!".
    settings: dict = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings |= read_json(tokenizer / name) if (tokenizer / name).is_file() else {}
    pad = settings.get("pad_token") or TOKENS["eos"]
    pad = pad["content"] if isinstance(pad, dict) else pad
    return {"bos": ids[TOKENS["bos"]], "eos": ids[TOKENS["eos"]], "pad": ids[pad]}


def compute(text_encoder: Path, tokenizer: Path) -> EmptyPrompt:
    """Run the text encoder of a checkpoint folder on the empty prompt."""
    config, structure, params = load_component(text_encoder, clip.TextConfig, clip.TextEncoder, clip.FIXED)
    ids = token_ids(tokenizer)
    if max(ids.values()) >= config.vocab_size:
        raise ValueError(f"{tokenizer}: token ids {ids} do not fit {text_encoder}'s vocabulary of {config.vocab_size}")
    longest = min(LENGTHS[-1], config.max_position_embeddings)
    tokens = np.full((1, longest), ids["pad"], np.int32)
    tokens[0, :2] = ids["bos"], ids["eos"]
    # The mask is causal: the first rows of the long answer are the short answer.
    rows = np.asarray(jax.jit(lambda params, ids: functional.merge(structure, params)(ids))(params, tokens))[0]
    return {2: rows[:2], 77: rows}
