"""The text encoder's embedding of the empty prompt, the only text that Marigold uses.

It is computed once and stored, so that training and prediction need no text encoder and no tokenizer. There are two
variants: the two tokens "start, end" (Marigold in training and inference, E2E-FT in inference), and the same two tokens
padded to 77 (E2E-FT in training).
"""

import functools
import os
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from jaxtyping import Array
from safetensors.numpy import save as serialise

from marigold_jax.models import clip, functional
from marigold_jax.runtime.files import read_json, regular, write
from marigold_jax.runtime.typed import Between, problem, shown
from marigold_jax.weights.component import load_component
from marigold_jax.weights.torch_files import Tensors, require_finite

FILE = "empty_prompt.safetensors"
LENGTHS = (2, 77)
TOKENS = {"bos": "<|startoftext|>", "eos": "<|endoftext|>"}
VOCABULARIES = {"vocab.json": (), "tokenizer.json": ("model", "vocab")}  # file -> path of keys to the vocabulary
TokenId = Annotated[int, Between(0, 2**20)]
LARGEST_WIDTH = 2**14
SD2_IDS = {"bos": 49406, "eos": 49407, "pad": 0}  # if there is no tokenizer; the padding token is "!"

EmptyPrompt = dict[int, np.ndarray]  # length -> rows (length, d), float32


def load(file: Path) -> EmptyPrompt:
    """Reads the rows. Raises FileNotFoundError, or ValueError unless they are finite and of one width."""
    tensors = Tensors(regular(file))
    prompt = {}
    for length in LENGTHS:
        name = f"rows_{length}"
        shape = tensors.shapes.get(name, ())
        if len(shape) != 2 or not LENGTHS[0] <= shape[0] <= length or not 0 < shape[1] <= LARGEST_WIDTH:
            found = f"its shape is {list(shape)}" if name in tensors.shapes else "it is missing"
            raise ValueError(f"{file}: {name}: wanted {length} rows, {found}; compute it again from text_encoder/")
        prompt[length] = tensors.read(name).astype(np.float32)
    if len({rows.shape[1] for rows in prompt.values()}) > 1:
        raise ValueError(f"{file}: rows of different widths; compute it again from text_encoder/")
    return prompt


def save(prompt: EmptyPrompt, file: Path) -> None:
    write(file, serialise({f"rows_{length}": np.asarray(prompt[length], np.float32) for length in LENGTHS}))


def token_ids(tokenizer: Path) -> dict[str, int]:
    """Returns the ids of the start, end and padding tokens, from the files of the tokenizer if there are any.

    Raises:
        ValueError: one line that names the file; for example, a token is not in the vocabulary.
    """
    file = next((tokenizer / name for name in VOCABULARIES if os.path.lexists(tokenizer / name)), None)
    if file is None:
        return SD2_IDS
    vocabulary: Any = read_json(file)
    for key in VOCABULARIES[file.name]:
        vocabulary = vocabulary.get(key) if isinstance(vocabulary, dict) else None
    if not isinstance(vocabulary, dict):
        raise ValueError(f"{file}: wanted a vocabulary at {'.'.join(VOCABULARIES[file.name])}, an object")
    # special_tokens_map.json overrides the padding token: Stable Diffusion 2 pads with "!".
    tokens = {**TOKENS, "pad": TOKENS["eos"]}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if os.path.lexists(settings := tokenizer / name) and (pad := read_json(settings).get("pad_token")):
            tokens["pad"] = pad.get("content") if isinstance(pad, dict) else pad
            if not isinstance(tokens["pad"], str):
                raise ValueError(f"{settings}: pad_token = {shown(pad)}: wanted text, or an object with content")
    ids = {name: vocabulary.get(token) for name, token in tokens.items()}
    wrong = filter(None, (problem(tokens[name], number, TokenId) for name, number in ids.items()))
    if words := "; ".join(wrong):
        raise ValueError(f"{file}: {words}")
    return ids


@functools.partial(jax.jit, static_argnums=0)
def _rows(structure: functional.Structure, params: functional.Params, ids: Array) -> Array:
    return functional.merge(structure, params)(ids)


def compute(text_encoder: Path, tokenizer: Path) -> EmptyPrompt:
    """Computes the rows with the text encoder of a checkpoint. Raises as `load_component` and `token_ids` do."""
    config, structure, params = load_component(text_encoder, clip.TextConfig, clip.TextEncoder, clip.FIXED)
    ids = token_ids(tokenizer)
    if max(ids.values()) >= config.vocab_size:
        raise ValueError(f"{tokenizer}: token ids {ids} do not fit {text_encoder}'s vocabulary of {config.vocab_size}")
    longest = min(LENGTHS[-1], config.max_position_embeddings)
    tokens = np.full((1, longest), ids["pad"], np.int32)
    tokens[0, :2] = ids["bos"], ids["eos"]
    # Attention is causal, so the first two rows do not depend on the padding.
    rows = np.asarray(_rows(structure, params, tokens))[0]
    require_finite(rows, f"{text_encoder}: its embedding of the empty prompt")
    return {2: rows[:2], 77: rows}
