"""The Llama-family decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU. One network for every use.

What tells Mistral, Qwen2 and Qwen3 from Llama are fields of `LlamaConfig`; which model has which is data in `families.py`.

Shapes in names: B batch, L length, D model width, H query heads, K key/value heads, h head size, F feed-forward width,
V vocabulary.
Parameters are stacked over layers, and float32 (frozen matrices may be kept in bfloat16, see `store.load`); compute runs in
`config.dtype`, norms, rotary angles and softmax in float32.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from e2h_jax.models import flash
from e2h_jax.models.projection import TURNED, dense, look_up, project
from e2h_jax.models.rotary import RopeScaling, rotary_angles, rotate
from e2h_jax.parallel.mesh import platform
from e2h_jax.parallel.rules import constrain


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape of the network; the field names' Hugging Face counterparts are in `models/families.py`."""

    vocab_size: int
    width: int  # D, hidden_size
    layers: int
    heads: int  # H
    kv_heads: int  # K; H / K query heads share one key/value head
    head_dim: int  # h
    mlp_width: int  # F, intermediate_size
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    max_length: int = 4096  # positions the model is meant for
    qkv_bias: bool = False  # biases of the query, key and value projections
    o_bias: bool = False  # … of the attention's output projection
    mlp_bias: bool = False  # … of the three feed-forward projections
    qk_norm: bool = False  # RMSNorm of every query and key head before the rotation
    tie_embeddings: bool = False  # the language-model head is the embedding, transposed
    lm_head: bool = True  # False: an imported evaluator's trunk, which came without a language-model head
    score_width: int = 0  # of a reward model: width of a hidden layer in its score head; 0 = the head is linear
    window: int = 0  # sliding-window attention: a token sees itself and the window - 1 before it; 0 = everything
    window_from: int = 0  # first layer with the window
    family: str = "llama"  # whose config.json the model gets when it is exported
    dtype: str = "float32"  # compute dtype: float32 or bfloat16
    unroll: int = 1  # layers per iteration of the scan: 1 compiles fastest, `layers` runs fastest for tiny models
    # What the backward pass recomputes: none | full (keeps the layers' inputs only) | dots (keeps matrix products and what
    # `flash.py` computes)
    remat: str = "none"


def _param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float) -> nnx.Param:
    return nnx.Param(scale * jax.random.truncated_normal(rngs.params(), -3, 3, shape, jnp.float32), axes=axes)


