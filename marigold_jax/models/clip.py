"""CLIP's text encoder. It computes the constant embedding of the empty prompt, and is not needed after that."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from marigold_jax.models.config import ANY, Epsilon, Heads, Width, require_multiples
from marigold_jax.models.layers import Keys, gelu
from marigold_jax.runtime.typed import Between, shown

FIXED = {
    **{
        key: ANY
        for key in (
            *("architectures", "attention_dropout", "bos_token_id", "dropout", "dtype", "eos_token_id"),
            *("initializer_factor", "initializer_range", "pad_token_id", "projection_dim", "torch_dtype"),
            *("transformers_version", "return_dict", "output_hidden_states", "chunk_size_feed_forward"),
            *("id2label", "label2id", "is_encoder_decoder", "output_attentions", "problem_type", "tie_word_embeddings"),
        )
    },
    "model_type": "clip_text_model",
}

ACTIVATIONS = {"gelu": gelu, "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x)}


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The keys of `text_encoder/config.json` that define the network, with transformers' defaults.

    Stable Diffusion 2 uses the penultimate layer of OpenCLIP ViT-H, so its file has 23 layers instead of 24.
    """

    vocab_size: Annotated[int, Between(1, 2**20)] = 49408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_hidden_layers: Annotated[int, Between(1, 64)] = 12
    num_attention_heads: Heads = 8
    max_position_embeddings: Annotated[int, Between(2, 2**12)] = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5

    def __post_init__(self):
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act = {shown(self.hidden_act)}: wanted one of {', '.join(ACTIVATIONS)}")
        require_multiples("hidden_size", [self.hidden_size], self.num_attention_heads, "num_attention_heads")


SD2 = TextConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
)


def layer_norm(config: TextConfig, rngs: Keys) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs)


class CausalAttention(nnx.Module):
    def __init__(self, config: TextConfig, rngs: Keys):
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nnx.Linear(width, width, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, rngs=rngs)
        self.v_proj = nnx.Linear(width, width, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        query, key, value = (
            project(x).reshape(*x.shape[:2], self.heads, -1) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(out.reshape(x.shape))


class MLP(nnx.Module):
    def __init__(self, config: TextConfig, rngs: Keys):
        self.activation = config.hidden_act
        self.fc1 = nnx.Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class EncoderLayer(nnx.Module):
    def __init__(self, config: TextConfig, rngs: Keys):
        self.layer_norm1, self.self_attn = layer_norm(config, rngs), CausalAttention(config, rngs)
        self.layer_norm2, self.mlp = layer_norm(config, rngs), MLP(config, rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nnx.Module):
    def __init__(self, config: TextConfig, rngs: Keys):
        self.token_embedding = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.position_embedding = nnx.Embed(config.max_position_embeddings, config.hidden_size, rngs=rngs)

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n c"]:
        return self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))[None]


class Encoder(nnx.Module):
    def __init__(self, config: TextConfig, rngs: Keys):
        self.layers = nnx.List(EncoderLayer(config, rngs) for _ in range(config.num_hidden_layers))


class TextEncoder(nnx.Module):
    """CLIPTextModel up to `last_hidden_state`, after the final normalisation."""

    def __init__(self, config: TextConfig, rngs: Keys):
        self.embeddings = Embeddings(config, rngs)
        self.encoder = Encoder(config, rngs)
        self.final_layer_norm = layer_norm(config, rngs)

    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n c"]:
        x = self.embeddings(ids)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x)
