"""A text encoder that returns zeros, and its tokenizer, for a model that was trained without text.

We read only the stored embedding of the empty prompt, but diffusers' pipelines need an encoder.
"""

from pathlib import Path

import numpy as np

from marigold_jax.models import clip
from marigold_jax.models.functional import initialise
from marigold_jax.runtime.files import write_json
from marigold_jax.weights.component import save_component
from marigold_jax.weights.empty_prompt import LENGTHS, TOKENS, EmptyPrompt

HEADS = 4
WEIGHTS = "model.safetensors"  # the name that transformers uses


def is_zero(prompt: EmptyPrompt) -> bool:
    """Whether the embedding of the empty prompt is all zeros."""
    return not any(rows.any() for rows in prompt.values())


def save_text_components(prompt: EmptyPrompt, folder: Path) -> None:
    """Writes `text_encoder/` and `tokenizer/`, which return rows of zeros for any prompt, as wide as `prompt`."""
    width = prompt[LENGTHS[0]].shape[1]
    tokens = {token: number for number, token in enumerate(TOKENS.values())}
    config = clip.TextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTHS[-1],
    )
    _, params = initialise(lambda rngs: clip.TextEncoder(config, rngs))
    params["final_layer_norm.scale"] = np.zeros(width, np.float32)
    ids = {f"{name}_token_id": tokens[token] for name, token in TOKENS.items()}
    fixed = {"model_type": clip.FIXED["model_type"], "architectures": ["CLIPTextModel"], **ids}
    save_component(folder / "text_encoder", "CLIPTextModel", config, fixed, params, file=WEIGHTS)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    write_json(tokenizer / "vocab.json", tokens)
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    names = {f"{name}_token": token for name, token in TOKENS.items()}
    extra = {"pad_token": TOKENS["eos"], "unk_token": TOKENS["eos"], "model_max_length": LENGTHS[-1]}
    write_json(tokenizer / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **names, **extra})