def _bias(wanted: bool, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param | None:
    return nnx.Param(jnp.zeros(shape), axes=axes) if wanted else None


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis, in float32, returned in x's dtype."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps) * scale).astype(x.dtype)


class Block(nnx.Module):
    """One decoder layer. Built with parameters for all layers stacked on axis 0; called on one layer's slice of them."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        c, n = config, config.layers
        out_scale = (2 * n) ** -0.5  # keeps the residual stream's variance from growing with depth
        self.config = config
        self.attention_norm = nnx.Param(jnp.ones((n, c.width)), axes=("layers", None))
        self.q = _param(rngs, (n, c.width, c.heads, c.head_dim), ("layers", "embed", "heads", "head_dim"), c.width**-0.5)
        self.k = _param(rngs, (n, c.width, c.kv_heads, c.head_dim), ("layers", "embed", "kv_heads", "head_dim"), c.width**-0.5)
        self.v = _param(rngs, (n, c.width, c.kv_heads, c.head_dim), ("layers", "embed", "kv_heads", "head_dim"), c.width**-0.5)
        self.o = _param(
            rngs,
            (n, c.heads, c.head_dim, c.width),
            ("layers", "heads", "head_dim", "embed"),
            out_scale * (c.heads * c.head_dim) ** -0.5,
        )
        self.mlp_norm = nnx.Param(jnp.ones((n, c.width)), axes=("layers", None))
        self.gate = _param(rngs, (n, c.width, c.mlp_width), ("layers", "embed", "mlp"), c.width**-0.5)
        self.up = _param(rngs, (n, c.width, c.mlp_width), ("layers", "embed", "mlp"), c.width**-0.5)
        self.down = _param(rngs, (n, c.mlp_width, c.width), ("layers", "mlp", "embed"), out_scale * c.mlp_width**-0.5)
        self.q_bias = _bias(c.qkv_bias, (n, c.heads, c.head_dim), ("layers", "heads", "head_dim"))
        self.k_bias = _bias(c.qkv_bias, (n, c.kv_heads, c.head_dim), ("layers", "kv_heads", "head_dim"))
        self.v_bias = _bias(c.qkv_bias, (n, c.kv_heads, c.head_dim), ("layers", "kv_heads", "head_dim"))
        self.o_bias = _bias(c.o_bias, (n, c.width), ("layers", None))
        self.gate_bias = _bias(c.mlp_bias, (n, c.mlp_width), ("layers", "mlp"))
        self.up_bias = _bias(c.mlp_bias, (n, c.mlp_width), ("layers", "mlp"))
        self.down_bias = _bias(c.mlp_bias, (n, c.width), ("layers", None))
        self.q_norm = nnx.Param(jnp.ones((n, c.head_dim)), axes=("layers", None)) if c.qk_norm else None
        self.k_norm = nnx.Param(jnp.ones((n, c.head_dim)), axes=("layers", None)) if c.qk_norm else None

    def __call__(self, x_BxLxD, rotary, attend: Callable, cache, window):
        """Returns the layer's output [B, L, D] and what `attend` kept."""
        eps = self.config.norm_eps
        y = rms_norm(x_BxLxD, self.attention_norm[...], eps)
        q_BxLxHxh = project(self, "q", y)
        k_BxLxKxh = project(self, "k", y)
        v_BxLxKxh = project(self, "v", y)
        if self.config.qk_norm:
            q_BxLxHxh = rms_norm(q_BxLxHxh, self.q_norm[...], eps)
            k_BxLxKxh = rms_norm(k_BxLxKxh, self.k_norm[...], eps)
        q_BxLxHxh = constrain(rotate(q_BxLxHxh, *rotary), "batch", "length", "heads", "head_dim")
        k_BxLxKxh = rotate(k_BxLxKxh, *rotary)
        out_BxLxHxh, kept = attend(q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, cache, window)
        x_BxLxD += project(self, "o", out_BxLxHxh)

        y = rms_norm(x_BxLxD, self.mlp_norm[...], eps)
        gate_BxLxF = project(self, "gate", y)
        up_BxLxF = project(self, "up", y)
        hidden_BxLxF = constrain(jax.nn.silu(gate_BxLxF) * up_BxLxF, "batch", "length", "mlp")
        x_BxLxD += project(self, "down", hidden_BxLxF)
        return constrain(x_BxLxD, "batch", "length", None), kept


UNLIMITED = 2**30  # a window that nothing falls out of

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, flash.keep_results
    ),
}


class Llama(nnx.Module):
    """Token embedding, stacked layers, final norm, language-model head (`lm_head`, [D, V], unless it is the embedding)."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        c = config
        self.config = config
        # A tied head needs the small scale for logits of order 1; the first norm undoes it for the layers.
        scale = c.width**-0.5 if c.tie_embeddings else 1.0
        self.embedding = _param(rngs, (c.vocab_size, c.width), ("vocab", "embed"), scale)
        self.blocks = Block(config, rngs)
        self.norm = nnx.Param(jnp.ones((c.width,)), axes=(None,))
        if c.lm_head and not c.tie_embeddings:
            self.lm_head = _param(rngs, (c.width, c.vocab_size), ("embed", "vocab"), c.width**-0.5)

    def __call__(self, tokens_BxL, positions_BxL, attend: Callable, cache=None, layers=None, rotary=None):
        """Runs the network up to the final norm.

        Args:
          tokens_BxL: int32 token ids.
          positions_BxL: int32 position of each token within its own sequence.
          attend: what the layers attend to, see `attention.py`.
          cache: keys and values of all layers (a pytree with leading axis `layers`), handed to `attend` layer by layer.
          layers: the layers' parameters one by one, as `unstack` makes them, in place of the stacked ones; `cache` is then a
            list. They run without a scan, whose slices would copy the caches of decoding in every step.
          rotary: the positions' `angles`, where they are known beforehand.

        Returns:
          hidden states [B, L, D] in the compute dtype (`logits` makes logits of them), and what `attend` kept, stacked over
          layers (a list with `layers`).
        """
        c = self.config
        x_BxLxD = look_up(self, "embedding", tokens_BxL, c.dtype)
        x_BxLxD = constrain(x_BxLxD, "batch", "length", None)
        rotary = self.angles(positions_BxL) if rotary is None else rotary
        graph, stacked = nnx.split(self.blocks)

        def layer(x, inputs):
            params, cache, window = inputs
            window = (c.window or None) if window is None else window
            return nnx.merge(graph, params)(x, rotary, attend, cache, window)

        if layers is not None:
            kept = []
            for number, (params, own) in enumerate(zip(layers, cache, strict=True)):
                window = UNLIMITED if number < c.window_from else None
                x_BxLxD, new = layer(x_BxLxD, (params, own, window))
                kept.append(new)
            return rms_norm(x_BxLxD, self.norm[...], c.norm_eps), kept

        windows = None  # where layers differ in a window that matters: a scan has one program for all
        if c.window and c.window_from and (cache is not None or c.window < tokens_BxL.shape[1]):
            windows = jnp.where(jnp.arange(c.layers) < c.window_from, UNLIMITED, c.window)
        if c.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[c.remat], prevent_cse=False)
        x_BxLxD, kept = jax.lax.scan(layer, x_BxLxD, (stacked, cache, windows), unroll=min(c.unroll, c.layers))
        return rms_norm(x_BxLxD, self.norm[...], c.norm_eps), kept

    def angles(self, positions_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
        """cos and sin [B, L, 1, h/2] of the rotary embedding."""
        return rotary_angles(positions_BxL, self.config.head_dim, self.config.rope_base, self.config.rope_scaling)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Next-token logits [..., V] in float32."""
        head = "embedding" if self.config.tie_embeddings else "lm_head"
        return project(self, head, hidden, out_dtype=jnp.float32)

    def output_matrix(self) -> jax.Array:
        """The language-model head [D, V], for losses that never make all logits."""
        return dense(self, "embedding").T if self.config.tie_embeddings else dense(self, "lm_head")


def unstack(params: nnx.State, dtype: str) -> tuple[nnx.State, list[nnx.State]]:
    """Parameters for decoding, or some of them: (all but the layers', those of every layer), matrices in the compute dtype.

    For a TPU, the matrices of `projection.TURNED` are turned to the layout that its products read.
    """

    def cast(name, param):  # norms and the scales of int8 weights stay float32, int8 weights what they are
        def matrix(x):
            return x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating) and not name.endswith("_scale")

        return jax.tree.map(lambda x: x.astype(dtype) if matrix(x) else x, param)

    turned = TURNED if platform() == "tpu" else ()

    def of_layer(number, name, param):
        own = jax.tree.map(lambda x: x[number], param)
        return cast(name, jax.tree.map(lambda x: x.reshape(x.shape[0], -1).T, own) if name in turned else own)

    blocks = params.get("blocks", {})
    layers = range(jax.tree.leaves(blocks)[0].shape[0] if blocks else 0)
    rest = nnx.State({name: cast(name, param) for name, param in params.items() if name != "blocks"})
    return rest, [
        nnx.State({name: of_layer(number, name, param) for name, param in blocks.items()}) for number in layers
    ]
